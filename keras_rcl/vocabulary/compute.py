"""How a training computes, apart from what it computes: precision, compilation and memory."""

from pydantic import PositiveInt

from keras_rcl.vocabulary.network import AttackDtype, Precision
from keras_rcl.vocabulary.spec import spec


@spec
class ComputeSettings:
    """How a training computes. The default is float32, without XLA, whole batches at once.

    Attributes:
        precision: The dtype policy under which the network was built; decides whether the loss is scaled.
        attack_dtype: The dtype in which attacks on one output of a float32 network are computed.
        jit: Compile training steps with XLA.
        micro_batch: At most this many images pass through the network at once; the losses remain those of the whole
            batch. None: the whole batch at once.

    Example:
        >>> ComputeSettings(precision="mixed_bfloat16", micro_batch=64).micro_batch
        64
    """

    precision: Precision = "float32"
    attack_dtype: AttackDtype = "float32"
    jit: bool = False
    micro_batch: PositiveInt | None = None


DEFAULT_COMPUTE = ComputeSettings()
"""float32, no XLA, whole batches at once."""
