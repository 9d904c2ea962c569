"""`tune` on the command line: what it measures, what it writes, and that it resumes after a kill."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from keras_rcl import config
from keras_rcl.cli.app import cli
from keras_rcl.data import sources
from keras_rcl.vocabulary.dataset import Dataset
from keras_rcl.workflows import tune as tuning
from keras_rcl.workflows.tune import objective_value
from tests import forked

CLI = Path(__file__).resolve().parents[2] / "cli.py"
SMALL = (
    "tune",
    *("--variant", "baseline", "--limit", "60", "--set", "method.epochs=1", "--set", "method.batch_size=16"),
    *("--set", "evaluation.validation_attack={name: fgsm, epsilon: 4/255}"),
)
RATES = "method.optimizer.learning_rate=log(0.001, 0.01)"


def run(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def study_of(folder) -> dict:
    return json.loads((folder / "study.json").read_text())


def without_times(study: dict) -> list[dict]:
    return [{key: value for key, value in trial.items() if key != "seconds"} for trial in study["trials"]]


@pytest.mark.slow
def test_a_stopped_search_resumes_to_the_same_table(tmp_path, monkeypatch):
    """After a kill, Ctrl-C, and a full disk, which is not a failure of the trial."""
    monkeypatch.chdir(tmp_path)
    arguments = (*SMALL, "--trials", "2", "--search", RATES, "--search", "method.batch_size=choice(8, 16)")
    measured = tuning._measured

    def copied(*given):
        """At the end of the second training the folder is copied, as if the process had been killed there."""
        if Path("whole/trials/0001").exists():
            shutil.copytree("whole", "stopped")
        return measured(*given)

    with monkeypatch.context() as patch:
        patch.setattr(tuning, "_measured", copied)
        assert run(*arguments, "--output-dir", "whole").exit_code == 0
    whole = study_of(tmp_path / "whole")
    first, second = whole["trials"]
    assert first["settings"] == {"method.optimizer.learning_rate": "0.001", "method.batch_size": "16"}
    assert 0.001 <= float(second["settings"]["method.optimizer.learning_rate"]) <= 0.01
    count = len(sources.load(_dataset()).validation.labels)
    for trial in (first, second):
        assert trial["state"] == "done" and trial["images"] == count
        assert trial["objective"] == trial["robust_accuracy"] <= trial["clean_accuracy"]
        assert (trial["clean_accuracy"] * count) == pytest.approx(round(trial["clean_accuracy"] * count))
    best = yaml.safe_load((tmp_path / "whole/best.yaml").read_text())
    settings = whole["trials"][whole["best"]]["settings"]
    assert whole["best"] == int(second["objective"] > first["objective"])
    assert best["method"]["optimizer"]["learning_rate"] == float(settings["method.optimizer.learning_rate"])
    shown = run("show", "--config", "whole/best.yaml")
    assert shown.exit_code == 0 and yaml.safe_load(shown.stdout) == best
    assert sorted(os.listdir("whole/trials/0000")) == ["metrics.jsonl", "tensorboard"]
    earlier = study_of(tmp_path / "whole")  # of a version that had no such setting, so that it was at its default
    del earlier["question"]["network"]["logit_scale"]
    (tmp_path / "whole/study.json").write_text(json.dumps(earlier))
    again, command = run(*arguments, "--output-dir", "whole", "--json"), {"command": whole["command"]}
    assert again.exit_code == 0 and "2 trials done" in again.stderr and json.loads(again.stdout) | command == whole

    full = OSError(errno.ENOSPC, "No space left on device")
    for error, status, said in (
        (full, 2, "no space left on device; make room there or choose another folder; the same command resumes"),
        (KeyboardInterrupt(), 130, "the same command resumes"),
    ):

        def stopped(*given, error=error):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(tuning, "train", stopped)
            result = run(*arguments, "--output-dir", "stopped")
        assert result.exit_code == status and said in result.stderr
        done, left = study_of(tmp_path / "stopped")["trials"]
        assert done == first and left["state"] == "running" and not (tmp_path / "stopped/best.yaml").exists()
    result = run(*arguments, "--output-dir", "stopped")
    assert result.exit_code == 0, result.output
    assert without_times(study_of(tmp_path / "stopped")) == without_times(whole)
    other = run(*arguments, "--output-dir", "stopped", "--objective", "mean")
    assert other.exit_code == 2 and "with other objective" in other.stderr


def test_a_trial_is_stopped_below_the_median(tmp_path):
    """Of five curves the median of the best values so far is 0.3 after half of the phase, whatever comes later."""
    curves = [[(0.25, 0.1), (0.5, value), (0.75, 0.9), (1.0, 0.2)] for value in (0.1, 0.2, 0.3, 0.4, 0.5)]
    (phase,) = config.load(None, "baseline", ["method.epochs=8"]).method.phases()

    def after(*validated, curves=curves):
        """Whether the trial runs on after validations (clean, robust) of its first epochs."""
        lines = []
        for epoch, (clean, robust) in enumerate(validated, start=1):
            reached = {"validation_clean_accuracy": clean, "validation_robust_accuracy": robust}
            lines.append({"step": epoch, "phase": phase.name, "epoch": epoch, **reached})
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        pruning = tuning.Pruning(tuning.Job(7, {}, {}, "robust_accuracy", str(tmp_path), 60.0, curves), phase)
        assert pruning.curve() == [((1 + index) / 8, robust) for index, (_, robust) in enumerate(validated)]
        pruning()
        return True

    assert after((0.9, 0.0))  # an eighth of the phase
    assert after((0.9, 0.1), (0.9, 0.05))  # the best so far counts, and it is the median
    assert after((0.9, 0.0), (0.9, 0.1), (0.9, 0.1), (0.9, 0.3))
    assert after((0.9, 0.0), (0.9, 0.1), (0.9, 0.1), (0.9, 0.2), curves=[])
    with pytest.raises(
        tuning._Hopeless, match="after 50% of the last phase: 29.00%, and the median of 5 trials was 30"
    ):
        after((0.9, 0.0), (0.9, 0.1), (0.9, 0.1), (0.9, 0.29))
    with pytest.raises(
        tuning._Hopeless, match="after 100% of the last phase: 10.00%, and the median of 5 trials was 90"
    ):
        after(*[(0.9, 0.1)] * 8)  # its attack would follow


def test_a_stopped_search_with_pruned_trials_resumes_to_the_same_table(tmp_path, monkeypatch):
    """With trials of known outcomes in place of trainings: the next settings do not depend on an interruption."""
    monkeypatch.chdir(tmp_path)
    others = []

    def outcome(job, tell):
        rate = job.experiment["method"]["optimizer"]["learning_rate"]
        others.append(len(job.curves))
        if job.number in interrupted:
            interrupted.remove(job.number)
            raise KeyboardInterrupt
        if job.curves and rate > 0.004:
            return {"state": "pruned", "reason": "pruned", "curve": [(0.5, rate)]}
        return {"state": "done", "objective": 10 * rate, "curve": [(0.5, rate), (1.0, 10 * rate)]}

    monkeypatch.setattr(tuning, "run_trial", outcome)
    arguments = (*SMALL, "--trials", "12", "--search", RATES, "--prune")
    interrupted = []
    assert run(*arguments, "--output-dir", "whole").exit_code == 0
    assert others == [0] * 5 + sorted(others[5:]) and others[5] == 5
    interrupted = [7, 9]
    results = [run(*arguments, "--output-dir", "stopped") for _ in range(3)]
    assert [result.exit_code for result in results] == [130, 130, 0], [result.output for result in results]
    whole = study_of(tmp_path / "whole")
    assert whole["trials"] == study_of(tmp_path / "stopped")["trials"]
    states = [trial["state"] for trial in whole["trials"]]
    assert {"pruned", "done"} == set(states) and states[:5] == ["done"] * 5
    assert sorted(path.name for path in (tmp_path / "whole").glob("*.png")) == ["history.png", "importance.png"]
    other = run(*arguments[:-1], "--output-dir", "whole")
    assert other.exit_code == 2 and "with other prune" in other.stderr


def test_the_first_trial_has_the_settings_of_the_experiment(tmp_path, monkeypatch):
    """Also those of which the name stands for more, such as an augmentation; a value out of range is drawn."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tuning, "run_trial", lambda job, tell: {"state": "done", "objective": 0.5, "curve": []})
    spaces = ["augmentation=choice(none, simclr, crop_flip)", "batch_size=choice(8, 16)", "epochs=int(2, 3)"]
    chosen = [part for space in spaces for part in ("--search", f"method.{space}")]
    assert run(*SMALL, "--set", "method.augmentation=crop_flip", "--trials", "1", *chosen).exit_code == 0
    (trial,) = study_of(_default())["trials"]
    epochs = trial["settings"].pop("method.epochs")
    assert trial["settings"] == {"method.augmentation": "crop_flip", "method.batch_size": "16"}
    assert epochs in ("2", "3")


def test_every_combination_is_tried_once_if_the_trials_suffice(tmp_path, monkeypatch):
    """A search that is continued tries the combinations that are left; more trials repeat none of them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tuning, "run_trial", lambda job, tell: {"state": "done", "objective": 0.5, "curve": []})
    spaces = ["batch_size=choice(8, 16, 32)", "epochs=int(1, 2)"]
    arguments = [*SMALL, *(part for space in spaces for part in ("--search", f"method.{space}"))]
    assert run(*arguments, "--trials", "1").exit_code == 0
    made = run(*arguments, "--trials", "9")
    assert made.exit_code == 0 and "the ranges have 6 combinations of values: each is one trial" in made.stderr
    tried = [tuple(trial["settings"].values()) for trial in study_of(_default())["trials"]]
    assert tried[0] == ("16", "1") and len(tried) == 6
    assert set(tried) == {(batch_size, epochs) for batch_size in ("8", "16", "32") for epochs in ("1", "2")}
    other = run(*arguments, "--trials", "9", "--seed", "1")
    assert other.exit_code == 2 and len(other.stderr.splitlines()) == 1 and "with other seed" in other.stderr


def _searched(folder, variant="baseline"):
    """A search of four trials, of which the third failed and the best two are 3 and 0."""
    trials = [
        {"number": number, "settings": {"method.epochs": str(1 + number)}, "state": "done", "objective": objective}
        for number, objective in enumerate((0.5, 0.4, 0.0, 0.6))
    ]
    del trials[2]["objective"]
    trials[2] |= {"state": "failed", "reason": "of a test"}
    question = {"method": {"name": variant}, "search": {"method.epochs": "int(1, 4)"}}
    folder.mkdir()
    (folder / "study.json").write_text(json.dumps({"format": 1, "question": question, "trials": trials}))


def test_the_best_trials_are_repeated_with_several_seeds(tmp_path, monkeypatch):
    """The means decide, not the best seed; the seeds are those from the experiment's on, and more of them continue."""
    monkeypatch.chdir(tmp_path)
    _searched(tmp_path / "search")
    asked = []
    objectives = {(4, 5): 0.50, (1, 5): 0.52, (4, 6): 0.60, (1, 6): 0.52, (4, 7): 0.30, (1, 7): 0.52}

    def trained(job, tell):
        asked.append((job.experiment["method"]["epochs"], job.experiment["seed"]))
        objective = objectives[asked[-1]]
        return {
            "state": "done",
            "objective": objective,
            "clean_accuracy": 0.9,
            "robust_accuracy": objective,
            "curve": [],
        }

    monkeypatch.setattr(tuning, "run_trial", trained)
    arguments = (*SMALL, "--seed", "5", "--repeat", "search", "--best", "2")
    first = run(*arguments, "--seeds", "2")
    assert first.exit_code == 0, first.output
    assert asked == [(4, 5), (1, 5), (4, 6), (1, 6)]
    folder = tmp_path / "tuned/digits-baseline-repeated"
    found = study_of(folder)
    assert found["best"] == 3 and [trial["repeats"] for trial in found["trials"]] == [3, 0, 3, 0]
    assert yaml.safe_load((folder / "best.yaml").read_text())["method"]["epochs"] == 4
    more = run(*arguments, "--seeds", "3")
    assert more.exit_code == 0 and asked[4:] == [(4, 7), (1, 7)] and "4 trials done" in more.stderr
    assert study_of(folder)["best"] == 0
    assert (folder / "best.yaml").read_text().splitlines()[0].endswith("robust_accuracy 0.5200, the mean of 3 seeds")
    lines = more.stdout.splitlines()
    assert lines[0].split() == ["trial", "epochs", "seeds", "clean", "robust", "robust_accuracy"]
    best, other = (line.split() for line in lines[2:4])
    assert best == ["0", "1", "3", *"90.0 ± 0.0".split(), *"52.0 ± 0.0".split(), *"52.0 ± 0.0".split()]
    # By hand: 50, 60 and 30 have the mean 46.7 and the standard deviation sqrt((3.33^2 + 13.33^2 + 16.67^2) / 2).
    assert other == ["3", "4", "3", *"90.0 ± 0.0".split(), *"46.7 ± 15.3".split(), *"46.7 ± 15.3".split()]
    with_other = run(*arguments[:-1], "1", "--seeds", "3")
    assert with_other.exit_code == 2 and "with other repeat" in with_other.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--repeat", "none"), "none has no study.json; give the folder that tune wrote"),
        (("--repeat", "other"), "other is a search of at, and --variant is baseline"),
        (("--repeat", "search", "--trials", "4"), "--trials is for a search; leave it out"),
        (("--repeat", "search", "--search", RATES), "--search is for a search; leave it out"),
        (("--repeat", "search", "--prune"), "--prune is for a search; leave it out"),
        (("--seeds", "2"), "--seeds is for --repeat; leave it out"),
    ],
)
def test_repeats_are_refused(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    _searched(tmp_path / "search")
    _searched(tmp_path / "other", "at")
    result = run(*SMALL, *arguments)
    assert result.exit_code == 2 and said in result.stderr.splitlines()[-1], result.output
    assert result.stdout == "" and sorted(os.listdir()) == ["other", "search"]


@pytest.mark.slow
def test_a_trial_that_fails_is_recorded_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*SMALL, "--trials", "2", "--search", "method.optimizer.learning_rate=choice(1e30, 2e30)", "--json")
    assert result.exit_code == 2 and "none of 2 trials could be measured" in result.stderr.splitlines()[-1]
    trials = json.loads(result.stdout)["trials"]
    assert [trial["state"] for trial in trials] == ["failed", "failed"] and trials == study_of(_default())["trials"]
    assert all("not finite after step" in trial["reason"] for trial in trials)
    assert not (_default() / "best.yaml").exists()


@pytest.mark.slow
def test_two_processes_share_the_trials(tmp_path):
    """As a program: the processes that it starts import its main file too, and must not run the command again."""
    search = "method.optimizer.learning_rate=log(1e-3, 1e-2)"
    command = [*SMALL, "--trials", "2", "--search", search, "--processes", "2", "--objective", "mean", "--json"]
    result = forked.run(CLI, *command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    trials = json.loads(result.stdout)["trials"]
    assert [trial["state"] for trial in trials] == ["done"] * 2
    for trial in trials:
        assert trial["objective"] == pytest.approx((trial["clean_accuracy"] + trial["robust_accuracy"]) / 2)


def test_the_test_split_is_removed(monkeypatch):
    seen = []

    def stopped(data, attacks):
        seen.append(data)
        return data

    monkeypatch.setattr(tuning, "with_stored", stopped)
    loaded = sources.load(_dataset())
    tuning._without_test(config.load(None, "baseline", ["dataset.limit=60"]))
    assert len(loaded.test.labels) == 60 and len(seen[0].test.labels) == 0
    np.testing.assert_array_equal(seen[0].validation.indices, loaded.validation.indices)


def test_objectives_by_hand():
    found = [objective_value(name, 0.8, 0.2) for name in ("clean_accuracy", "robust_accuracy", "mean")]
    assert found == pytest.approx([0.8, 0.2, 0.5])
    assert objective_value("harmonic_mean", 0.8, 0.2) == pytest.approx(0.32)
    assert objective_value("harmonic_mean", 0.0, 0.0) == 0.0


def test_a_robust_accuracy_without_gradients_does_not_count(tmp_path):
    def leave(**last):
        lines = [{"phase": "pre-training", "zero_gradients": 0.1}, {"phase": "training", **last}]
        lines = [{"step": step, "epoch": 1, **line} for step, line in enumerate(lines, start=1)]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    leave(zero_gradients=0.1, monitor_zero_gradients=0.9)
    assert "monitor_zero_gradients" in tuning._dead(tmp_path, "robust_accuracy")
    assert tuning._dead(tmp_path, "clean_accuracy") is None
    leave(zero_gradients=0.6, monitor_zero_gradients=0.1)
    assert "60%" in tuning._dead(tmp_path, "clean_accuracy")
    leave(zero_gradients=None, monitor_zero_gradients=0.1)
    assert tuning._dead(tmp_path, "robust_accuracy") is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--search", "method.temperatur=log(0.1, 1)"), "no such field"),
        (("--search", "method.optimizer.learning_rate=uniform(-1, 1)"), "at -1.0: "),
        (("--search", "method.optimizer.learning_rate=around(1)"), "there is no range 'around'"),
        (("--search", "learning_rate"), "SETTING=RANGE"),
        (("--set", "dataset.validation_fraction=0"), "trials are compared on validation images"),
        (("--attack", "embedding"), "does not look at the network's own logits"),
        (("--attack", "pgdd"), "unknown attack 'pgdd'"),
        (("--output-dir", "taken"), "not ours to write"),
        (("--config", "search.yaml"), "unknown variant 'baselin'"),
    ],
)
def test_refused(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/notes.txt").write_text("mine")
    (tmp_path / "search.yaml").write_text("variant: baseline\nsearch: {baselin: {method.alpha: 'log(1, 2)'}}\n")
    result = run(*SMALL, *arguments)
    assert result.exit_code == 2 and said in result.stderr.splitlines()[-1], result.output
    assert result.stdout == "" and sorted(os.listdir()) == ["search.yaml", "taken"]


def _default():
    return Path("tuned/digits-baseline")


def _dataset():
    return Dataset(name="digits", limit=60, validation_fraction=0.2, test_fraction=0.3)
