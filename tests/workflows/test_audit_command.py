"""`audit` by the command line, on a linear SavedModel that knows nothing of this package."""

import functools
import json
import os
import signal

import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from keras_rcl.cli.app import cli
from keras_rcl.errors import InvalidInputError
from keras_rcl.evaluation.record import read_record
from keras_rcl.evaluation.robustness import Evaluator
from keras_rcl.vocabulary.claim import AuditBudget

pytestmark = pytest.mark.usefixtures("unoptimized")

QUICK = ("--check-images", "20", "--verifier", "pgd-20:loss=logit_margin")
HERE = ("--dataset", "digits", "--limit", "50")
STRONG = ("--record", "strong/record.json", "--epsilon", "32/255")
FALSE = ("audit", "linear", "--claim", "99%", "--epsilon", "32/255", *HERE, *QUICK, "--batch-size", "10")
SMALL = functools.partial(AuditBudget, num_steps=5, num_restarts=2, num_queries=50, num_draws=2)


def run(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def refused(*arguments) -> str:
    result = run(*arguments)
    assert result.exit_code == 2 and "Traceback" not in result.output, result.output
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("error:"))
    return line


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A linear classifier of the digits as a SavedModel, and a record of attacks on it at two epsilons."""
    folder = tmp_path_factory.mktemp("audit")
    digits = load_digits()
    fit = LogisticRegression(C=0.1, max_iter=500).fit(digits.data[:1000] / 16, digits.target[:1000])
    module = tf.Module()
    module.kernel, module.bias = (
        tf.Variable(fit.coef_.T.astype("float32")),
        tf.Variable(fit.intercept_.astype("float32")),
    )

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 1])])
    def serve(images):
        return {"logits": tf.reshape(images, [-1, 64]) @ module.kernel + module.bias}

    module.serve = serve
    tf.saved_model.save(module, str(folder / "linear"), signatures={"serving_default": serve})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        attacks = ("--attack", "fgsm:epsilon=2/255", "--attack", "apgd-20:loss=dlr_targeted,epsilon=32/255")
        assert run("attack", "linear", *HERE, *attacks, "--save-images", "--output-dir", "strong").exit_code == 0
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    """The folder, with checks that spend less than those of the command."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("keras_rcl.cli.audit.AuditBudget", SMALL)
    return folder


@pytest.mark.slow
def test_an_honest_record_stands(here):
    """The claim is one of several of the record."""
    said = refused("audit", "linear", *STRONG[:2], *HERE)
    assert "linf 2/255, linf 32/255" in said and "--epsilon" in said
    result = run("audit", "linear", *STRONG, *HERE, *QUICK, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found == json.loads((here / "audits/linear/audit.json").read_text())
    assert found["verdict"] == "stands" and found["claim"]["epsilon"] == "32/255"
    assert {finding["status"] for finding in found["findings"]} == {"passed", "not run"}
    assert found["data"] == json.loads((here / "strong/record.json").read_text())["data"]
    written = sorted(path.name for path in (here / "audits/linear").iterdir())
    assert written == ["audit.html", "audit.json", "loss_surface.png"]


def untimed(value):
    """A record without the seconds in it."""
    if isinstance(value, dict):
        return {key: untimed(inner) for key, inner in value.items() if key != "seconds"}
    return [untimed(inner) for inner in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def false(folder):
    """The audit of a false number."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("keras_rcl.cli.audit.AuditBudget", SMALL)
        return run(*FALSE, "--output-dir", "falls")


@pytest.mark.slow
def test_an_interrupted_audit_resumes(here, false, tmp_path, monkeypatch):
    """Interrupted within the sixth batch."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "linear").symlink_to(here / "linear")
    run_batch, done = Evaluator._run, []

    def terminated(*args):
        if len(done) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        done.append(1)
        return run_batch(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "_run", terminated)
        stopped = run(*FALSE, "--output-dir", "out")
    assert stopped.exit_code == 143 and stopped.stderr.endswith("\ninterrupted; the same command resumes\n")
    assert not (tmp_path / "out").exists()
    last = run(*FALSE, "--output-dir", "out")
    assert last.exit_code == false.exit_code and "resuming .out.partial: 5 batches done" in last.stderr
    records = [json.loads(path.read_text()) for path in (here / "falls/audit.json", tmp_path / "out/audit.json")]
    assert untimed(records[0]) == untimed(records[1])
    assert sorted(os.listdir(tmp_path)) == ["linear", "out"]


@pytest.mark.slow
def test_a_false_number_falls_and_exits_with_1(here, false):
    assert false.exit_code == 1, false.output
    assert "The claim falls: 99.0% claimed" in false.stdout and "What to do:" in false.stdout
    page = (here / "falls/audit.html").read_text()
    assert "The claim falls" in page and 'src="counterexamples.png"' in page
    assert (here / "falls/counterexamples.png").is_file()
    with np.load(here / "falls/counterexamples.npz") as kept:
        change = np.abs(kept["adversarial"].astype("float64") - kept["images"])
        assert change.max() <= 32 / 255 + 1e-6 and kept["adversarial"].min() >= 0 and kept["adversarial"].max() <= 1
        model = tf.saved_model.load(str(here / "linear"))
        predicted = np.argmax(model.serve(kept["adversarial"])["logits"], axis=1)
        assert len(predicted) and np.all(predicted != kept["labels"])
        digits = load_digits()
        np.testing.assert_allclose(kept["images"][..., 0], digits.images[kept["indices"]] / 16, atol=1 / 255)


@pytest.mark.slow
def test_a_claim_is_decided_early(here, false):
    """The false number falls after the images of the checks, as after all of them."""
    result = run(*FALSE, "--confidence", "0.99", "--output-dir", "early")
    found, whole = (json.loads((here / f"{name}/audit.json").read_text()) for name in ("early", "falls"))
    assert result.exit_code == 1 and found["verdict"] == whole["verdict"] == "falls", result.output
    assert (found["images"], found["attacked"], whole["attacked"]) == (50, 20, 50)
    assert found["budget"]["verdict_confidence"] == 0.99 and "verdict_confidence" not in whole["budget"]
    low, high = found["interval"]
    assert low <= whole["measured"][0]["robust_accuracy"] <= high
    assert "of all 50" in result.stdout and "of which 20 were attacked" in (here / "early/audit.html").read_text()
    with np.load(here / "early/counterexamples.npz") as kept:
        model = tf.saved_model.load(str(here / "linear"))
        predicted = np.argmax(model.serve(kept["adversarial"])["logits"], axis=1)
        assert len(predicted) and np.all(predicted != kept["labels"])


@pytest.mark.slow
def test_edited_outcomes_are_seen(here):
    record = json.loads((here / "strong/record.json").read_text())
    outcomes = record["survival"]["attacks"][1]
    record["survival"]["attacks"][1] = outcomes.replace("0", "1", 5)
    edited = here / "strong/edited.json"
    edited.write_text(json.dumps(record))
    result = run("audit", "linear", "--record", edited, *STRONG[2:], *HERE, *QUICK, "--output-dir", "edited")
    assert result.exit_code == 1 and "counted the other way" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give either --claim SHARE or --record FILE"),
        (("--claim", "5", "--record", "strong/record.json"), "give either"),
        (("--claim", "many"), "--claim many is not a share of images; write it as 60.4% or 0.604"),
        (("--claim", "160%"), "between 0% and 100%"),
        (("--claim", "60%", "--epsilon", "8"), "did you mean 8/255?"),
        (("--claim", "60%", "--epsilon", "eight"), "--epsilon eight"),
        (("--claim", "60%", "--verifier", "pdg"), "unknown attack 'pdg'"),
        (("--claim", "60%", "--verifier", "fab:norm=l2"), "has norm l2, the claim linf"),
        (("--record", "absent.json"), "absent.json cannot be read as a record"),
        (("--record", "strong/record.json", "--norm", "l2"), "holds linf 2/255, linf 32/255"),
        (("--claim", "60%", "--transfer-from", "absent"), "absent"),
        (("--claim", "60%", "--output-dir", "strong"), "strong already exists"),
    ],
)
def test_refusals(here, arguments, said):
    before = sorted(here.iterdir())
    assert said in refused("audit", "linear", *arguments, *HERE)
    assert sorted(here.iterdir()) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.pop("survival"), "survival is missing"),
        (lambda r: r.update(format=9), "format 9"),
        (lambda r: r["survival"].update(clean="10"), "of [2, 50] images"),
        (lambda r: r["survival"].update(clean="2" * 50), "survival.clean: string should match"),
        (lambda r: r["attacks"][0].update(name="pdg"), "attacks"),
        (lambda r: r["data"].update(indices=[[0, 3]]), "indices are of 4 images, and it is of 50"),
        (lambda r: r["data"].update(indices=[[0, 10**15]]), "indices are of 1000000000000001 images"),
        (lambda r: r["data"].update(indices=[[10**400, 10**400 + 49]]), "is not a record"),
        (lambda r: r["data"].update(indices=[["0", "49"]]), "is not a record"),
        (lambda r: r["data"].update(name=3), "data.name: input should be a valid string (got 3)"),
        (
            lambda r: r["data"].update(part="8/255"),
            "data.part: input should be 'train', 'validation' or 'test'",
        ),
        (lambda r: r.update(attacks=[]), "names 0 attacks"),
    ],
)
def test_a_record_edited_by_hand_is_refused_in_one_line(here, tmp_path, change, said):
    record = json.loads((here / "strong/record.json").read_text())
    change(record)
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))
    with pytest.raises(InvalidInputError) as caught:
        read_record(path)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "3", '{"format": 1}', "\x00"])
def test_what_is_no_record(tmp_path, text):
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(InvalidInputError):
        read_record(path)
