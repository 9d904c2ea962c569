"""What users and installed packages add: attacks, methods, losses and encoders by name."""

import importlib
import sys
from typing import Literal

import keras
import numpy as np
import pytest
import tensorflow as tf
from click.shell_completion import ShellComplete
from click.testing import CliRunner

import keras_rcl
from keras_rcl import InvalidInputError, config
from keras_rcl.cli.app import cli
from keras_rcl.evaluation.robustness import Evaluator
from keras_rcl.methods import AT, Baseline
from keras_rcl.training.loss_terms import Batch, evaluate_terms, outputs_read
from keras_rcl.vocabulary import registry
from keras_rcl.vocabulary.attacks import parse_attack, to_cli
from keras_rcl.vocabulary.phase import Clean, CrossEntropy, Phase

PLUGIN = '''
from typing import Literal

import keras_rcl
from keras_rcl.vocabulary.threat import Pixels


@keras_rcl.spec
class Darken(keras_rcl.AttackBase):
    """Every pixel darker by epsilon."""

    name: Literal["darken"] = "darken"
    norm: Literal["linf"] = "linf"
    epsilon: Pixels = 8 / 255
    num_steps: int = 1

    label = "Darken"
    num_passes = 0, 0


def darken(logits_fn, x, labels, attack, round):
    return x - 2 * attack.num_steps * attack.epsilon


def wide(image_shape):
    import keras

    return keras.Sequential([keras.Input(image_shape), keras.layers.Flatten(), keras.layers.Dense(7)])


@keras_rcl.spec
class Short(keras_rcl.Baseline):
    """A baseline of two epochs."""

    name: Literal["short"] = "short"
    epochs: int = 2


def register():
    keras_rcl.register_attack(Darken, darken)
    keras_rcl.register_encoder("wide", wide)
    keras_rcl.register_method(Short)
'''


@pytest.fixture
def tables(monkeypatch):
    """Tables of their own, and installed packages that are looked for again."""
    monkeypatch.setattr(registry, "_added", {kind: {} for kind in registry._added})
    registry.load_plugins.cache_clear()
    yield
    registry.load_plugins.cache_clear()


@pytest.fixture
def plugin(tables, tmp_path, monkeypatch):
    """An installed package with an entry point."""
    (tmp_path / "rcl_darken.py").write_text(PLUGIN)
    info = tmp_path / "rcl_darken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rcl-darken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[keras_rcl.plugins]\ndarken = rcl_darken:register\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield info
    sys.modules.pop("rcl_darken", None)


def test_an_attack_of_a_plugin_is_run_by_its_name(plugin, capsys):
    assert parse_attack("pgd-3").num_steps == 3 and "rcl_darken" not in sys.modules
    attack = parse_attack("darken-2:epsilon=16/255")
    assert (attack.num_steps, attack.epsilon, attack.norm) == (2, 16 / 255, "linf")
    assert parse_attack(to_cli(attack)) == attack
    assert attack.with_epsilon(1 / 255).epsilon == 1 / 255

    def logits_fn(images):  # class 1 where the pixel is bright
        pixel = tf.reshape(images, [-1, 1])
        return tf.concat([0.5 - pixel, pixel - 0.5], axis=1)

    x = np.float32([0.52, 0.6]).reshape(2, 1, 1, 1)
    found = keras_rcl.craft(attack, logits_fn, x, [1, 1])
    np.testing.assert_allclose(np.ravel(found), np.ravel(x) - 16 / 255, atol=1e-6)  # within the ball
    survival = Evaluator(logits_fn, [attack])(x, np.array([1, 1]))
    assert survival.rows()[0]["attack"] == "Darken linf 16/255" and survival.rows()[0]["robust_accuracy"] == 0.5
    with pytest.raises(InvalidInputError, match=r"unknown attack 'lighten'; choose from .*darken"):
        parse_attack("lighten")
    with pytest.raises(InvalidInputError, match="steps: no such field"):
        parse_attack("darken:steps=3")


def bright(images):
    """Logits: class 1 where the pixel is above 0.5."""
    pixel = tf.reshape(images, [-1, 1])
    return tf.concat([0.5 - pixel, pixel - 0.5], axis=1)


def test_a_registered_attack_is_transferred_refreshed_and_part_of_an_ensemble(plugin):
    x = np.float32([0.48, 0.52, 0.6]).reshape(3, 1, 1, 1)
    transfer = keras_rcl.Transfer(source="other.keras", attack="darken:epsilon=16/255")
    assert transfer.label == "Darken through other.keras" and parse_attack(to_cli(parse_attack("darken"))).label
    experiment = config.load(settings=["evaluation.attacks=[{name: transfer, source: other.keras, attack: darken}]"])
    assert config.parse(config.to_dict(experiment), "again") == experiment
    np.testing.assert_allclose(np.ravel(keras_rcl.craft(transfer, bright, x, [1, 1, 1])), np.ravel(x) - 16 / 255, 1e-6)
    refreshed = config.load(variant="at", settings=["method.attack={name: refreshed, every: 5, attack: darken-2}"])
    assert refreshed.method.attack.label == "Darken every 5 steps" and refreshed.method.attack.attack.num_steps == 2
    kept = keras_rcl.register_attack(attack_class(name="kept", label="Kept", training_only=True), run)
    with pytest.raises(InvalidInputError, match="Kept does not craft examples"):
        keras_rcl.Refreshed(every=5, attack=kept())

    darken = parse_attack("darken:epsilon=16/255")
    ensemble = attack_class(epsilon=16 / 255, members=(darken, keras_rcl.FGSM(epsilon="16/255")))
    keras_rcl.register_attack(ensemble, run)
    survival = Evaluator(bright, [ensemble()])(x, np.array([0, 1, 1]))
    assert survival.survived.tolist() == [[False, False, True]]  # FGSM breaks the first image, Darken the second
    found = np.ravel(keras_rcl.craft(ensemble(), bright, x, [0, 1, 1]))
    np.testing.assert_allclose(found, np.ravel(x) + np.array([16, -16, -16]) / 255, rtol=1e-6)
    with pytest.raises(InvalidInputError, match="Mine cannot be transferred: it does not read the logits of one model"):
        keras_rcl.Transfer(source="other.keras", attack=ensemble())
    with pytest.raises(InvalidInputError, match="^attack: 'fab' is not one of 'fgsm', 'bim', "):
        keras_rcl.Transfer(source="other.keras", attack="fab")


def test_what_a_plugin_adds_is_part_of_configurations_completion_and_lists(plugin):
    experiment = config.load(
        variant="short",
        settings=["evaluation.attacks=[{name: darken, epsilon: 4/255}]", "network.encoder=wide"],
    )
    assert experiment.method.epochs == 2 and experiment.evaluation.attacks[0].epsilon == 4 / 255
    assert config.parse(config.to_dict(experiment), "again") == experiment
    shell = ShellComplete(cli, {}, "keras-rcl", "_KERAS_RCL_COMPLETE")

    def completed(*words):
        return [item.value for item in shell.get_completions([*words[:-1]], words[-1])]

    assert "darken" in completed("attack", "model", "--attack", "d") and completed("fit", "--variant", "sh") == [
        "short"
    ]
    listed = CliRunner().invoke(cli, ["variants"]).stdout
    assert "short: A baseline of two epochs." in listed
    with pytest.raises(InvalidInputError, match="did you mean 'short'"):
        config.load(variant="shorts")
    with pytest.raises(InvalidInputError, match=r"did you mean 'wide'"):
        config.load(settings=["network.encoder=wid"])


def test_a_plugin_that_fails_is_one_line_where_it_is_needed(plugin, tmp_path):
    (tmp_path / "rcl_darken.py").write_text("def register():\n    raise OSError('no disk')\n")
    assert parse_attack("fgsm").name == "fgsm"
    with pytest.raises(InvalidInputError, match=r"plugin darken \(rcl_darken:register\) fails: no disk; hint"):
        parse_attack("darken")
    shell = ShellComplete(cli, {}, "keras-rcl", "_KERAS_RCL_COMPLETE")
    assert "pgd" in [item.value for item in shell.get_completions(["attack", "model", "--attack"], "p")]


def test_a_loss_is_a_term_of_a_phase(tables):
    @keras_rcl.spec
    class Spread:
        term: Literal["spread"] = "spread"
        weight: float = 0.5
        power: int = 2

    def value(term, batch):
        return keras.ops.mean(batch.view("embedding", None) ** term.power)

    keras_rcl.register_loss(Spread, value, output="embedding", contrastive=True)
    phase = Phase(name="p", epochs=1, trains=("encoder",), views=(Clean(),), terms=(CrossEntropy(), {"term": "spread"}))
    assert isinstance(phase.terms[1], Spread) and outputs_read(phase) == ("embedding", "logits")
    batch = Batch(np.array([0, 1]), {"logits": np.zeros((2, 2)), "embedding": np.float32([[1, 2], [3, 4]])}, ("clean",))
    values = evaluate_terms(phase, batch)
    assert float(values["spread"]) == 7.5 and float(values["cross_entropy"]) == pytest.approx(np.log(2))


def test_a_method_of_the_user_is_trained_by_robust_model(tables):
    @keras_rcl.register_method
    @keras_rcl.spec
    class Mine(AT):
        """Mine."""

        name: Literal["mine"] = "mine"

    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
    assert keras_rcl.RobustModel(model, Mine()).method.name == "mine"
    assert config.Experiment(method={"name": "mine", "epochs": 3}).method == Mine(epochs=3)


def attack_class(**changes):
    body = {"__annotations__": {"name": str, "epsilon": float}, "name": "mine", "epsilon": 0.1, "norm": "linf"}
    body |= {"label": "Mine", "num_passes": (0, 0), **changes}
    body = {key: value for key, value in body.items() if value is not None}
    return keras_rcl.spec(type("Mine", (keras_rcl.AttackBase,), body))


def run(*arguments):
    return arguments[1]


REFUSED = {
    "built in": (lambda: keras_rcl.register_attack(attack_class(name="pgd"), run), "attack 'pgd' is built in"),
    "with a dash": (lambda: keras_rcl.register_attack(attack_class(name="my-pgd"), run), "attack 'my-pgd': a name has"),
    "no label": (lambda: keras_rcl.register_attack(attack_class(label=None), run), "Mine has no label; hint"),
    "no function": (lambda: keras_rcl.register_attack(attack_class(), 3), "attack 'mine': int cannot be called"),
    "no attack": (lambda: keras_rcl.register_attack(Baseline, run), "Baseline does not extend keras_rcl.AttackBase"),
    "an instance": (lambda: keras_rcl.register_attack(3, run), "3 does not extend"),
    "no phases": (lambda: keras_rcl.register_method(attack_class()), r"Mine has no phases\(\)"),
    "no spec": (lambda: keras_rcl.register_method(type("M", (), {"phases": run})), "M has no field name, or is not a"),
    "no weight": (lambda: keras_rcl.register_loss(attack_class(), run), "Mine has no field weight"),
    "an encoder of ours": (lambda: keras_rcl.register_encoder("resnet18", run), "encoder 'resnet18' is built in"),
    "no builder": (lambda: keras_rcl.register_encoder("mine", None), "encoder 'mine': NoneType cannot be called"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_registered_is_one_line(name, tables):
    call, message = REFUSED[name]
    with pytest.raises(InvalidInputError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_a_cell_can_be_run_again_and_another_owner_cannot_take_a_name(tables):
    for _ in range(2):
        keras_rcl.register_encoder("mine", attack_class)
    with pytest.raises(InvalidInputError, match="encoder 'mine' is registered by .*attack_class"):
        keras_rcl.register_encoder("mine", run)
