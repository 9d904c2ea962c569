"""The command line, end to end on digits; and its messages about bad input."""

import json
import pickle
import re
import shutil
from pathlib import Path

import click
import keras
import numpy as np
import onnxruntime
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image
from scipy.spatial.distance import pdist
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from keras_rcl.cli.app import CRASHED, OneLineErrors, cli
from keras_rcl.cli.options import epsilons_option
from keras_rcl.config import Experiment
from keras_rcl.data.sources import load
from keras_rcl.evaluation.record import read_record
from keras_rcl.methods import PGDBoth, PGDSupCon
from keras_rcl.model_io.classifier import load_classifier
from keras_rcl.vocabulary.dataset import Dataset
from keras_rcl.vocabulary.threat import PROTOCOLS
from keras_rcl.workflows.fit import shared_phases

SMALL = ["--limit", "120", "--no-compare", "--set", "method.epochs=1"]
UNATTACKED = ["--set", "evaluation.attacks=[]", "--set", "evaluation.validation_attack={name: noise}"]


def run(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def refused(*arguments) -> str:
    """The one error line of a command that rejects its input."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and result.stderr.splitlines()[-1] == lines[0], result.stderr
    assert "Traceback" not in result.output
    return lines[0]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder in which `fit` has run."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = run("fit", "--variant", "at", *SMALL)
        assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def here(work, monkeypatch):
    """That folder as working directory; a test leaves nothing in it."""
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """An empty working directory; a rejected command leaves nothing in it."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert list(tmp_path.iterdir()) == []


def test_fit_leaves_a_run_and_an_export(here):
    run_folder, saved = here / "runs/digits-at", here / "saved_models/digits-at"
    record = json.loads((run_folder / "record.json").read_text())
    assert record["protocol"] == "pixel"
    assert [row["attack"] for row in record["rows"]] == [
        "FGSM linf 16/255",
        "PGD-40 linf 16/255",
        "worst case",
    ]
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["phase"] == "adversarial training" and "validation_robust_accuracy" in lines[-1]
    assert {"embedding_silhouette", "projection_uniformity", "embedding_clean_to_adversarial_distance"} <= {*lines[-1]}
    assert json.loads((run_folder / "environment.json").read_text())["versions"]["tensorflow"]
    assert {path.name for path in (run_folder / "checkpoints").iterdir()} == {
        "1-adversarial-training.weights.h5",
        "best.weights.h5",
        "last.weights.h5",
    }
    sub_runs = {path.parent.name for path in (run_folder / "tensorboard").rglob("*tfevents*")}
    assert sub_runs == {"adversarial-training", "results"}
    contract = json.loads((saved / "model.json").read_text())
    assert contract["threat_model"] == {"norm": "linf", "epsilon": 16 / 255}
    assert contract["class_names"] == [str(digit) for digit in range(10)]
    assert contract["model_hash"] == record["model"]["hash"]
    assert (saved / "saved_model.pb").is_file() and (saved / "model.keras").is_file()


def test_a_record_has_the_geometry_of_the_exported_embedding(here):
    record = json.loads((here / "runs/digits-at/record.json").read_text())
    found = record["geometry"]
    assert found["attack"] == "PGD-10 linf 16/255" and found["images"] == record["images"] <= 256
    test = load(Dataset(name="digits", limit=120, validation_fraction=0.2, test_fraction=0.3)).test
    points = load_classifier(here / "saved_models/digits-at").outputs("embedding")(test.images.astype(np.float32) / 255)
    points = points.numpy().astype(float) / np.linalg.norm(points, axis=1, keepdims=True)
    assert found["embedding"]["uniformity"] == pytest.approx(np.log(np.mean(np.exp(-2 * pdist(points) ** 2))), abs=1e-5)
    assert 0 < found["embedding"]["clean_to_adversarial_distance"] < 2
    board = EventAccumulator(str(here / "runs/digits-at/tensorboard/adversarial-training")).Reload()
    shared = {"loss", "clean_accuracy", "adversarial_accuracy", "learning_rate", "images_per_second"}
    validation = {"validation_clean_accuracy", "validation_robust_accuracy", "projection_alignment"}
    assert shared | validation <= {*board.Tags()["tensors"]}
    board = EventAccumulator(str(here / "runs/digits-at/tensorboard/results")).Reload()
    tags = {"clean_accuracy", "robust_accuracy", "configuration", "results", "geometry of the embeddings"}
    assert tags <= {*board.Tags()["tensors"]}
    shown = make_ndarray(board.Tensors("geometry of the embeddings")[0].tensor_proto).item().decode()
    assert f"| {found['projection']['alignment']:.4g} |" in shown
    worst = min(row["robust_accuracy"] for row in record["rows"])
    assert float(make_ndarray(board.Tensors("robust_accuracy")[0].tensor_proto)) == pytest.approx(worst)


def test_the_resolved_config_is_read_back(here):
    shown = run("show", "--config", here / "runs/digits-at/config.yaml")
    assert shown.exit_code == 0
    resolved = yaml.safe_load((here / "runs/digits-at/config.yaml").read_text())
    assert yaml.safe_load(shown.stdout) == resolved
    assert resolved["method"]["epochs"] == 1 and resolved["dataset"]["limit"] == 120


@pytest.mark.slow
def test_attack_repeats_the_measurements_of_fit(here, tmp_path):
    result = run(
        "attack",
        "saved_models/digits-at",
        *("--attack", "fgsm:epsilon=16/255", "--attack", "pgd-40:epsilon=16/255"),
        *("--output-dir", tmp_path / "again", "--json", "--save-images"),
    )
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    fitted = json.loads((here / "runs/digits-at/record.json").read_text())
    assert record["survival"] == fitted["survival"]
    assert record["model"]["hash"] == fitted["model"]["hash"]
    assert json.loads((tmp_path / "again/record.json").read_text()) == record
    with (
        Image.open(tmp_path / "again/pictures.png") as picture,
        Image.open(tmp_path / "again/accuracy_epsilon_linf.png") as plot,
    ):
        assert min(*picture.size, *plot.size) > 200
    with np.load(tmp_path / "again/adversarial.npz") as saved:
        assert saved["images"].shape == (2, record["images"], 8, 8, 1)
        assert 0 <= saved["images"].min() and saved["images"].max() <= 1
        survived = [["1" if right else "0" for right in row == saved["labels"]] for row in saved["predictions"]]
        assert ["".join(row) for row in survived] == record["survival"]["attacks"]
        assert list(saved["attacks"]) == [row["attack"] for row in record["rows"][:2]]


@pytest.mark.slow
def test_attack_sweeps_epsilons(here, tmp_path):
    result = run(
        *("attack", "saved_models/digits-at", "--attack", "pgd-5", "--epsilon", "0,8/255,1", "--limit", "50"),
        *("--restarts", "2", "--output-dir", tmp_path / "sweep", "--geometry", "--json"),
    )
    record = json.loads(result.stdout)
    assert record["geometry"]["images"] == 50 and record["geometry"]["embedding"]["uniformity"] < 0
    rows = record["rows"]
    assert [row["attack"] for row in rows] == [f"PGD-5x2 linf {epsilon}" for epsilon in ("0", "8/255", "1")]
    robust = [row["robust_accuracy"] for row in rows]
    assert robust[0] == rows[0]["clean_accuracy"] and robust == sorted(robust, reverse=True)
    fgsm = ("--attack", "fgsm", "--limit", "20", "--output-dir", tmp_path / "table")
    table = run("attack", "saved_models/digits-at", *fgsm).stdout
    assert all(word in table for word in ("clean", "adversarial", "ASR", "AFR", "robust"))
    assert "pixel protocol" in table.splitlines()[-2] and "distance" not in table.splitlines()[0]


def attacked(tmp_path, *arguments) -> dict:
    """The record of an attack on 30 digits."""
    base = ["attack", "saved_models/digits-at", "--limit", "30", "--overwrite", "--output-dir", tmp_path / "out"]
    result = run(*base, "--json", *arguments)
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert "geometry" not in record  # it is measured on request
    return record


@pytest.mark.parametrize(
    "given, received",
    [
        ([], "2/255"),
        (["--epsilon", "1/255,4/255"], "1/255,4/255"),
        (["--epsilon", "0.5/255", "--epsilon", "1/255,4/255"], "0.5/255,1/255,4/255"),
    ],
)
def test_epsilon_is_a_list_that_may_be_repeated(given, received):
    """Of two options the last one alone would be measured."""

    @click.command()
    @epsilons_option("", default="2/255")
    def command(epsilons):
        click.echo(epsilons)

    assert CliRunner().invoke(command, given).stdout == received + "\n"


@pytest.mark.slow
def test_corruptions_and_transformations(here, tmp_path):
    """One table by kind and severity, one row for what has no epsilon, and a picture of one image under each."""
    folder = tmp_path / "changed"
    chosen = ("--attack", "corruptions:kind=contrast", "--attack", "spatial:num_rotations=3", "--attack", "fgsm")
    said = run("attack", "saved_models/digits-at", *chosen, "--limit", "30", "--output-dir", folder).stdout.splitlines()
    record = json.loads((folder / "record.json").read_text())
    kinds, spatial, fgsm = record["rows"][:5], record["rows"][5], record["rows"][6]
    assert [row["severity"] for row in kinds] == [1, 2, 3, 4, 5] and len(record["rows"]) == 7
    assert [(row["norm"], row["epsilon"]) for row in (*kinds, spatial)] == [(None, None)] * 6
    shares = [row["adversarial_accuracy"] for row in kinds]
    mean = record["corruptions"]["mean_accuracy"]
    assert record["corruptions"]["kinds"] == {"contrast": mean} and mean == pytest.approx(np.mean(shares))
    assert said[0].split() == ["corruption", *" ".join(f"severity {n}" for n in range(1, 6)).split(), "mean"]
    assert said[2].split() == ["contrast", *(f"{100 * share:.1f}" for share in shares), f"{100 * mean:.1f}"]
    table = [line for line in said if line.startswith(("spatial 3x5x5 ", "FGSM linf 8/255 "))]
    assert len(table) == 2 and not any("None" in line or "corruption contrast" in line for line in said)
    assert spatial["robust_accuracy"] <= fgsm["clean_accuracy"] == spatial["clean_accuracy"]
    assert read_record(folder / "record.json")["attacks"][5].padding == "zeros"
    with Image.open(folder / "corruptions.png") as picture:
        assert min(picture.size) > 100
    alone = run("attack", "saved_models/digits-at", "--attack", "corruptions:kind=fog,severity=3", "--limit", "5")
    assert "clean accuracy" in alone.stdout and "robust" not in alone.stdout


@pytest.mark.slow
def test_attack_under_every_protocol(here, tmp_path):
    attacks = ("--attack", "pgd-5", "--attack", "square:num_queries=5", "--epsilon", "16/255")
    plain = attacked(tmp_path, *attacks)
    base = ["attack", "saved_models/digits-at", "--limit", "30", "--output-dir", tmp_path / "every"]
    said = run(*base, *attacks, "--protocol", "all").stdout.splitlines()
    every = json.loads((tmp_path / "every/record.json").read_text())
    rows = [row for row in every["rows"] if row["attack"] != "worst case"]
    assert [row["protocol"] for row in rows] == [*PROTOCOLS, "pixel"]
    assert every["survival"]["attacks"][0] == plain["survival"]["attacks"][0]
    assert every["survival"]["attacks"][-1] == plain["survival"]["attacks"][1]
    for key in ("robust_accuracy", "largest_distance", "median_distance_fallen", "zero_gradients"):
        assert rows[0][key] == plain["rows"][0][key]
    went = {row["protocol"]: row["largest_distance"] * 255 for row in rows[:5]}
    assert went["pixel"] == pytest.approx(16, abs=1e-3)
    assert went["wang-minus1to1"] == went["cusin-repo"] == pytest.approx(8, abs=1e-3)
    assert went["wang-meanstd"] == pytest.approx(16 * (0.2675 + 0.2565 + 0.2761) / 3, abs=1e-3)
    assert went["claf-repo"] > 100, "its clamp moves black pixels to the mean"
    assert said[0].split()[:3] == ["attack", "protocol", "epsilon"] and "largest distance" in said[0]
    assert [line.split()[2] for line in said[2:7]] == list(PROTOCOLS)
    assert "16.00/255" in said[2] and "8.00/255" in said[4]
    assert "distances in pixels" in said[-2]
    one = attacked(tmp_path, *attacks[:2], *attacks[4:], "--protocol", "wang-meanstd")
    assert one["survival"]["attacks"] == [every["survival"]["attacks"][4]] and one["protocol"] == "wang-meanstd"


@pytest.mark.slow
def test_transfer(here, tmp_path):
    """A transfer attack from the model itself is the white-box attack, in both spellings."""
    other = "saved_models/digits-at/model.keras"
    chosen = ("--epsilon", "0,8/255", "--restarts", "3")
    record = attacked(tmp_path, "--attack", "pgd-5", "--transfer-from", other, *chosen)
    survival = record["survival"]["attacks"]
    assert survival[:2] == survival[2:]
    assert [row["attack"] for row in record["rows"][:4]] == [
        f"PGD-5x3{through} linf {epsilon}" for through in ("", f" through {other}") for epsilon in ("0", "8/255")
    ]
    assert record["sources"] == {other: load_classifier(here / other).model_hash}
    spelt = attacked(tmp_path, "--attack", f"transfer:source={other},attack=pgd-5", *chosen)
    assert spelt["survival"]["attacks"] == survival[2:] and spelt["attacks"] == record["attacks"][2:]


@pytest.mark.slow
def test_an_attack_in_bfloat16(here, tmp_path, monkeypatch):
    """Outcomes are those of the model itself on the adversarial images, and the record states the dtype."""
    arguments = ("--attack", "pgd-5", "--epsilon", "16/255")
    plain = attacked(tmp_path, *arguments)
    monkeypatch.setattr("keras_rcl.runtime.tensorflow._multiplies_bfloat16", lambda: False)
    base = ["attack", "saved_models/digits-at", "--limit", "30", "--save-images", "--output-dir", tmp_path / "rounded"]
    result = run(*base, "--json", *arguments, "--attack-dtype", "bfloat16")
    assert "note: this processor has no matrix units for bfloat16" in result.stderr
    rounded = json.loads(result.stdout)
    assert (plain["attack_dtype"], rounded["attack_dtype"]) == ("float32", "bfloat16")
    with np.load(tmp_path / "rounded/adversarial.npz") as file:
        kept = dict(file)
    logits = load_classifier(Path("saved_models/digits-at")).logits(kept["images"][0])
    np.testing.assert_array_equal(np.argmax(logits, axis=1), kept["predictions"][0])
    assert abs(plain["rows"][0]["robust_accuracy"] - rounded["rows"][0]["robust_accuracy"]) <= 2 / 30


@pytest.mark.slow
def test_attacks_on_the_embedding_and_the_projection(here, tmp_path):
    """The model's own, and through a proxy of another image size; the same in batches of any size."""
    keras.utils.set_random_seed(0)
    proxy = keras.Sequential(
        [keras.Input((12, 12, 3)), keras.layers.Conv2D(4, 3), keras.layers.GlobalAveragePooling2D()]
    )
    proxy.save(tmp_path / "proxy.keras")
    attacks = [f"embedding-5:source={tmp_path / 'proxy.keras'}", "embedding-5", "supcon-5"]
    arguments = [item for attack in attacks for item in ("--attack", attack)]
    record = attacked(tmp_path, *arguments, "--epsilon", "64/255")
    again = attacked(tmp_path, *arguments, "--epsilon", "64/255", "--batch-size", "7")
    assert list(record["sources"]) == [str(tmp_path / "proxy.keras")]
    assert again["survival"] == record["survival"]
    assert all(row["attack_success_rate"] > 0 for row in record["rows"][1:3])
    assert [row["largest_distance"] for row in record["rows"][:3]] == pytest.approx([64 / 255] * 3, abs=1e-6)


@pytest.mark.slow
def test_show_and_train_under_a_protocol(here, tmp_path):
    protocol = ("--set", "method.attack.protocol=claf-repo")
    assert "adversarial (claf-repo)" in run("show", "--variant", "at", *protocol).stdout
    assert "(pixel)" not in run("show", "--variant", "at").stdout
    folders = ("--runs", tmp_path / "runs", "--saved-models", tmp_path / "saved")
    weak = ("--set", "evaluation.validation_attack={name: fgsm}")
    evaluated = (
        "evaluation.attacks=[{name: embedding, num_steps: 2}, {name: supcon, num_steps: 2, protocol: claf-repo}]"
    )
    result = run("fit", "--variant", "at", *SMALL, *weak, *protocol, *folders, "--set", evaluated)
    assert result.exit_code == 0, result.output
    assert "pixel, claf-repo protocol" in result.stdout
    contract = json.loads((tmp_path / "saved/digits-at/model.json").read_text())
    assert contract["threat_model"]["protocol"] == "claf-repo"


@pytest.mark.slow
def test_attack_in_numbered_folders(here):
    for name in ("digits-at", "digits-at-2"):
        assert run("attack", "saved_models/digits-at", "--attack", "noise", "--limit", "5").exit_code == 0
        assert (here / "attacks" / name / "record.json").is_file()


def test_predict_images_of_every_kind(here, tmp_path):
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    (tmp_path / "scans").mkdir()
    Image.fromarray(pixels).save(tmp_path / "scans" / "scan.png")
    np.save(tmp_path / "bytes.npy", pixels[None, :, :, None])
    np.savez(tmp_path / "floats.npz", images=pixels[None, :, :, None].astype(np.float32) / 255)
    result = run(
        "predict",
        "saved_models/digits-at",
        *(tmp_path / name for name in ("scans", "bytes.npy", "floats.npz")),
        "--json",
    )
    assert result.exit_code == 0, result.output
    entries = json.loads(result.stdout)
    assert len(entries) == 3 and len({round(entry["probability"], 5) for entry in entries}) == 1
    assert "probability" in run("predict", "saved_models/digits-at", tmp_path / "scans" / "scan.png").stdout


@pytest.mark.slow
def test_export_a_phase(here, tmp_path):
    result = run(
        *("export", "runs/digits-at", "--checkpoint", "1-adversarial-training", "--saved-models", tmp_path),
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "digits-at-1-adversarial-training/saved_model.pb").is_file()


@pytest.mark.parametrize(
    ("old", "new", "note"),
    [
        (["attack", "x", "--part", "train"], ["attack", "x", "--split", "train"], "--part is deprecated; use --split"),
        (
            ["attack", "x", "--trust"],
            ["attack", "x", "--skip-safety-check"],
            "--trust is deprecated; use --skip-safety",
        ),
        (["verify", "x", "--count=0"], ["verify", "x", "--max-images=0"], "--count is deprecated; use --max-images"),
        (
            ["fit", "--craft-dtype", "float3"],
            ["fit", "--attack-dtype", "float3"],
            "--craft-dtype is deprecated; use --attack-dtype",
        ),
        (["interchange", "x"], ["export-vnnlib", "x"], "the command interchange is deprecated; use export-vnnlib"),
        (
            ["collect", "x"],
            ["read-verifier-results", "x"],
            "the command collect is deprecated; use read-verifier-results",
        ),
    ],
)
def test_an_old_spelling_is_the_new_one_with_a_note(empty, old, new, note):
    said, now = run(*old), run(*new)
    first, *rest = said.stderr.splitlines()
    assert first.startswith(f"note: {note}") and rest == now.stderr.splitlines()
    assert (said.exit_code, said.stdout) == (now.exit_code, now.stdout) == (2, "")


def test_old_spellings_are_not_in_the_help():
    helped = "".join(run(name, "--help").stdout for name in cli.commands) + run("--help").stdout
    assert "--split" in helped and "--max-images" in helped and "export-vnnlib" in helped
    assert not re.search(r"--(part|trust|count|craft-dtype)\b|^  (interchange|collect) ", helped, flags=re.MULTILINE)


@pytest.mark.slow
def test_export_for_a_verifier_and_its_results(here, tmp_path):
    """Read as alpha-beta-CROWN reads it: from the CSV, the ONNX network and the properties alone."""
    folder = tmp_path / "exchange"
    written = run(
        *("export-vnnlib", "saved_models/digits-at", "--epsilon", "1/255,2/255", "--max-images", "3"),
        *("--attack", "pgd-5", "--output-dir", folder, "--timeout", "9", "--batch-size", "10"),
    )
    assert written.exit_code == 0, written.output
    assert f"cd {folder}" in written.stdout and f"read-verifier-results {folder}" in written.stdout
    results, lines = [], [line.split(",") for line in (folder / "instances.csv").read_text().splitlines()]
    for network, written_property, timeout in lines:
        session = onnxruntime.InferenceSession(folder / network, providers=["CPUExecutionProvider"])
        text = (folder / written_property).read_text()
        low, high = (np.float32(re.findall(rf"{sign} X_\d+ ([\d.]+)", text)) for sign in (">=", "<="))
        (label,) = set(re.findall(r"\(>= Y_\d+ Y_(\d+)\)", text))
        (logits,) = session.run(None, {"image": (low + high).reshape(1, 1, 8, 8) / 2})
        assert logits.argmax() == int(label) and timeout == "9"
        results.append([("safe", "unknown", "unsafe-bab")[len(results) % 3], 2.0])
    assert len(results) == 6
    (folder / "results.pkl").write_bytes(pickle.dumps({"results": results}))
    table = run("read-verifier-results", folder, folder).stdout.splitlines()
    assert table[0].split() == "model epsilon images timeout safe safe-incomplete unsafe left out seconds".split()
    for line, epsilon in zip(table[2:], ["1/255", "2/255"] * 2, strict=True):
        assert line.split()[:7] == ["digits-at", epsilon, "3", "1", "1", "0", "1"]
    (found,) = json.loads(run("read-verifier-results", folder, "--json").stdout)
    assert [row["seconds"] for row in found["rows"]] == [6.0, 6.0]
    (folder / "results.pkl").write_bytes(pickle.dumps({"results": results[:5]}))
    assert "5 results of 6 instances" in refused("read-verifier-results", folder)


@pytest.mark.slow
def test_export_vnnlib_leaves_out_misclassified_and_broken_images(here, tmp_path):
    """The images in its list are the first that survive in the record of the same attack."""
    chosen = ("saved_models/digits-at", "--attack", "pgd-5", "--epsilon", "4/255")
    record = attacked(tmp_path, *chosen[1:])
    survived = np.array(list(record["survival"]["attacks"][0])) == "1"
    indices = np.concatenate([np.arange(first, last + 1) for first, last in record["data"]["indices"]])
    result = run("export-vnnlib", *chosen, "--limit", "30", "--max-images", "2", "--output-dir", tmp_path / "exchange")
    assert result.exit_code == 0, result.output
    exported = json.loads((tmp_path / "exchange/instances.json").read_text())
    assert [one["index"] for one in exported["instances"]] == list(indices[survived][:2])
    assert exported["epsilons"] == [{"epsilon": 4 / 255, "left_out": int(np.flatnonzero(survived)[1]) - 1}]
    assert exported["epsilons"][0]["left_out"] and exported["model"]["hash"] == record["model"]["hash"]


@pytest.mark.slow
def test_phases_of_another_run_are_reused(tmp_path, monkeypatch):
    """With another seed, other data or another network, no phase is reused."""
    monkeypatch.chdir(tmp_path)
    small = [*SMALL, *UNATTACKED, "--limit", "40", "--set", "method.baseline_epochs=1"]
    margin = ["fit", "--variant", "margin_scl", *small]
    assert run("fit", "--variant", "refined_scl", *small, "--name", "refined").exit_code == 0
    made = run(*margin, "--name", "margin", "--reuse", "runs")
    assert made.exit_code == 0, made.output
    assert "up to 1/2 baseline  epoch 1/1 as in runs/refined" in made.stderr
    first, other = (Path("runs", name, "metrics.jsonl").read_text().splitlines() for name in ("refined", "margin"))
    assert first[:1] == other[:1] and len(first) == len(other) == 2
    for changed in (["--seed", "1"], ["--limit", "50"], ["--set", "network.projection_dim=3"]):
        line = refused(*margin, *changed, "--reuse", "runs/refined")
        assert line.startswith("error: runs/refined has no first phase of this training") and "--reuse" in line


def test_phases_are_alike_as_far_as_their_specs_and_checkpoints_are(tmp_path):
    both, supcon = Experiment(method=PGDBoth()), Experiment(method=PGDSupCon())
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for done, name in enumerate(("", "1-pre-training", "2-SupCon")):
        (folder / f"{name}.weights.h5").touch()
        assert shared_phases(both, supcon, tmp_path) == done
    assert shared_phases(supcon, both, tmp_path) == 1, "the last phase is always trained"
    longer = Experiment(method=PGDBoth(supcon_epochs=11))
    assert shared_phases(longer, supcon, tmp_path) == 1
    assert shared_phases(Experiment(method=PGDBoth(pretraining_epochs=1)), supcon, tmp_path) == 0


def test_a_name_in_use_is_rejected_or_numbered(here):
    assert "--overwrite" in refused("fit", "--variant", "at", "--name", "digits-at", *SMALL)


class TestBadInput:
    def test_a_misspelt_key(self, empty):
        assert "method.clafs.temprature" in refused("fit", "--set", "method.temprature=0.1")

    @pytest.mark.parametrize("attack", ["autoattack", "apgd", "square", "cw", "transfer:source=x,attack=apgd"])
    def test_an_attack_that_has_no_protocol(self, empty, attack):
        message = refused("attack", "model", "--attack", attack, "--protocol", "claf-repo")
        assert "not under claf-repo" in message and "pgd" in message
        assert "there is no model" in refused("attack", "model", "--attack", attack, "--protocol", "pixel")

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("--attack", "spatial", "--epsilon", "8/255"), "spatial 31x5x5 has no epsilon to set; hint: leave"),
            (("--attack", "pgd", "--attack", "corruptions-6"), "severity: Input should be less than or equal to 5"),
            (("--attack", "corruptions:kind=rain"), "(got 'rain')"),
            (("--attack", "spatial", "--transfer-from", "other"), "'spatial' is not one of"),
            (("--attack", "spatial", "--restarts", "3"), "has no restarts to set"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_what_has_no_ball(self, empty, arguments, said):
        assert said in refused("attack", "model", *arguments)

    def test_training_on_what_has_no_ball(self, empty):
        for setting in ("method.attack={name: spatial}", "evaluation.validation_attack={name: corruptions}"):
            message = refused("fit", "--variant", "at", "--set", setting)
            assert "has no epsilon, and training takes" in message or "validation_attack corruption" in message

    def test_a_missing_source(self, here, tmp_path):
        for attack in ("embedding:source=nowhere", "transfer:source=nowhere"):
            message = refused("attack", "saved_models/digits-at", "--attack", "pgd", "--attack", attack)
            assert "there is no model at nowhere" in message
        settings = ["--set", "evaluation.attacks=[{name: transfer, source: nowhere}]", "--runs", tmp_path / "runs"]
        assert "nowhere" in refused("fit", "--variant", "at", *SMALL, *settings, "--saved-models", tmp_path / "saved")
        assert not (tmp_path / "runs").exists()

    def test_a_source_of_other_classes(self, here, tmp_path):
        keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(3)]).save(
            tmp_path / "three.keras"
        )
        message = refused("attack", "saved_models/digits-at", "--transfer-from", tmp_path / "three.keras")
        assert "has 3 classes, but" in message and "has 10" in message

    def test_what_cannot_be_transferred(self, empty):
        assert "fab" in refused("attack", "model", "--attack", "fab", "--transfer-from", "other")
        assert "source" in refused("attack", "model", "--attack", "transfer")

    def test_a_model_without_an_embedding(self, here, tmp_path):
        inner = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
        keras.Sequential([keras.Input((8, 8, 1)), inner]).save(tmp_path / "nested.keras")
        for attack, hint in (("embedding", "source=MODEL"), ("supcon", "another attack")):
            message = refused("attack", tmp_path / "nested.keras", "--dataset", "digits", "--attack", attack)
            assert "does not return" in message and hint in message

    def test_too_few_images_to_contrast_with(self, here):
        message = refused("attack", "saved_models/digits-at", "--attack", "supcon", "--limit", "5")
        assert "contrasts with 5 training images" in message

    def test_an_attack_of_training(self, here):
        assert "attack the model by pgd and by supcon" in refused(
            "attack", "saved_models/digits-at", "--attack", "joint"
        )

    def test_training_through_another_model(self, empty):
        message = refused("fit", "--variant", "at", "--set", "method.attack={name: embedding, source: proxy}")
        assert "through proxy" in message and "make them once by `craft-dataset`" in message
        message = refused("fit", "--variant", "at", "--set", "evaluation.validation_attack={name: supcon}")
        assert "validation_attack SupCon-10" in message

    def test_an_epsilon_in_bytes(self, empty):
        message = refused("attack", "model", "--attack", "pgd:epsilon=8")
        assert "epsilon 8" in message and "8/255" in message
        assert "8/255" in refused("fit", "--set", "method.attack={name: pgd, epsilon: 8}")

    def test_a_model_that_cannot_be_exported_to_vnnlib(self, here, tmp_path):
        assert "8/255" in refused("export-vnnlib", "saved_models/digits-at", "--epsilon", "1/255,8")
        keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10, "softmax")]).save(
            tmp_path / "soft.keras"
        )
        message = refused("export-vnnlib", tmp_path / "soft.keras", "--dataset", "digits")
        assert "softmax" in message and "no bounds" in message
        shutil.copytree("saved_models/digits-at", tmp_path / "served", ignore=lambda *_: ["model.keras"])
        assert "no model.keras" in refused("export-vnnlib", tmp_path / "served")
        assert "instances.json" in refused("read-verifier-results", tmp_path)
        (tmp_path / "instances.json").write_text('{"instances": []}')
        assert "instances.json" in refused("read-verifier-results", tmp_path)

    def test_workers_that_contradict_other_settings(self, empty, monkeypatch):
        assert refused("fit", "--workers", "2", "--replicas", "2").endswith("--workers 2 starts several; give one")
        monkeypatch.setenv("TF_CONFIG", "{")
        assert "error: TF_CONFIG: Expecting" in refused("fit")
        task = {"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 0}}
        monkeypatch.setenv("TF_CONFIG", json.dumps(task))
        assert refused("attack", "x", "--workers", "3").endswith("TF_CONFIG names 2; leave out --workers")
        assert refused("fit", "--replicas", "2").endswith("TF_CONFIG names workers; leave it out")

    def test_an_unknown_variant(self, empty):
        message = refused("fit", "--variant", "claffs")
        assert "'claffs'" in message and "'clafs'" in message

    def test_an_unknown_command_and_option(self, empty):
        assert "fitt" in refused("fitt")
        assert "--epoch" in refused("fit", "--epoch", "3")

    def test_a_data_set_that_cannot_be_downloaded(self, empty, monkeypatch):
        monkeypatch.setattr("keras_rcl.data.tfds_sets._reachable", lambda builder: False)
        (empty / "data").mkdir()
        message = refused("fit", "--set", "dataset.name=cifar10", "--data-dir", empty / "data")
        assert "cifar10" in message and "--data-dir" in message
        (empty / "data").rmdir()

    def test_a_missing_model(self, empty):
        assert "nowhere" in refused("attack", "nowhere")

    def test_images_in_bytes(self, here, tmp_path):
        np.save(tmp_path / "bytes.npy", np.full((1, 8, 8, 1), 200.0, np.float32))
        message = refused("predict", "saved_models/digits-at", tmp_path / "bytes.npy")
        assert "200" in message and "255" in message

    def test_a_truncated_saved_model(self, here, tmp_path):
        broken = tmp_path / "broken"
        broken.mkdir()
        graph = (here / "saved_models/digits-at/saved_model.pb").read_bytes()
        (broken / "saved_model.pb").write_bytes(graph[: len(graph) // 2])
        assert "broken" in refused("attack", broken)

    def test_a_corrupt_png(self, here, tmp_path):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "scan.png")
        (tmp_path / "scan.png").write_bytes((tmp_path / "scan.png").read_bytes()[:40])
        assert "scan.png" in refused("predict", "saved_models/digits-at", tmp_path / "scan.png")

    def test_an_unwritable_folder(self, here, tmp_path):
        (tmp_path / "file").write_text("")
        target = tmp_path / "file" / "out"
        assert str(tmp_path / "file") in refused("fit", "--variant", "at", *SMALL, "--runs", target)
        assert str(tmp_path / "file") in refused("fit", "--variant", "at", *SMALL, "--saved-models", target)
        assert str(tmp_path / "file") in refused("attack", "saved_models/digits-at", "--output-dir", target)
        assert sorted(path.name for path in (here / "runs").iterdir()) == ["digits-at"]

    def test_a_folder_that_is_not_ours_is_not_overwritten(self, here, tmp_path):
        (tmp_path / "precious").mkdir()
        (tmp_path / "precious" / "thesis.txt").write_text("years of work")
        refused("attack", "saved_models/digits-at", "--output-dir", tmp_path / "precious", "--overwrite")
        assert (tmp_path / "precious" / "thesis.txt").read_text() == "years of work"

    def test_another_data_set_than_the_model_knows(self, here, tmp_path):
        for name in "ab":
            (tmp_path / "pictures" / name).mkdir(parents=True)
            for number in range(10):
                Image.fromarray(np.full((8, 8), number, np.uint8)).save(tmp_path / f"pictures/{name}/{number}.png")
        message = refused("attack", "saved_models/digits-at", "--dataset", "folder", "--folder", tmp_path / "pictures")
        assert "10 classes" in message

    def test_a_missing_checkpoint(self, here):
        assert "'bets'" in refused("export", "runs/digits-at", "--checkpoint", "bets")
        assert "config.yaml" in refused("export", "saved_models")


def test_nothing_is_left_in_the_repository(here):
    assert run("attack", "saved_models/digits-at", "--attack", "noise", "--limit", "5").exit_code == 0
    assert {path.name for path in Path(here).iterdir()} == {"runs", "saved_models", "attacks"}


# report: its output is tested in tests/workflows/test_report.py


def test_report_prints_a_papers_tables(here, tmp_path):
    result = run("report", "--paper", "wang", "--scale", "cpu", "--results", tmp_path, "--output-dir", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "| SCL (fig. 10) | — | 20.4 | — | — | — |" in result.stdout
    assert "python -m keras_rcl fit --config configs/papers/wang/scl.yaml --scale cpu" in result.stdout
    assert (tmp_path / "out/report.html").is_file()
    assert "note: nothing is measured at scale cpu; see --scale and --train" in result.stderr
    assert not Path("results").exists()
    printed = run("report", "--paper", "wang", "--scale", "cpu", "--output-dir", tmp_path / "out", "--json")
    assert "note: there is no folder results/, so no committed records were found; see --results" in printed.stderr
    assert [table["name"] for table in json.loads(printed.stdout)["tables"]] == [
        "Figures 10 to 12",
        "Weights and margins",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no paper is given; give --paper, one of claf, wang, landsman, cusin"),
        (["--paper", "claf", "--results", "nowhere"], "--results nowhere is not a folder; give a folder of records"),
        (["--paper", "claf", "--results", ".", "--scale", "cup"], "has no scale 'cup'; did you mean 'cpu'?"),
        (["--paper", "claf", "--results", ".", "--set", "sede=1"], "sede: no such field"),
    ],
)
def test_a_wrong_report_is_an_error(empty, arguments, said):
    assert said in refused("report", *arguments)


@pytest.mark.parametrize("error", [RuntimeError("a fault"), OSError("without a number"), ZeroDivisionError()])
def test_a_crash_is_no_verdict(error):
    """`audit` exits with 1 if a claim falls and with 2 for bad input; a fault of the program is neither."""

    def fails():
        raise error

    group = OneLineErrors(commands=[click.Command("fails", callback=fails)])
    result = CliRunner().invoke(group, ["fails"])
    assert result.exit_code == CRASHED == 70 and "Traceback" in result.stderr and result.stdout == ""
