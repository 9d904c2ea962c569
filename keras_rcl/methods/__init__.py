"""The table of variants. A method holds the hyper-parameters of a paper and turns them into `phases()`."""

from typing import Annotated, Any, Union, get_args

from pydantic import Field

from keras_rcl.errors import InvalidInputError, did_you_mean, named
from keras_rcl.methods.adversarial import AdversarialBatch
from keras_rcl.methods.adversarial_contrastive import AdversarialContrastive
from keras_rcl.methods.at import AT
from keras_rcl.methods.at_scl import ATSCL, TRADESSCL
from keras_rcl.methods.baseline import Baseline
from keras_rcl.methods.certified import MTLIBP, SABR, Certified, CertifiedContrastive
from keras_rcl.methods.clafs import CLAFS
from keras_rcl.methods.fast_at import FastAT
from keras_rcl.methods.landsman import PGDCE, SCCE, PGDBoth, PGDSupCon, SCBoth, SCSupCon, SCSupConRetrained
from keras_rcl.methods.mart import MART
from keras_rcl.methods.rocl import RoCLAT
from keras_rcl.methods.scl import SCL, MarginSCL, RefinedSCL
from keras_rcl.methods.single_training import SingleTraining
from keras_rcl.methods.smoothed import SmoothAdv, SmoothedTraining
from keras_rcl.methods.supcon_linear import SupConLinear
from keras_rcl.methods.trades import TRADES
from keras_rcl.vocabulary.registry import OpenUnion, added, find, reserve

Method = Annotated[
    Union[
        Baseline,
        SCL,
        RefinedSCL,
        MarginSCL,
        SupConLinear,
        SingleTraining,
        AT,
        FastAT,
        TRADES,
        MART,
        ATSCL,
        TRADESSCL,
        RoCLAT,
        CLAFS,
        PGDCE,
        PGDSupCon,
        PGDBoth,
        SCCE,
        SCSupCon,
        SCBoth,
        SCSupConRetrained,
        AdversarialBatch,
        AdversarialContrastive,
        Certified,
        CertifiedContrastive,
        MTLIBP,
        SABR,
        SmoothedTraining,
        SmoothAdv,
    ],
    Field(discriminator="name"),
    OpenUnion("method"),
]
"""Any variant; the field `name` says which."""

VARIANTS = {cls.name: cls for cls in get_args(get_args(Method)[0])}
reserve("method", VARIANTS)


def known_variants() -> dict[str, Any]:
    """Name -> class, of the methods that are built in and of those that are registered."""
    return {**VARIANTS, **{name: entry.settings for name, entry in added("method").items()}}


def is_variant(name: object) -> bool:
    """Whether a method has this name."""
    return name in [*VARIANTS] or find("method", name) is not None


def as_method(method: object) -> Any:
    """A method as it is, or that of a name with its default hyper-parameters.

    Raises:
        InvalidInputError: If it is neither.

    Example:
        >>> as_method("at") == as_method(AT())
        True
    """
    if isinstance(method, str):
        known = known_variants()
        if method not in known:
            raise InvalidInputError(
                f"unknown variant {method!r}{did_you_mean(method, known)}; choose from {', '.join(known)}"
            )
        return known[method]()
    if isinstance(method, type) or not hasattr(method, "phases"):
        raise InvalidInputError(
            f"{named(method)} is not a method; hint: give one, such as keras_rcl.AT(epochs=30), or a name, such as 'at'"
        )
    return method
