"""What users and installed packages add to the tables of attacks, methods, encoders and losses.

One table per kind holds the additions by name, beside the names that are built in. Packages add theirs through the
entry point group `keras_rcl.plugins`, which is read once, when a name is not known or when all names are listed.
"""

import functools
import importlib.metadata
import re
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from pydantic import GetCoreSchemaHandler, TypeAdapter
from pydantic_core import CoreSchema, core_schema

from keras_rcl.errors import InvalidInputError, named

Kind = Literal["attack", "method", "encoder", "loss"]

GROUP = "keras_rcl.plugins"
"""The group of entry points; each names a function without arguments that registers things."""

TAGS: dict[Kind, str] = {"attack": "name", "method": "name", "loss": "term"}
"""The field that says which attack, method or loss a mapping of settings is."""

NAME = re.compile(r"[a-z][a-z0-9_]*")


class Entry(NamedTuple):
    """Something that was registered.

    Attributes:
        settings: The class of its hyper-parameters; None of an encoder.
        run: The function that computes it; None of a method, which says its phases itself.
        options: What else was given.
    """

    settings: Any
    run: Callable[..., Any] | None = None
    options: dict[str, Any] = {}  # noqa: RUF012  never changed


_built_in: dict[Kind, frozenset[str]] = {}
_added: dict[Kind, dict[str, Entry]] = {"attack": {}, "method": {}, "encoder": {}, "loss": {}}


def reserve(kind: Kind, names: Iterable[str]) -> None:
    """Declare names that are built in, which nothing else can take."""
    _built_in[kind] = _built_in.get(kind, frozenset()) | frozenset(names)


def find(kind: Kind, name: object) -> Entry | None:
    """Return what is registered under a name; None if nothing is, or if the name is built in."""
    if not isinstance(name, str) or name in _built_in.get(kind, ()):
        return None
    if name not in _added[kind]:
        load_plugins()
    return _added[kind].get(name)


def added(kind: Kind) -> dict[str, Entry]:
    """Return all that is registered, by name, with what installed packages register."""
    load_plugins()
    return dict(_added[kind])


def unregister(kind: Kind, name: str) -> None:
    """Remove what was registered under a name, if anything was."""
    _added[kind].pop(name, None)


@functools.cache
def load_plugins() -> None:
    """Let every installed package with an entry point of the group `keras_rcl.plugins` register its things, once.

    Raises:
        InvalidInputError: If one fails; the message names it.
    """
    for point in importlib.metadata.entry_points(group=GROUP):
        try:
            point.load()()
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise InvalidInputError(
                f"plugin {point.name} ({point.value}) fails: {reason}; hint: repair or uninstall its package"
            ) from error


class OpenUnion:
    """Metadata of a union of settings that makes it take what is registered, too.

    Args:
        kind: Of the table.
    """

    def __init__(self, kind: Kind):
        self.kind, self.tag = kind, TAGS[kind]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The schema of the union, behind a look into the table for every other name."""
        reserve(self.kind, (getattr(member, self.tag) for member in get_args(source)))
        union = handler(source)
        return core_schema.no_info_wrap_validator_function(
            self._read,
            union,
            serialization=core_schema.wrap_serializer_function_ser_schema(self._write, schema=union, info_arg=True),
        )

    def _read(self, value: Any, read: Callable[[Any], Any]) -> Any:
        name = value.get(self.tag) if isinstance(value, dict) else getattr(value, self.tag, None)
        entry = find(self.kind, name)
        if entry is None:
            return read(value)
        return TypeAdapter(entry.settings).validate_python(value)

    def _write(self, value: Any, write: Callable[[Any], Any], info: Any) -> Any:
        entry = find(self.kind, getattr(value, self.tag, None))
        if entry is None:
            return write(value)
        return TypeAdapter(entry.settings).dump_python(value, mode=info.mode)


Settings = TypeVar("Settings", bound=type)


def register_attack(settings: Settings, run: Callable[..., Any]) -> Settings:
    """Add an attack, which is then run by its name in every command, function and configuration.

    Registering a class of the same module and name again replaces it, so that a notebook cell can be run again.

    Args:
        settings: The class of its hyper-parameters: an `AttackBase` with the decorator `spec`, a field `name`, the
            fields or properties `norm` and `epsilon`, and the properties `label` and `num_passes`.
        run: A function `(logits_fn, x, labels, attack, round)` that returns images [N, H, W, C]. It gets a function
            from images to logits [N, K], float32 images in [0, 1], labels [N], the hyper-parameters, and a round with
            `seeds` [N, 2], one per image. Its images are projected to the ball and to [0, 1].

    Returns:
        The class.

    Raises:
        InvalidInputError: If the class is another one, or its name is taken.

    Example:
        >>> import keras_rcl
        >>> from typing import Literal
        >>> @keras_rcl.spec
        ... class Brighten(keras_rcl.AttackBase):
        ...     name: Literal["brighten"] = "brighten"
        ...     norm: Literal["linf"] = "linf"
        ...     epsilon: float = 8 / 255
        ...     label = "Brighten"
        ...     num_passes = 0, 0
        >>> keras_rcl.register_attack(Brighten, lambda logits_fn, x, labels, attack, round: x + attack.epsilon).name
        'brighten'
        >>> unregister("attack", "brighten")
    """
    if not any(base.__name__ == "AttackBase" for base in getattr(settings, "__mro__", ())):
        raise InvalidInputError(f"{named(settings)} does not extend keras_rcl.AttackBase; hint: derive it from it")
    missing = [name for name in ("norm", "epsilon", "label", "num_passes") if _is_open(settings, name)]
    if missing:
        raise InvalidInputError(f"{named(settings)} has no {', '.join(missing)}; hint: give it a field or a property")
    _add("attack", settings, run)
    return settings


def register_method(settings: Settings) -> Settings:
    """Add a training method, which `fit`, `train`, `tune` and `RobustModel` then take. It can be used as a decorator.

    Args:
        settings: The class of its hyper-parameters, with the decorator `spec`, a field `name`, and a function
            `phases()` that returns a tuple of `keras_rcl.vocabulary.phase.Phase`.

    Returns:
        The class.

    Raises:
        InvalidInputError: If the class is another one, or its name is taken.

    Example:
        >>> import keras_rcl
        >>> from typing import Literal
        >>> @keras_rcl.register_method
        ... @keras_rcl.spec
        ... class LongBaseline(keras_rcl.Baseline):
        ...     name: Literal["long_baseline"] = "long_baseline"
        ...     epochs: int = 500
        >>> keras_rcl.Experiment(method={"name": "long_baseline"}).method.phases()[0].epochs
        500
        >>> unregister("method", "long_baseline")
    """
    if not callable(getattr(settings, "phases", None)):
        raise InvalidInputError(f"{named(settings)} has no phases(); hint: return a tuple of Phase")
    _add("method", settings)
    return settings


def register_loss(
    settings: Settings, value: Callable[..., Any], *, output: str = "logits", contrastive: bool = False
) -> Settings:
    """Add a loss, which is then a term of the phases of a method.

    Args:
        settings: The class of its hyper-parameters, with the decorator `spec`, and the fields `term` and `weight`.
        value: A function `(term, batch)` that returns the scalar, without its weight. `batch.view("logits", None)` is
            an output of all views, [V * N, ...], and `batch.view("labels", None)` the labels, [V * N]; a kind in place
            of None, such as "adversarial", chooses views.
        output: The output of the network that it reads: `logits`, `embedding`, `projection` or
            `unnormalized_projection`.
        contrastive: Whether it compares the rows of a batch with each other.

    Returns:
        The class.

    Raises:
        InvalidInputError: If the class is another one, or its name is taken.

    Example:
        >>> import keras
        >>> import keras_rcl
        >>> from typing import Literal
        >>> @keras_rcl.spec
        ... class SmallLogits:
        ...     term: Literal["small_logits"] = "small_logits"
        ...     weight: float = 0.01
        >>> def value(term, batch):
        ...     return keras.ops.mean(keras.ops.square(batch.view("logits", None)))
        >>> keras_rcl.register_loss(SmallLogits, value).term
        'small_logits'
        >>> unregister("loss", "small_logits")
    """
    if "weight" not in getattr(settings, "__dataclass_fields__", ()):
        raise InvalidInputError(f"{named(settings)} has no field weight; hint: give it `weight: float = 1.0`")
    _add("loss", settings, value, output=output, contrastive=contrastive)
    return settings


def register_encoder(name: str, build: Callable[..., Any]) -> None:
    """Add an encoder, which `network.encoder` then takes by its name.

    Args:
        name: Lower-case letters, digits and underscores.
        build: A function that returns a `keras.Model` from images to an embedding [N, E]. It is called with
            `image_shape=(H, W, C)` if it has an argument of this name, and otherwise without arguments.

    Raises:
        InvalidInputError: If the name is taken or cannot be used.

    Example:
        >>> import keras
        >>> import keras_rcl
        >>> def flat(image_shape):
        ...     return keras.Sequential([keras.Input(image_shape), keras.layers.Flatten(), keras.layers.Dense(16)])
        >>> keras_rcl.register_encoder("flat", flat)
        >>> keras_rcl.Network(encoder="flat").encoder
        'flat'
        >>> unregister("encoder", "flat")
    """
    _check_callable("encoder", name, build)
    _put("encoder", name, Entry(None, build))


def _add(kind: Kind, settings: Any, run: Callable[..., Any] | None = None, **options: Any) -> None:
    tag = TAGS[kind]
    if not hasattr(settings, "__pydantic_validator__") or tag not in getattr(settings, "__dataclass_fields__", ()):
        raise InvalidInputError(
            f"{named(settings)} has no field {tag}, or is not a spec; hint: decorate it with keras_rcl.spec, and give "
            f'it `{tag}: Literal["my_{kind}"] = "my_{kind}"`'
        )
    if kind != "method":
        _check_callable(kind, getattr(settings, tag, None), run)
    _put(kind, getattr(settings, tag, None), Entry(settings, run, options))


def _put(kind: Kind, name: Any, entry: Entry) -> None:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InvalidInputError(
            f"{kind} {name!r}: a name has lower-case letters, digits and underscores; hint: choose another"
        )
    held = _added[kind].get(name)
    if name in _built_in.get(kind, ()) or (held is not None and _origin(held) != _origin(entry)):
        other = "is built in" if held is None else f"is registered by {_origin(held)}"
        raise InvalidInputError(f"{kind} {name!r} {other}; hint: choose another name")
    _added[kind][name] = entry


def _origin(entry: Entry) -> str:
    """The module and name of the class, or of the function of an encoder."""
    named: Any = entry.settings or entry.run
    return f"{getattr(named, '__module__', '')}.{getattr(named, '__qualname__', '')}"


def _is_open(settings: Any, name: str) -> bool:
    """Whether a class leaves a property of `AttackBase` as it is."""
    if name in getattr(settings, "__dataclass_fields__", ()):
        return False
    owner = next((base for base in settings.__mro__ if name in vars(base)), None)
    return owner is None or owner.__name__ == "AttackBase"


def _check_callable(kind: Kind, name: Any, run: Any) -> None:
    if not callable(run):
        raise InvalidInputError(f"{kind} {name!r}: {type(run).__name__} cannot be called; hint: give a function")
