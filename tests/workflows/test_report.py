"""A report end to end: two rows of a tiny paper on digits, trained, attacked, verified, drawn, and read again."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_rcl.errors import InvalidInputError
from keras_rcl.report import records as results
from keras_rcl.vocabulary.attacks import FGSM, PGD, AutoPGD
from keras_rcl.vocabulary.paper import (
    Bars,
    Clean,
    Column,
    Comparison,
    Embeddings,
    LossCurves,
    Paper,
    Pictures,
    Robust,
    RobustCurves,
    Row,
    StoredExamples,
    Table,
    Verified,
)
from keras_rcl.workflows import attack as attacking
from keras_rcl.workflows import fit as experiment
from keras_rcl.workflows import report as reporting
from keras_rcl.workflows import verify
from keras_rcl.workflows.report import Folders, in_the_plane, report

CONFIG = """
dataset: {name: digits, validation_fraction: 0}
network: {projection_hidden: 8, projection_dim: 4}
evaluation: {attacks: [{name: fgsm, epsilon: 16/255}]}
scales: {cpu: {dataset: {limit: 60}}}
"""
PANELS = (("plain", "baseline"), ("contrastive", "scl"))
TINY = Paper(
    name="tiny",
    title="Tiny",
    reference="Nobody 2020",
    tables=(
        Table(
            name="Table 1",
            caption="accuracy",
            protocol="pixel",
            columns=(
                Column(title="clean", measures=(Clean(),)),
                Column(title="FGSM", measures=(Robust(attack=FGSM(epsilon=16 / 255)),)),
                Column(title="PGD", measures=(Robust(attack=PGD(num_steps=2), limit=20),)),
                Column(title="verified", measures=(Verified(epsilon=1e-5),)),
            ),
            rows=(
                Row(label="Plain", config="baseline", published=(99.0, 1.5, None, None)),
                Row(label="Contrastive", config="scl"),
            ),
            comparisons=(Comparison(row="Contrastive", against="Plain"),),
        ),
    ),
    figures=(
        LossCurves(title="Losses", panels=tuple((*panel, None) for panel in PANELS)),
        RobustCurves(title="FGSM", table="Table 1", rows=("Plain", "Contrastive")),
        Bars(title="Accuracy", table="Table 1"),
        Embeddings(title="Embeddings", panels=PANELS, images=12),
        Pictures(title="FGSM", panels=PANELS[:1], attack=FGSM()),
    ),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder in which the tiny paper was reported with `train`; the report, and its folder."""
    folder = tmp_path_factory.mktemp("report")
    rows = folder / "configs/papers/tiny"
    rows.mkdir(parents=True)
    (rows.parent / "tiny.yaml").write_text(CONFIG, encoding="utf-8")
    for variant in ("baseline", "scl"):
        text = f"extends: ../tiny.yaml\nvariant: {variant}\nmethods:\n  {variant}: {{epochs: 2, batch_size: 30}}\n"
        (rows / f"{variant}.yaml").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(results, "CONFIGS", folder / "configs")
        patch.setattr(reporting, "PAPERS", {"tiny": TINY})
        patch.setattr(verify, "ATTACKS", (AutoPGD(num_steps=5),))
        yield report("tiny", scale="cpu", train=True)


@pytest.mark.slow
def test_all_that_was_missing_is_measured(made):
    printed, _ = made
    assert printed["missing"] == []
    plain, contrastive = printed["tables"][0]["rows"]
    assert plain["published"] == [99.0, 1.5, None, None]
    for row in (plain, contrastive):
        (clean,), (fgsm,), (pgd,), (verified,) = row["measured"]
        assert 0 <= fgsm["mean"] <= clean["mean"] <= 100 and clean["spread"] is None
        assert (clean["images"], pgd["images"], verified["images"]) == (60, 20, 60)
        right = round(clean["mean"] / 100 * 60)
        assert sum(verified["counts"].values()) <= right and verified["counts"]["timeout"] == 0
    (difference,) = printed["tables"][0]["differences"]
    ours = contrastive["measured"][0][0]["mean"] - plain["measured"][0][0]["mean"]
    assert difference["measured"][0][0]["mean"] == pytest.approx(ours)


@pytest.mark.slow
def test_numbers_are_those_of_the_records(made):
    printed, _ = made
    record = json.loads(Path("runs/tiny-cpu-baseline/record.json").read_text(encoding="utf-8"))
    (clean,), (fgsm,), *_ = printed["tables"][0]["rows"][0]["measured"]
    assert (clean["mean"], fgsm["mean"]) == (
        pytest.approx(100 * record["clean_accuracy"]),
        pytest.approx(100 * record["rows"][0]["robust_accuracy"]),
    )
    assert [(line["phase"], line["epoch"]) for line in record["losses"]] == [("train", 1), ("train", 2)]
    assert all(line["loss"] == pytest.approx(line["cross_entropy"], abs=1e-4) for line in record["losses"])


@pytest.mark.slow
def test_the_folder_holds_tables_page_and_figures(made):
    printed, folder = made
    assert json.loads((folder / "report.json").read_text(encoding="utf-8")) == printed
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == len(TINY.figures) == len(list(folder.glob("*.png")))
    assert "not drawn" not in page and "Not measured" not in page
    assert "Made on 20" in page and "trained here" in page
    for path in folder.glob("*.png"):
        with Image.open(path) as picture:
            assert np.asarray(picture.convert("L")).std() > 1, f"{path} is empty"
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert re.search(r"\| Plain \| cpu \| small_cnn[^|]* \| no attack \| 0 \| 2 \| [^|]+ \| digits \|", text)
    assert (
        "| Plain | 99.0 | " in text
        and "![Accuracy. A missing bar means that the number was not measured.](figure-3.png)" in text
    )


@pytest.mark.slow
def test_a_second_report_trains_nothing_and_says_the_same(made, monkeypatch):
    for module, name in ((experiment, "fit"), (attacking, "attack")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("nothing is missing"))
    again, folder = report("tiny", scale="cpu", train=True)
    assert (again, folder) == made


@pytest.mark.slow
def test_rows_are_made_in_processes_of_their_own(made, tmp_path, monkeypatch):
    """Trained as alone, except for the order of sums on fewer threads; a failed row does not stop the others."""
    rows = tuple(dataclasses.replace(row, published=()) for row in TINY.tables[0].rows)
    table = dataclasses.replace(TINY.tables[0], columns=TINY.tables[0].columns[:1], rows=rows)
    monkeypatch.setattr(reporting, "PAPERS", {"tiny": dataclasses.replace(TINY, tables=(table,), figures=())})
    folders = Folders(tmp_path, tmp_path / "runs", tmp_path / "saved_models")
    (tmp_path / "saved_models/tiny-cpu-scl").mkdir(parents=True)
    with pytest.raises(
        InvalidInputError, match="1 of 2 rows failed: tiny 2/2: scl, seed 0: .*tiny-cpu-scl is of another exp"
    ):
        report("tiny", scale="cpu", train=True, processes=2, folders=folders, output_dir=tmp_path / "report")
    printed = json.loads((tmp_path / "runs/tiny-cpu-baseline/record.json").read_text(encoding="utf-8"))
    alone = json.loads(Path("runs/tiny-cpu-baseline/record.json").read_text(encoding="utf-8"))
    assert [line["loss"] for line in printed["losses"]] == pytest.approx(
        [line["loss"] for line in alone["losses"]], rel=1e-3
    )
    assert printed["attacks"] == alone["attacks"] and printed["config"] == alone["config"]


@pytest.mark.slow
def test_examples_that_rows_train_on_are_made_first(made, monkeypatch):
    """Of a proxy that is there already: it is not trained again, and the row trains on what is stored."""
    trained = "variant: adversarial\nmethods:\n  adversarial: {epochs: 1, batch_size: 30, attack: %s}\n"
    text = trained % "{name: stored, folder: stored/examples, epsilon: 4/255}"
    Path("configs/papers/tiny/adversarial.yaml").write_text(f"extends: ../tiny.yaml\n{text}", encoding="utf-8")
    attack = FGSM(epsilon=4 / 255)
    row = Row(label="Stored", config="adversarial")
    table = dataclasses.replace(TINY.tables[0], columns=TINY.tables[0].columns[:1], rows=(row,), comparisons=())
    stored = StoredExamples(folder="stored/examples", proxy="tiny/baseline", attack=attack)
    paper = dataclasses.replace(TINY, tables=(table,), figures=(), stored=(stored,))
    monkeypatch.setattr(reporting, "PAPERS", {"tiny": paper})
    runs = {path.name for path in Path("runs").iterdir()}
    printed, _ = report("tiny", scale="cpu", train=True, output_dir=Path("reports/stored"))
    assert printed["missing"] == [] and {path.name for path in Path("runs").iterdir()} == runs | {
        "tiny-cpu-adversarial"
    }
    examples = json.loads(Path("stored/examples/examples.json").read_text(encoding="utf-8"))
    proxy = json.loads(Path("saved_models/tiny-cpu-baseline/model.json").read_text(encoding="utf-8"))
    assert (examples["examples"], examples["model"]["hash"]) == (60, proxy["model_hash"])
    assert examples["attack"]["name"] == "fgsm" and examples["data"]["part"] == "train"


@pytest.mark.slow
def test_without_models_what_needs_them_is_said(made, tmp_path):
    printed, folder = report("tiny", scale="cpu", folders=Folders(saved_models=tmp_path), output_dir=tmp_path / "here")
    assert printed == made[0]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Embeddings: plain, contrastive not drawn: missing its model in saved_models/, or its data." in page
    assert page.count("data:image/png;base64,") == 3


@pytest.mark.slow
def test_without_records_the_paper_is_left(made, tmp_path):
    folders = Folders(results=tmp_path, runs=tmp_path)
    printed, folder = report("tiny", scale="cpu", seeds=2, folders=folders, output_dir=tmp_path / "here")
    assert [missing["row"] for missing in printed["missing"]] == ["baseline", "baseline, seed 1", "scl", "scl, seed 1"]
    assert "| Plain | 99.0 | — | 1.5 | — | — | — |  |" in (folder / "report.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_folder_of_something_else_is_left_alone(made, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("Madam", encoding="utf-8")
    with pytest.raises(InvalidInputError, match="has no report.json, so it is not ours to overwrite"):
        report("tiny", scale="cpu", output_dir=tmp_path / "mine")
    assert (tmp_path / "mine/letter.txt").is_file()


@pytest.mark.parametrize(
    ("limit", "left", "said"),
    [
        (7, "runs/tiny-cpu-limit7-baseline/config.yaml", "is of another experiment; move it away"),
        (8, "saved_models/tiny-cpu-limit8-baseline/model.keras", "is of another experiment; move it away"),
        (9, "runs/tiny-cpu-limit9-baseline/training/question.json", "was begun by another experiment or version"),
    ],
)
@pytest.mark.slow
def test_runs_of_other_experiments_are_left_alone(made, limit, left, said):
    path = Path(left)
    path.parent.mkdir(parents=True)
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(InvalidInputError, match=said):
        report("tiny", scale="cpu", train=True, limit=limit)
    assert path.read_text(encoding="utf-8") == "{}"


def test_clusters_stay_apart_in_the_plane():
    rng = np.random.default_rng(0)
    embedding = np.concatenate([rng.normal(centre, 0.1, (20, 8)) for centre in (0, 10)])
    points, method = in_the_plane(embedding)
    assert points.shape == (40, 2) and method in ("UMAP", "t-SNE")
    one, two = points[:20], points[20:]
    assert np.linalg.norm(one.mean(0) - two.mean(0)) > one.std() + two.std()
