"""Experiments from YAML: one order of resolution, refusals of one line, and every configuration that ships."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_rcl import config
from keras_rcl.config import CONFIGS, DEFAULT_CONFIG, Experiment, load, to_dict, to_yaml
from keras_rcl.errors import InvalidInputError
from keras_rcl.methods import VARIANTS
from keras_rcl.methods.clafs import CLAFS
from keras_rcl.vocabulary.attacks import FGSM, PGD
from keras_rcl.vocabulary.dataset import CropFlip, LayerAugmentation, SimCLR
from keras_rcl.vocabulary.phase import SGD, Adam, MarginContrastive

SHIPPED = sorted(CONFIGS.glob("**/*.yaml"))


@pytest.fixture
def file(tmp_path):
    """Writes a configuration; returns its path."""

    def write(text: str):
        path = tmp_path / "experiment.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


# The order: file, variant, settings

LAYERED = """
variant: at
seed: 5
dataset: {name: digits, limit: 100}
methods:
  at: {epochs: 7, batch_size: 64}
  clafs: {inner_epochs: 3}
"""


def test_the_file_names_the_variant_and_its_settings(file):
    experiment = load(file(LAYERED))
    assert experiment.method == VARIANTS["at"](epochs=7, batch_size=64)
    assert (experiment.seed, experiment.dataset.limit) == (5, 100)
    assert experiment.network == Experiment(method=CLAFS()).network  # what is not said is the default


def test_a_variant_replaces_the_files(file):
    assert load(file(LAYERED), "clafs").method == CLAFS(inner_epochs=3)
    assert load(file(LAYERED), "baseline").method == VARIANTS["baseline"]()
    assert load(file(LAYERED), "clafs").seed == 5


def test_settings_come_last_and_in_order(file):
    settings = ["method.epochs=9", "dataset.limit=null", "method.epochs=11", "seed=6"]
    experiment = load(file(LAYERED), "at", settings)
    assert experiment.method == VARIANTS["at"](epochs=11, batch_size=64)
    assert (experiment.seed, experiment.dataset.limit) == (6, None)


def test_a_resolved_method_gives_way_to_another_variant_only(file):
    resolved = "method: {name: at, epochs: 3}\nmethods: {clafs: {inner_epochs: 2}}\n"
    assert load(file(resolved)).method == load(file(resolved), "at").method == VARIANTS["at"](epochs=3)
    assert load(file(resolved), "clafs").method == CLAFS(inner_epochs=2)


def test_another_variant_beside_this_one(file):
    path = file(LAYERED)
    experiment = load(path, "clafs", ["seed=9"])
    other = config.with_variant(experiment, path, "at")
    assert other == dataclasses.replace(experiment, method=VARIANTS["at"](epochs=7, batch_size=64))


def test_the_default_is_digits():
    assert DEFAULT_CONFIG.name == "digits.yaml"
    experiment = load()
    assert (experiment.dataset.name, experiment.method.name) == ("digits", "clafs")
    assert load(DEFAULT_CONFIG) == experiment


@pytest.mark.parametrize(
    ("setting", "value_of", "expected"),
    [
        ("seed=3", lambda e: e.seed, 3),
        ("jit=true", lambda e: e.jit, True),
        ("method.temperature=0.1", lambda e: e.method.temperature, 0.1),
        ("method.optimizer.learning_rate=1e-3", lambda e: e.method.optimizer.learning_rate, 0.001),
        ("method.attack.epsilon=4/255", lambda e: e.method.attack.epsilon, 4 / 255),
        ("method.augmentation=crop_flip", lambda e: e.method.augmentation, CropFlip()),
        ("method.augmentation={name: crop_flip, padding: 2}", lambda e: e.method.augmentation, CropFlip(padding=2)),
        ("method.optimizer={name: sgd}", lambda e: e.method.optimizer, SGD()),
        ("evaluation.attacks=[{name: fgsm}]", lambda e: e.evaluation.attacks, (FGSM(),)),
        ("dataset.folder=a=b", lambda e: e.dataset.folder, "a=b"),
        (" seed =4", lambda e: e.seed, 4),
        ("compare=[]", lambda e: e.compare, ()),
    ],
)
def test_forms_of_a_setting(setting, value_of, expected):
    assert value_of(load(None, "clafs", [setting])) == expected


def test_a_setting_reaches_into_a_short_form(file):
    path = file("variant: at\nmethods: {at: {augmentation: crop_flip}}\n")
    assert load(path, None, ["method.augmentation.padding=2"]).method.augmentation == CropFlip(padding=2)


def test_a_setting_reaches_into_a_default(file):
    """The method's own attack, except its protocol; another attack starts from its own defaults."""
    path = file("variant: at\n")
    default = load(path).method.attack
    changed = load(path, None, ["method.attack.protocol=claf-repo"]).method.attack
    assert changed == dataclasses.replace(default, protocol="claf-repo")
    settings = ["method.attack.name=fgsm", "method.attack.epsilon=4/255"]
    assert load(path, None, settings).method.attack == FGSM(epsilon=4 / 255)


def test_a_setting_reaches_into_a_loss(file):
    path = file("variant: at_scl\n")
    default = load(path).method.contrast
    changed = load(path, None, ["method.contrast.temperature=0.2"]).method.contrast
    assert changed == dataclasses.replace(default, temperature=0.2)
    settings = ["method.contrast.term=margin_contrastive", "method.contrast.weight=2"]
    assert load(path, None, settings).method.contrast == MarginContrastive(weight=2)


# Files that extend others, and scales


@pytest.fixture
def files(tmp_path):
    """Writes configurations that may name one another; returns their folder."""

    def write(**texts: str):
        for name, text in texts.items():
            (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
        return tmp_path

    return write


BASE = """
variant: at
seed: 5
methods:
  at: {epochs: 7, attack: {name: pgd, epsilon: 4/255, num_steps: 3}}
"""


def test_a_file_says_what_differs_from_another(files):
    row = "extends: base.yaml\nseed: 6\nmethods:\n  at: {batch_size: 64, attack: {name: pgd, num_steps: 9}}\n"
    experiment = load(files(base=BASE, row=row) / "row.yaml")
    attack = PGD(epsilon=4 / 255, num_steps=9)  # the radius is the base's
    assert experiment.seed == 6 and experiment.method == VARIANTS["at"](epochs=7, batch_size=64, attack=attack)


def test_a_value_of_another_name_takes_nothing_from_the_base(files):
    row = "extends: base.yaml\nmethods:\n  at: {attack: {name: fgsm}}\n"
    assert load(files(base=BASE, row=row) / "row.yaml").method.attack == FGSM()


def test_null_takes_the_recipes_own_settings(files):
    row = "extends: base.yaml\nmethods: {at: null}\n"
    assert load(files(base=BASE, row=row) / "row.yaml").method == VARIANTS["at"]()


SCALED = """
extends: base.yaml
seed: 8
scales:
  full: {network: {encoder: resnet18}}
  cpu: {extends: small.yaml, seed: 9}
"""


def test_scales_change_the_file_and_what_extends_it(files):
    small = "dataset: {limit: 50}\nmethods: {at: {epochs: 1}}\nseed: 7\n"
    folder = files(base=BASE, small=small, scaled=SCALED, row="extends: scaled.yaml\nmethods: {at: {batch_size: 2}}\n")
    full, cpu = (load(folder / "row.yaml", scale=scale) for scale in ("full", "cpu"))
    assert load(folder / "row.yaml") == full  # the first scale
    assert (full.network.encoder, full.seed, full.method.epochs) == ("resnet18", 8, 7)
    assert (cpu.dataset.limit, cpu.seed, cpu.method.epochs) == (50, 9, 1)
    assert full.method.batch_size == cpu.method.batch_size == 2
    assert config.with_variant(cpu, folder / "row.yaml", "at", "cpu") == cpu


@pytest.mark.parametrize(
    ("scale", "said"),
    [("cup", "has no scale 'cup'; did you mean 'cpu'?; it has full, cpu"), ("zzz", "has no scale 'zzz'; it has full")],
)
def test_an_unknown_scale(files, scale, said):
    assert said in refusal(files(base=BASE, scaled=SCALED) / "scaled.yaml", None, (), scale)


def test_a_file_without_scales():
    assert "digits.yaml has no scale 'cpu'; it has no scales; leave out --scale" in refusal(None, None, (), "cpu")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("extends: own.yaml\n", "extends 8 files and comes to"),
        ("extends: nowhere.yaml\n", "no configuration file"),
        ("extends: [a, b]\n", "extends must be the name of a file beside it, not ['a', 'b']"),
        ("variant: at\nscales: [cpu]\n", "scales must map scales to settings, not ['cpu']"),
        ("variant: at\nscales: {cpu: 3}\n", "scales must map scales to settings"),
    ],
)
def test_a_wrong_base_or_scale_is_named(files, text, said):
    assert said in refusal(files(own=text) / "own.yaml")


# What a training depends on


@pytest.mark.parametrize(
    "setting",
    ["seed=3", "dataset.data_dir=here", "evaluation.limit=5", "evaluation.attacks=[{name: fgsm}]", "jit=true",
     "compare=[]", "evaluation.batch_size=7"],
)  # fmt: skip
def test_what_changes_no_training(setting):
    assert config.training_of(load(None, "at", [setting])) == config.training_of(load(None, "at"))


@pytest.mark.parametrize(
    "setting",
    ["method.epochs=3", "dataset.limit=5", "network.encoder=strided_cnn", "precision=mixed_float16",
     "dataset.split_seed=1", "evaluation.validation_limit=3"],
)  # fmt: skip
def test_what_changes_a_training(setting):
    assert config.training_of(load(None, "at", [setting])) != config.training_of(load(None, "at"))


def test_without_held_out_images_nothing_is_chosen_by_them():
    held_out = ["dataset.validation_fraction=0"]
    changed = [*held_out, "evaluation.validation_limit=3"]
    assert config.training_of(load(None, "at", changed)) == config.training_of(load(None, "at", held_out))


# Refusals


def test_early_stopping_needs_validation_images():
    said = refusal(None, "at", ["evaluation.patience=3", "dataset.validation_fraction=0"])
    assert "evaluation.patience 3 needs validation images" in said and "set dataset.validation_fraction" in said


def refusal(*arguments) -> str:
    with pytest.raises(InvalidInputError) as refused:
        load(*arguments)
    message = str(refused.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("sede=1", ["digits.yaml: sede: no such field (got 1)", "did you mean 'seed'?"]),
        ("method.temprature=0.1", ["method.clafs.temprature: no such field (got 0.1)", "did you mean 'temperature'?"]),
        ("method.attack.num_stpes=3", ["attack.pgd.num_stpes: no such field", "did you mean 'num_steps'?"]),
        ("method.augmentation.flipp=no", ["augmentation.simclr.flipp: no such field", "did you mean 'flip'?"]),
        ("dataset.limmit=3", ["dataset.limmit: no such field", "did you mean 'limit'?"]),
        ("evaluation.attacks=[{name: bim}, {name: pgd, norn: l2}]", ["attacks.1.pgd.norn", "did you mean 'norm'?"]),
        ("evaluation.validation_attack={name: fgsm, epsilonn: 0}", ["fgsm.epsilonn", "did you mean 'epsilon'?"]),
        ("colour=red", ["colour: no such field (got 'red')", "`python -m keras_rcl show` prints the fields"]),
        ("method.attack.zzz=1", ["zzz: no such field (got 1)", "`python -m keras_rcl show` prints the fields"]),
        ("method.attack.epsilon=8", ["epsilon 8 is larger than the whole pixel range", "did you mean 8/255?"]),
        ("method.attack.epsilon=eight", ["'eight' is not a distance; write it as 8/255"]),
        ("method.attack.name=pdg", ["method.clafs.attack", "'pdg'", "'pgd'"]),
        ("precision=float16", ["precision", "'mixed_float16'", "(got 'float16')"]),
        ("attack_dtype=float16", ["attack_dtype", "'bfloat16'", "(got 'float16')"]),
        ("network.encoder=resnet", ["network.encoder", "'resnet18'", "(got 'resnet')"]),
        ("seed=-1", ["seed", "greater than or equal to 0", "(got -1)"]),
        ("method.inner_start=again", ["inner_start", "'continued' or 'reinitialized'", "(got 'again')"]),
        ("method.temperature=.nan", ["method.clafs.temperature", "finite number"]),
        ("compare=[att]", ["unknown variant 'att'", "did you mean 'at'?"]),
        ("method=at", ["method 'at' is not a mapping", "--variant"]),
        ("seed", ["--set 'seed' is not key=value, such as"]),
        ("=3", ["--set '=3' is not key=value, such as"]),
        ("method..epochs=3", ["--set 'method..epochs=3' is not key=value"]),
        ("seed=[", ["--set 'seed=['", "'[' is not a YAML value"]),
        ("seed=!!float ''", ["--set", "is not a YAML value"]),
        ("dataset.limit=2001-99-99", ["'2001-99-99' is not a YAML value"]),
        ("evaluation.attacks.0.epsilon=0", ["'attacks' has no fields"]),
        ("methods.clafs.temperature=1", ["--set", "'methods' is a key of files", "hint: method.<field>=<value>"]),
        ("variant=at", ["'variant' is a key of files", "--variant"]),
    ],
)
def test_a_wrong_setting_is_named_with_a_hint(setting, said):
    message = refusal(None, "clafs", [setting])
    assert all(part in message for part in said), message


def test_attacks_have_one_precision():
    both = refusal(None, "at", ["precision=mixed_bfloat16", "attack_dtype=bfloat16"])
    assert "attacks are computed in precision mixed_bfloat16 too; leave out attack_dtype" in both


def test_all_that_is_wrong_is_said_at_once(file):
    message = refusal(file("variant: at\nseed: -1\nprecision: half\nsede: 2\n"))
    assert all(part in message for part in ("seed: ", "(got -1)", "(got 'half')", "sede: no such field"))


@pytest.mark.parametrize(("name", "meant"), [("clasf", "; did you mean 'clafs'?"), ("zzz", "")])
def test_an_unknown_variant(name, meant):
    assert refusal(None, name) == f"unknown variant {name!r}{meant}; see `python -m keras_rcl variants`"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "is not YAML: "),
        ("seed: !!bool x\n", "is not YAML: a value does not fit its tag"),
        ("network: !!map [1]\n", "is not YAML: a value does not fit its tag"),
        ("- a\n- b\n", "does not hold a mapping of settings; see configs/digits.yaml"),
        ("", "does not hold a mapping of settings"),
        ("seed: 1\n", f"names no variant; give --variant, one of {', '.join(VARIANTS)}"),
        ("varaint: at\n", "names no variant; varaint: no such field; did you mean 'variant'?"),
        ("variant: at\nserach: {}\n", "serach: no such field; did you mean 'search'?"),
        ("variant: at\nextend: digits.yaml\n", "extend: no such field (got 'digits.yaml'); did you mean 'extends'?"),
        ("variant: at\nscale: {cpu: {}}\n", "scale: no such field; did you mean 'scales'?"),
        ("variant: [at]\n", "unknown variant ['at']"),
        ("variant: at\nmethods: {att: {}}\n", "unknown variant 'att'; did you mean 'at'?"),
        ("variant: at\nmethods: {at: 3}\n", "methods must map variants to their settings, not {'at': 3}"),
        ("variant: at\nmethods: [at]\n", "methods must map variants to their settings, not ['at']"),
        ("method: at\n", "method 'at' is not a mapping; choose it by --variant"),
        ("variant: at\nmethod:\n", "method None is not a mapping"),
        ("variant: at\n1: 2\n", "1: Keys should be strings"),
        ("variant: at\ndataset:\n", "dataset: "),
    ],
)
def test_a_wrong_file_is_named_with_a_hint(file, text, said):
    assert said in refusal(file(text))


def test_files_that_cannot_be_read(tmp_path):
    assert re.search(
        "no configuration file '.*nope.yaml'; configs/ holds .*digits.yaml", refusal(tmp_path / "nope.yaml")
    )
    assert "cannot read the configuration" in refusal(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    assert "cannot read the configuration" in refusal(tmp_path / "latin.yaml")


# Deprecated keys, packaged files


def test_a_deprecated_key_of_a_file_is_noted_once(file, capsys):
    text = "variant: at\ncraft_dtype: bfloat16\nscales: {full: {}, cpu: {craft_dtype: float32}}\n"
    path = file(text)
    assert load(path).attack_dtype == "bfloat16" and load(path, scale="cpu").attack_dtype == "float32"
    assert capsys.readouterr().err == f"note: {path}: craft_dtype is deprecated; use attack_dtype\n"


def test_a_deprecated_key_of_a_setting_is_noted(file, capsys):
    config._note_deprecated.cache_clear()
    assert load(file("variant: at\n"), settings=["craft_dtype=bfloat16"]).attack_dtype == "bfloat16"
    assert capsys.readouterr().err == "note: --set: craft_dtype is deprecated; use attack_dtype\n"


def test_a_record_with_a_deprecated_key_is_read_silently(capsys):
    stored = to_dict(Experiment(method=CLAFS(), attack_dtype="bfloat16"))
    stored["craft_dtype"] = stored.pop("attack_dtype")
    assert config.parse(stored, "").attack_dtype == "bfloat16" and "craft_dtype" in stored
    assert capsys.readouterr().err == ""


def test_packaged_files_are_found_outside_a_checkout(tmp_path, monkeypatch):
    here, row = load("configs/digits.yaml", "at"), load("configs/papers/claf/at.yaml", scale="cpu")
    monkeypatch.chdir(tmp_path)
    assert load("configs/digits.yaml", "at") == here and load("configs/papers/claf/at.yaml", scale="cpu") == row
    assert "no configuration file 'configs/digit.yaml'" in refusal("configs/digit.yaml")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/digits.yaml").write_text("variant: at\nseed: 7\n", encoding="utf-8")
    assert load("configs/digits.yaml").seed == 7


def test_configs_of_the_checkout_are_those_of_the_package():
    checkout = Path(__file__).parent.parent / "configs"
    assert len(SHIPPED) > 20
    for packaged in SHIPPED:
        assert packaged.samefile(checkout / packaged.relative_to(CONFIGS))
    assert sorted(checkout.rglob("*.yaml")) == [checkout / path.relative_to(CONFIGS) for path in SHIPPED]


# There and back


@pytest.mark.parametrize("variant", VARIANTS)
def test_round_trip_of_every_variant(variant, file):
    experiment = load(None, variant, ["seed=3", "precision=mixed_float16"])
    path = file(to_yaml(experiment))
    assert load(path) == load(path, variant) == experiment
    assert config.parse(to_dict(experiment), "here") == experiment


@settings(max_examples=50)
@given(
    temperature=st.floats(1e-6, 1e6),
    epsilon=st.one_of(st.integers(0, 255).map(lambda n: n / 255), st.floats(0, 1)),
    step_size=st.none() | st.floats(1e-6, 1),
    optimizer=st.sampled_from([Adam(learning_rate=1e-3), SGD(weight_decay=5e-4, schedule="cosine")]),
    policy=st.sampled_from(
        [CropFlip(padding=1), SimCLR(hue=0.3), LayerAugmentation(layer="RandAugment", arguments={"x": [1]})]
    ),
    seed=st.integers(0, 2**31),
)
def test_round_trip_of_any_experiment(temperature, epsilon, step_size, optimizer, policy, seed):
    attack = PGD(epsilon=epsilon, step_size=step_size)
    method = CLAFS(temperature=temperature, attack=attack, optimizer=optimizer, augmentation=policy)
    experiment = Experiment(method=method, seed=seed)
    assert config.parse(yaml.safe_load(to_yaml(experiment)), "here") == experiment


def test_an_experiment_is_a_frozen_hashable_value():
    experiment, again = load(), load()
    assert experiment == again and hash(experiment) == hash(again)
    assert hash(experiment) != hash(load(None, None, ["seed=1"]))
    with pytest.raises(dataclasses.FrozenInstanceError):
        experiment.seed = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        experiment.method.attack.epsilon = 8


# What ships


def test_configurations_ship():
    assert DEFAULT_CONFIG in SHIPPED and len(SHIPPED) >= 2


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_configuration_resolves_for_every_variant_it_lists(path, file):
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    default = raw["variant"] if "extends" not in raw else load(path).method.name
    listed = {default, *raw.get("methods", {}), *raw.get("compare", ())}
    for variant in listed:
        experiment = load(path, variant)
        assert experiment.method.name == variant and experiment.method.phases()
        for field in raw.get("methods", {}).get(variant) or {}:
            assert field in {known.name for known in dataclasses.fields(experiment.method)}
        assert load(file(to_yaml(experiment))) == experiment


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_configuration_says_how_it_is_run(path):
    header = re.match(r"(#.*\n)+", path.read_text(encoding="utf-8"))
    assert header, "it must begin with a comment"
    (command,) = re.findall(r"^# Command: (.*)$", header[0], re.MULTILINE)
    words = shlex.split(command)
    assert words[:3] == ["python", "cli.py", "fit"]
    chosen = words[words.index("--config") + 1] if "--config" in words else "configs/digits.yaml"
    assert (CONFIGS.parents[1] / chosen).samefile(path)
    if "--variant" in words:
        load(path, words[words.index("--variant") + 1])
