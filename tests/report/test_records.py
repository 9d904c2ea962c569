"""Records are found by the experiment that made them, whatever their files and runs are called."""

import itertools
import json
import shlex
from pathlib import Path

import pytest

from keras_rcl import config
from keras_rcl.config import load, to_dict
from keras_rcl.errors import InvalidInputError
from keras_rcl.papers import PAPERS
from keras_rcl.report import records as results
from keras_rcl.report.records import Results, config_path, experiments, missing
from keras_rcl.vocabulary.attacks import FGSM, PGD, AutoAttack, parse_attack
from keras_rcl.vocabulary.paper import Clean, Column, Paper, Robust, Row, Table, Verified

ROOT = Path(__file__).parents[2]
FGSM_8, PGD_8 = Robust(attack=FGSM()), Robust(attack=PGD())
EXPERIMENT = load(None, "at", ["evaluation.attacks=[{name: fgsm}]"])


def row(attack: str, robust: float) -> dict:
    """A row of a record."""
    shares = ("clean_accuracy", "adversarial_accuracy", "attack_success_rate", "attack_failure_rate")
    return {"attack": attack, "norm": "linf", "epsilon": 8 / 255, "robust_accuracy": robust, **dict.fromkeys(shares, 0)}


def evaluation(model_hash: str, attack: str = "fgsm", robust: float = 0.5, clean: float = 0.75, **fields) -> dict:
    """A record of `attack`."""
    images = fields.get("images", 100)
    record = {
        **dict(format=1, command="", protocol="pixel", seed=0, versions={}),
        "model": {"name": model_hash, "hash": model_hash},
        "data": {"name": "digits", "part": "test"},
        "images": images,
        "attacks": [{"name": attack}],
        "clean_accuracy": clean,
        "rows": [row(attack, robust), row("worst case", 0.0)],
        "survival": {"clean": "1" * images, "attacks": ["0" * images]},
        **fields,
    }
    return {**record, "data": {**record["data"], "indices": [[0, images - 1]]}}


def proven(norm: str) -> dict:
    """A row of a record of `verify`."""
    shares = ("clean_accuracy", "attacked_accuracy", "verified_accuracy")
    return {"norm": norm, "epsilon": 2 / 255, "counts": {}, "seconds": 1.0, **dict.fromkeys(shares, 0)}


def training(model_hash: str, *settings: str, **fields) -> dict:
    experiment = load(None, "at", ["evaluation.attacks=[{name: fgsm}]", *settings])
    return {**evaluation(model_hash, **fields), "config": to_dict(experiment)}


@pytest.fixture
def read(tmp_path):
    """Writes records by name and reads them all."""

    def write(**records):
        for name, record in records.items():
            path = tmp_path / f"deep/{name}.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(record), encoding="utf-8")
        return Results(tmp_path)

    return write


def test_a_record_in_a_folder_that_is_being_written_is_not_read(read, tmp_path):
    found = read(**{"whole": training("a"), "../.0123abcd.attack/record": training("b")})
    assert [path.name for path in found.paths] == ["whole.json"]
    work = Results(tmp_path / "deep", (tmp_path,))
    assert [path.name for path in work.paths] == ["whole.json"]


def test_seeds_are_merged_and_other_experiments_are_not(read):
    found = read(
        zero=training("a", clean=0.5),
        one=training("b", "seed=1", "dataset.data_dir=/elsewhere", clean=0.7),
        other=training("c", "method.epochs=3", clean=0.9),
        limited=training("d", "dataset.limit=50", clean=0.9),
    )
    measured = found.measured(EXPERIMENT, Clean())
    assert measured.values == {0: pytest.approx(50), 1: pytest.approx(70)} and measured.images == 100
    assert found.measured(EXPERIMENT, Clean(), seeds=1).values.keys() == {0}
    assert found.measured(load(None, "clafs"), Clean()) is None


def test_an_attack_belongs_to_the_run_of_its_model(read):
    found = read(run=training("a"), pgd=evaluation("a", "pgd", 0.25), other=evaluation("b", "autoattack", 0.1))
    assert found.measured(EXPERIMENT, FGSM_8).values == {0: 50.0}
    assert found.measured(EXPERIMENT, PGD_8).values == {0: 25.0}
    assert found.measured(EXPERIMENT, Robust(attack=AutoAttack())) is None
    assert found.measured(EXPERIMENT, Robust(attack=FGSM(epsilon=4 / 255))) is None


def test_the_most_test_images_count(read):
    found = read(
        run=training("a", robust=0.5),
        more=evaluation("a", "fgsm", 0.25, images=200),
        fewer=evaluation("a", "fgsm", 0.75, images=10),
        train=evaluation("a", "fgsm", 1.0, images=1000, data={"name": "digits", "part": "train"}),
        elsewhere=evaluation("a", "fgsm", 1.0, images=1000, data={"name": "mnist", "part": "test"}),
    )
    measured = found.measured(EXPERIMENT, FGSM_8)
    assert (measured.values, measured.images) == ({0: 25.0}, 200)


def test_of_two_runs_of_one_seed_the_first_is_whole(read):
    """No row mixes two networks."""
    found = read(first=training("a", clean=0.5), second=training("b", clean=0.9), pgd=evaluation("b", "pgd"))
    assert found.measured(EXPERIMENT, Clean()).values == {0: 50.0}
    assert found.measured(EXPERIMENT, PGD_8) is None


def test_a_verification_counts_what_stood_the_attack(read):
    statuses = ["misclassified", "unsafe", "unsafe", "timeout", "safe", "safe", "safe-incomplete"]
    decided = ["", "attack", "branch-and-bound", "", "branch-and-bound", "branch-and-bound", "crown"]
    verified = {
        **{key: value for key, value in evaluation("a", images=7).items() if key not in ("survival", "attacks")},
        "rows": [proven("l2"), proven("linf")],
        "outcomes": [
            {"epsilon": 2 / 255, "statuses": ["safe"] * 7, "decided_by": ["crown"] * 7},
            {"epsilon": 2 / 255, "statuses": statuses, "decided_by": decided},
        ],
    }
    found = read(run=training("a"), verified=verified)
    counts = {"timeout": 1, "safe": 2, "safe-incomplete": 1, "unsafe": 1, "unknown": 0}
    assert found.measured(EXPERIMENT, Verified(epsilon=2 / 255)).values == {0: counts}
    assert found.measured(EXPERIMENT, Verified(epsilon=1 / 255)) is None


def test_a_verification_of_so_many_images_counts_no_others(read):
    outcome = {
        "epsilon": 2 / 255,
        "statuses": ["unsafe", "safe", "misclassified", "timeout", "unknown", "unknown"],
        "decided_by": ["attack", "branch-and-bound", "", "", "", ""],
    }
    verified = {key: value for key, value in evaluation("a", images=6).items() if key not in ("survival", "attacks")}
    verified = {**verified, "count": 2, "rows": [proven("linf")], "outcomes": [outcome]}
    found = read(run=training("a"), verified=verified)
    counts = {"timeout": 1, "safe": 1, "safe-incomplete": 0, "unsafe": 0, "unknown": 0}
    assert found.measured(EXPERIMENT, Verified(epsilon=2 / 255)).values == {0: counts}


def test_what_is_no_record_is_passed_over_and_what_is_broken_is_named(read, tmp_path):
    old = training("a")
    old["config"]["method"]["gone"] = 1
    found = read(old=old, benchmark={"model": "a", "rows": []}, listed=[1], unknown=evaluation("a", "gone"))
    assert found.measured(EXPERIMENT, Clean()) is None
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    with pytest.raises(InvalidInputError, match="broken.json cannot be read as JSON.*fix it"):
        Results(tmp_path).measured(EXPERIMENT, Clean())


# What is missing


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A paper of one row, its configuration, and an empty folder of results."""
    rows = tmp_path / "configs/papers/tiny"
    rows.mkdir(parents=True)
    (rows / "at.yaml").write_text("variant: at\nscales: {full: {}, cpu: {dataset: {limit: 60}}}\n", encoding="utf-8")
    monkeypatch.setattr(results, "CONFIGS", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    limited = Robust(attack=PGD(epsilon=4 / 255), limit=20)
    columns = (
        Column(title="clean", measures=(Clean(), FGSM_8)),
        Column(title="others", measures=(PGD_8, limited, Verified(epsilon=1 / 255), Verified(epsilon=2 / 255))),
    )
    table = Table(name="Table 1", caption="", protocol="", columns=columns, rows=(Row(label="AT", config="at"),))
    return Paper(name="tiny", title="Tiny", reference="", tables=(table,))


def test_the_command_of_a_missing_row_trains_it(tiny, tmp_path):
    found = missing(tiny, "cpu", Results(tmp_path / "results"), 2, ["method.epochs=2"], "python cli.py")
    assert [(one["row"], one["seed"]) for one in found] == [("at", 0), ("at, seed 1", 1)]
    words = shlex.split(found[1]["command"])
    assert words[:3] == ["python", "cli.py", "fit"]
    given = dict(zip(words[3::2], words[4::2], strict=True))
    made = load(given["--config"], None, [given["--set"], f"seed={given['--seed']}"], given["--scale"])
    (wanted,) = experiments(tiny, "cpu", ["method.epochs=2"]).values()
    assert made.seed == 1 and config.training_of(made) == config.training_of(wanted)


def test_the_commands_of_missing_measures_measure_them(tiny, tmp_path):
    record = training("a", "dataset.limit=60")
    record["config"] = to_dict(experiments(tiny, "cpu")["at"])
    (tmp_path / "results").mkdir()
    (tmp_path / "results/at.json").write_text(json.dumps(record), encoding="utf-8")
    found = missing(tiny, "cpu", Results(tmp_path / "results"), None, program="python cli.py")
    commands = [shlex.split(one["command"])[2:] for one in found]
    assert [words[:2] for words in commands] == [["attack", "saved_models/a"]] * 2 + [["verify", "saved_models/a"]]
    assert parse_attack(commands[0][3]) == PGD() and len(commands[0]) == 4
    assert parse_attack(commands[1][3]) == PGD(epsilon=4 / 255) and commands[1][4:] == ["--limit", "20"]
    assert commands[2][2:] == ["--epsilon", "1/255,2/255", "--limit", "60", "--max-images", "20"]  # of all there are


@pytest.mark.parametrize("scale", ["full", "cpu"])
@pytest.mark.parametrize("paper", PAPERS.values(), ids=PAPERS)
def test_fit_measures_all_that_a_row_wants_of_every_test_image(paper, scale):
    """One command makes a row, except attacks that are too expensive for every image, and verification."""
    for row, experiment in experiments(paper, scale).items():
        wanted = {m.attack for m in paper.measures(row) if m.kind == "robust" and m.limit is None}
        assert wanted <= set(experiment.evaluation.attacks), config_path(f"{paper.name}/{row}")


@pytest.mark.parametrize("paper", PAPERS.values(), ids=PAPERS)
def test_rows_are_different_experiments(paper):
    for scale in ("full", "cpu", *{"claf": ("cpu-long", "claf-code"), "cusin": ("cusin-code",)}.get(paper.name, ())):
        made = experiments(paper, scale)
        assert len(set(map(config.training_of, made.values()))) == len(made)


def test_committed_results_stand_in_the_tables():
    """Found by their experiments alone: the first four rows that were measured, and one attacked in another file."""
    found, rows = Results(config.CONFIGS.parents[1] / "results"), experiments(PAPERS["claf"], "cpu")
    assert all(found.runs(rows[row]) for row in ("natural", "at", "trades", "clafs"))
    assert found.measured(rows["clafs"], Robust(attack=AutoAttack(), limit=1000)) is not None


def test_a_committed_run_says_how_it_was_trained():
    found, rows = Results(config.CONFIGS.parents[1] / "results"), experiments(PAPERS["claf"], "cpu")
    record = json.loads((ROOT / "results/papers/claf-at.json").read_text(encoding="utf-8"))
    settings, setup = record["config"], found.setup(rows["at"])
    assert (setup.network, setup.data) == (settings["network"]["encoder"], settings["dataset"]["name"])
    assert (setup.epochs, setup.images) == (settings["method"]["epochs"], settings["dataset"]["limit"])
    assert record["versions"]["keras_rcl"] in setup.versions
    assert found.setup(config.load(None, "at", ["seed=77", "method.epochs=77"])) is None


def of_images(record: dict) -> tuple[str, str]:
    return record["data"]["name"], record["data"]["part"]


def chosen(record: dict, outcomes: list[bool]) -> set[int]:
    """The positions in the data set of the images of a record that have an outcome."""
    positions = itertools.chain.from_iterable(range(first, last + 1) for first, last in record["data"]["indices"])
    return {position for position, has in zip(positions, outcomes, strict=True) if has}


def test_no_committed_attack_breaks_what_is_verified():
    """verified <= truly robust <= attacked: image by image, wherever results/ has both of one network."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / "results").rglob("*.json")]
    attacks = [record for record in found if "survival" in record]
    proofs = [record for record in found if "outcomes" in record]
    compared = 0
    for proof, record in itertools.product(proofs, attacks):
        if (proof["model"]["hash"], *of_images(proof)) != (record["model"]["hash"], *of_images(record)):
            continue
        for outcome, (row, survived) in itertools.product(
            proof["outcomes"], zip(record["rows"], record["survival"]["attacks"], strict=False)
        ):
            if row["norm"] != "linf" or row["largest_distance"] > outcome["epsilon"] + 1e-6:
                continue
            safe = chosen(proof, [status.startswith("safe") for status in outcome["statuses"]])
            broken = chosen(record, [bit == "0" for bit in survived])
            assert not safe & broken, (proof["command"], record["command"], row["attack"])
            compared += bool(safe)
    assert compared
