"""YAML, `--variant` and `--set` -> one validated `Experiment`; and back to YAML."""

import copy
import dataclasses
import functools
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import PositiveInt, TypeAdapter, ValidationError

from keras_rcl.errors import InvalidInputError, did_you_mean, format_error
from keras_rcl.methods import Method, is_variant, known_variants
from keras_rcl.runtime.program import program_name
from keras_rcl.vocabulary.attacks import FGSM, PGD, Attack
from keras_rcl.vocabulary.compute import ComputeSettings
from keras_rcl.vocabulary.dataset import Dataset, Seed
from keras_rcl.vocabulary.network import AttackDtype, Network, Precision
from keras_rcl.vocabulary.phase import Adversarial, Phase
from keras_rcl.vocabulary.search import Range, parse_range
from keras_rcl.vocabulary.spec import spec

CONFIGS = Path(__file__).resolve().parent / "configs"
DEFAULT_CONFIG = CONFIGS / "digits.yaml"
LONGEST_CHAIN = 8
"""The longest chain of files that extend one another."""
TAGS = {"name", "term"}
"""The fields that say which of several specs a value is."""
FILE_KEYS = ("variant", "methods", "extends", "scales", "search")
"""What a file may hold besides the fields of an experiment."""
RENAMED = {"craft_dtype": "attack_dtype"}
"""Old key of an experiment -> its current key."""


@spec
class Evaluation:
    """How a trained classifier is measured.

    Attributes:
        attacks: the attacks on the test split at the end.
        limit: use at most N test images, with the class balance kept; None uses all.
        batch_size: images that are attacked at once; it changes speed, never results.
        validation_attack: the attack on the validation split after each epoch of the last phase. The checkpoint with
            the highest robust accuracy under it is the best one.
        validation_limit: use at most N validation images for it.
        patience: early stopping: the last phase ends after N epochs in a row without a higher robust accuracy.

    Example:
        >>> import keras_rcl
        >>> evaluation = keras_rcl.Evaluation(attacks=(keras_rcl.AutoAttack(),), limit=1000)
        >>> evaluation.validation_attack.label
        'PGD-10'
    """

    attacks: tuple[Attack, ...] = (FGSM(), PGD(num_steps=40))
    limit: PositiveInt | None = None
    batch_size: PositiveInt = 250
    validation_attack: Attack = PGD(num_steps=10)
    validation_limit: PositiveInt | None = 500
    patience: PositiveInt | None = None

    def __post_init__(self):
        attack = self.validation_attack
        if not attack.measures_training:
            raise ValueError(
                f"validation_attack {attack.label} does not attack the network's own logits in a ball; choose one that "
                "does, such as pgd"
            )


@spec
class Experiment:
    """All settings of a run in one value, which is written beside every checkpoint and result.

    Attributes:
        method: the training method: one of `VARIANTS`, with its hyper-parameters.
        seed: the seed of the weights, the batches, the augmentations and the attacks.
        dataset: the data set and its splits.
        network: the encoder and its heads.
        evaluation: how the trained classifier is measured.
        precision: the dtype policy of training; evaluation and export are float32.
        attack_dtype: the dtype that attacks of training on one output of the network are computed in; under a mixed
            precision they are computed in that precision.
        jit: compile steps with XLA, which is faster on a GPU and several times slower on a CPU.
        micro_batch: at most N images pass through the network at once in training. The losses, also contrastive ones,
            remain those of the whole batch (Gao et al. 2021), at the cost of one more forward pass.
        synchronized: on several replicas, BatchNorm normalizes by the statistics of the whole batch; if False, by those
            of each replica's own images, which is faster.
        compare: variants that `fit` also trains and attacks, for the table that it prints.

    Example:
        >>> import keras_rcl
        >>> experiment = keras_rcl.Experiment(method=keras_rcl.AT(epochs=3), seed=1)
        >>> experiment.dataset.name, experiment.network.encoder
        ('digits', 'small_cnn')
    """

    method: Method
    seed: Seed = 0
    dataset: Dataset = Dataset()
    network: Network = Network()
    evaluation: Evaluation = Evaluation()
    precision: Precision = "float32"
    attack_dtype: AttackDtype = "float32"
    jit: bool = False
    micro_batch: PositiveInt | None = None
    synchronized: bool = True
    compare: tuple[str, ...] = ()

    @property
    def compute(self) -> ComputeSettings:
        """How the experiment's training computes."""
        return ComputeSettings(
            precision=self.precision, attack_dtype=self.attack_dtype, jit=self.jit, micro_batch=self.micro_batch
        )

    def __post_init__(self):
        for name in self.compare:
            if not is_variant(name):
                raise ValueError(f"compare: unknown variant {name!r}{did_you_mean(name, known_variants())}")
        if self.evaluation.patience and not self.dataset.validation_fraction:
            raise ValueError(
                f"evaluation.patience {self.evaluation.patience} needs validation images, and there are none; set "
                "dataset.validation_fraction"
            )
        if self.precision != "float32" and self.network.has_own_encoder:
            raise ValueError(f"encoder {self.network.encoder} is trained in float32; leave out precision")
        if self.precision != "float32" and self.attack_dtype != "float32":
            raise ValueError(f"attacks are computed in precision {self.precision} too; leave out attack_dtype")
        for attack in training_attacks(self.method.phases()):
            if attack.proxy:
                raise ValueError(
                    f"method {self.method.name} trains on {attack.label}; images that are crafted on another model do "
                    "not change while this one trains; make them once by `craft-dataset` and train on the stored ones"
                )


def training_attacks(phases: Iterable[Phase]) -> Iterator[Attack]:
    """The attacks of all views of the phases and of their refreshes."""
    for phase in phases:
        yield from (view.attack for view in phase.views if isinstance(view, Adversarial))
        yield from training_attacks(phase.refresh)


def training_protocols(phases: Sequence[Phase]) -> tuple[str, ...]:
    """The protocols of what the phases train against, sorted: of their attacks, and `pixel` for bounds."""
    bounds = {"pixel" for phase in phases if phase.worst_case}
    return tuple(sorted(bounds | {attack.protocol for attack in training_attacks(phases)}))


_EXPERIMENT = TypeAdapter(Experiment)


def load(
    path: Path | None = None, variant: str | None = None, settings: Iterable[str] = (), scale: str | None = None
) -> Experiment:
    """Resolve an experiment: first the file at its scale, then the variant, then the settings.

    Args:
        path: a YAML file in the form of those in `configs/`; None reads `configs/digits.yaml`. A path that begins with
            `configs/` and is not in the working directory is one of the package. Besides the fields of `Experiment`
            a file may hold `variant`, the default variant; `methods`, settings per variant; `extends`, the name of a
            file beside it whose settings it changes; `scales`, the changes at each scale, which may extend a file too;
            and `search`, see `load_search`.
        variant: a name of `VARIANTS`, in place of the file's.
        settings: `a.b=value` texts; values are read as YAML.
        scale: a scale that the file, or a file that it extends, names under `scales`; None takes the first.

    Returns:
        The experiment. A deprecated key is noted on stderr.

    Raises:
        InvalidInputError: if a file cannot be read or a setting is not valid; the message names every such key and
            value.
    """
    source = _find(path)
    raw = _at_scale(source, scale)
    raw.pop("search", None)
    methods, default = raw.pop("methods", None) or {}, raw.pop("variant", None)
    chosen = variant or default
    if not isinstance(methods, dict) or not all(isinstance(fields or {}, dict) for fields in methods.values()):
        raise InvalidInputError(f"{source}: methods must map variants to their settings, not {methods!r}")
    for name in [*methods, *([chosen] if chosen else [])]:
        if not is_variant(name):
            raise InvalidInputError(
                f"unknown variant {name!r}{did_you_mean(name, known_variants())}; see `{program_name()} variants`"
            )
    method = raw.setdefault("method", {"name": chosen})
    if chosen and isinstance(method, dict) and (method.get("name") != chosen or len(method) == 1):
        raw["method"] = {"name": chosen, **(methods.get(chosen) or {})}
    for setting in settings:
        _set(raw, setting)
    if not isinstance(raw["method"], dict):
        raise InvalidInputError(
            f"method {raw['method']!r} is not a mapping; choose it by --variant, its fields by --set method.a=b"
        )
    if raw["method"].get("name") is None:
        known = [*_fields(()), *FILE_KEYS]
        if unknown := [f"{key}: no such field{did_you_mean(key, known)}" for key in raw if key not in known]:
            raise InvalidInputError(f"{source} names no variant; {'; '.join(unknown)}")
        raise InvalidInputError(f"{source} names no variant; give --variant, one of {', '.join(known_variants())}")
    return parse(raw, str(source))


def load_search(path: Path | None, variant: str, scale: str | None = None) -> dict[str, Range]:
    """The settings that `tune` varies, and their ranges, as the file's `search` gives them for a variant.

    Raises:
        InvalidInputError: if `search` is not a mapping from variants to settings and ranges.
    """
    source = _find(path)
    found = _at_scale(source, scale).get("search") or {}
    if not isinstance(found, dict) or not all(isinstance(ranges or {}, dict) for ranges in found.values()):
        raise InvalidInputError(f"{source}: search must map variants to settings and their ranges, not {found!r}")
    for name in found:
        if not is_variant(name):
            close = did_you_mean(name, known_variants())
            raise InvalidInputError(f"{source}: search: unknown variant {name!r}{close}")
    return {str(setting): parse_range(text) for setting, text in (found.get(variant) or {}).items()}


def parse(raw: dict[str, Any], source: str) -> Experiment:
    """Validate a mapping into an `Experiment`; a message names `source`. Old keys are read as their current ones."""
    try:
        return _EXPERIMENT.validate_python(_with_current_keys(raw))
    except ValidationError as error:
        raise InvalidInputError(f"{source}: {format_error(error)}{_hint(error)}") from None


def with_variant(experiment: Experiment, path: Path | None, variant: str, scale: str | None = None) -> Experiment:
    """The same experiment with another variant, at the settings that the file has for it."""
    return dataclasses.replace(experiment, method=load(path, variant, scale=scale).method)


def training_of(experiment: Experiment) -> Experiment:
    """The part of an experiment that its training depends on, except the seed.

    Two runs with the same seed and the same such part are the same training. The folder of the data, the evaluation at
    the end and settings that only change speed are left at their defaults. If no images are held out for validation, so
    is the choice of the best checkpoint.
    """
    held_out = experiment.dataset.validation_fraction > 0
    chosen = ("validation_attack", "validation_limit", "patience")
    kept = {name: getattr(experiment.evaluation, name) for name in chosen} if held_out else {}
    return Experiment(
        method=experiment.method,
        dataset=dataclasses.replace(experiment.dataset, data_dir=None),
        network=experiment.network,
        evaluation=Evaluation(**kept),
        precision=experiment.precision,
    )


def to_dict(experiment: Experiment) -> dict[str, Any]:
    """The resolved experiment as plain JSON values; `parse` reads it back to an equal one."""
    return _EXPERIMENT.dump_python(experiment, mode="json")


def to_yaml(experiment: Experiment) -> str:
    """The resolved experiment as YAML, which `load` reads back."""
    return yaml.safe_dump(to_dict(experiment), sort_keys=False, width=110)


def _hint(error: ValidationError) -> str:
    """A hint for unknown keys: the known keys that are close to them, or the command that prints the known keys."""
    unknown = [item["loc"] for item in error.errors() if item["type"] == "unexpected_keyword_argument"]
    meant = dict.fromkeys(
        did_you_mean(str(key), [*_fields(path), *(() if path else FILE_KEYS)]) for *path, key in unknown
    )
    return "".join(meant) or (f"; `{program_name()} show` prints the fields" if unknown else "")


def _fields(path: Iterable[str | int]) -> Iterable[str]:
    """The fields of the spec at a path into the experiment; a path consists of field names, tags and positions."""
    schema = _EXPERIMENT.json_schema()
    specs = {f"#/$defs/{name}": found for name, found in schema["$defs"].items()}
    for step in path:
        tags = schema.get("discriminator", {}).get("mapping", {})
        schema = tags.get(step) or schema.get("properties", {}).get(step) or schema.get("items", {})
        schema = specs.get(schema if isinstance(schema, str) else schema.get("$ref"), schema)
    return schema.get("properties", ())


class _Loader(yaml.SafeLoader):
    """YAML's safe loader without aliases, by which a small file can become a very large value, and repeated keys."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"alias *{self.peek_event().anchor}: write out what it stands for")
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"{key!r} is given {keys.count(key)} times")
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node):
        value = super().construct_yaml_int(node)
        if not -(2**63) <= value < 2**63:
            raise yaml.YAMLError("a whole number has more than 64 bits")
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def parse_value(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        ValueError: if it is not YAML, or has what no configuration needs: aliases, repeated keys, very deep nesting.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    except (AttributeError, LookupError, TypeError):  # such as of `!!float ''`, `!!bool x` and `!!map [1]`
        raise ValueError("a value does not fit its tag, such as !!bool x") from None


def _find(path: Path | None) -> Path:
    """The file, or the package's own if `configs/...` is not in the working directory; by default `digits.yaml`."""
    if path is None:
        return DEFAULT_CONFIG
    path = Path(path)
    packaged = CONFIGS.joinpath(*path.parts[1:])
    return packaged if path.parts[:1] == ("configs",) and not path.exists() and packaged.is_file() else path


def _with_current_keys(raw: Any) -> Any:
    """The mapping with deprecated keys renamed; anything else as it is."""
    return {RENAMED.get(key, key): value for key, value in raw.items()} if isinstance(raw, dict) else raw


@functools.cache
def _note_deprecated(key: str, source: str) -> None:
    """Note a deprecated key on stderr, once per source."""
    print(f"note: {source}: {key} is deprecated; use {RENAMED[key]}", file=sys.stderr)


_parse_once = functools.lru_cache(maxsize=256)(parse_value)
"""The rows of a paper extend the same few files, whose texts are parsed once."""


def _read(path: Path) -> dict[str, Any]:
    """The mapping that a file holds, with deprecated keys renamed."""
    try:
        raw = copy.deepcopy(_parse_once(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        shipped = ", ".join([*sorted(p.name for p in CONFIGS.glob("*.yaml")), "recipes/", "papers/"])
        raise InvalidInputError(f"no configuration file {str(path)!r}; configs/ holds {shipped}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"cannot read the configuration {str(path)!r}: {error}") from None
    except ValueError as error:
        raise InvalidInputError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise InvalidInputError(f"{path} does not hold a mapping of settings; see configs/digits.yaml")
    scales = raw.get("scales")
    for layer in (raw, *(scales.values() if isinstance(scales, dict) else ())):
        for key in RENAMED.keys() & (layer.keys() if isinstance(layer, dict) else ()):
            _note_deprecated(key, str(path))
            layer.setdefault(RENAMED[key], layer.pop(key))
    return raw


def _at_scale(source: Path, scale: str | None) -> dict[str, Any]:
    """The settings of a file, and of the files that it extends, at a scale."""
    raw, scales = _resolve(source, scale)
    if scale is not None and scale not in scales:
        known = f"it has {', '.join(scales)}" if scales else "it has no scales; leave out --scale"
        raise InvalidInputError(f"{source} has no scale {scale!r}{did_you_mean(scale, scales)}; {known}")
    return raw


def _resolve(path: Path, scale: str | None, above: tuple[Path, ...] = ()) -> tuple[dict[str, Any], dict[str, None]]:
    """The settings of a file over those that it extends, at a scale; and the names of all scales, in order."""
    if len(above) == LONGEST_CHAIN:
        raise InvalidInputError(f"{above[0]} extends {len(above)} files and comes to {path}; one may extend itself")
    raw = _read(path)
    scales = raw.pop("scales", None) or {}
    if not isinstance(scales, dict) or not all(isinstance(fields or {}, dict) for fields in scales.values()):
        raise InvalidInputError(f"{path}: scales must map scales to settings, not {scales!r}")
    chosen = scales.get(next(iter(scales), None) if scale is None else scale) or {}
    merged: dict[str, Any] = {}
    named = dict.fromkeys(scales)
    for layer in (raw, chosen):
        base = layer.pop("extends", None)
        if base is not None:
            if not isinstance(base, str):
                raise InvalidInputError(f"{path}: extends must be the name of a file beside it, not {base!r}")
            below, known = _resolve(path.parent / base, scale, (*above, path))
            merged, named = _over(merged, below), {**known, **named}
    return _over(_over(merged, raw), chosen), named


def _over(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The base with the changes, mapping by mapping; a value with another name or term replaces the whole mapping."""
    merged = dict(base)
    for key, value in changes.items():
        old: Any = merged.get(key)
        inner = isinstance(old, dict) and isinstance(value, dict)
        if inner and all(value.get(tag, old.get(tag)) == old.get(tag) for tag in TAGS):
            value = _over(old, value)
        merged[key] = value
    return merged


def _default_at(raw: dict[str, Any], path: Iterable[str]) -> dict[str, Any]:
    """The fields of the tagged value at a path of the experiment that `raw` resolves to; empty if there is none."""
    try:
        found: Any = to_dict(parse(raw, ""))
    except InvalidInputError:
        return {}
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) and TAGS & found.keys() else {}


def _set(raw: dict[str, Any], setting: str) -> None:
    """Apply `a.b=value` in place. A tagged value that `raw` does not hold, such as an attack, starts as its default."""
    path, equals, text = setting.partition("=")
    *parents, last = path.strip().split(".")
    if not parents and last in RENAMED:
        _note_deprecated(last, "--set")
        last = RENAMED[last]
    if not equals or not all([*parents, last]):
        raise InvalidInputError(f"--set {setting!r} is not key=value, such as method.temperature=0.1")
    if (first := [*parents, last][0]) in FILE_KEYS:
        raise InvalidInputError(
            f"--set {setting!r}: {first!r} is a key of files; hint: method.<field>=<value> sets a field of the method, "
            "--variant and --scale choose variant and scale"
        )
    try:
        value = parse_value(text)
    except ValueError:
        raise InvalidInputError(f"--set {setting!r}: {text!r} is not a YAML value") from None
    whole, known = raw, []
    for number, key in enumerate(parents, 1):
        known.append(key)
        if key not in raw and (number < len(parents) or last not in TAGS):
            raw[key] = _default_at(whole, known)
        inner = raw.setdefault(key, {})
        if isinstance(inner, str):  # the short form of a tagged value, such as augmentation: crop_flip
            inner = raw[key] = {"name": inner}
        if not isinstance(inner, dict):
            raise InvalidInputError(f"--set {setting!r}: {key!r} has no fields")
        raw = inner
    raw[last] = value
