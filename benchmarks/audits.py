"""How often an audit is right: honest models, and models that fool gradients, at claims beside the truth.

    python -m benchmarks.audits --json results/benchmarks/audits.json

The truth is the share of images that survive an adaptive attack: gradient attacks on every surrogate of the model (its
network without the defence), attacks along measured slopes, and all attacks of the audit. Each model is audited with a
claim 5 points above the truth, which must not stand, and with one 5 points below, which must not fall. `--only` runs
some of the models; the rows of the others are kept in the file.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from keras_rcl.runtime.tensorflow import start_tensorflow

start_tensorflow()

from benchmarks.audited_models import DECEPTIVE, EPSILON, HONEST, MODELS, TESTED, Audited, data  # noqa: E402
from keras_rcl.attacks.estimated_gradient import with_estimated_gradient  # noqa: E402
from keras_rcl.evaluation.audit import Audit, Subject, audit  # noqa: E402
from keras_rcl.evaluation.record import versions  # noqa: E402
from keras_rcl.evaluation.robustness import Evaluator  # noqa: E402
from keras_rcl.storage.fingerprint import Fingerprint  # noqa: E402
from keras_rcl.storage.journal import Journal  # noqa: E402
from keras_rcl.vocabulary.attacks import PGD, AutoPGD, Transfer  # noqa: E402
from keras_rcl.vocabulary.claim import AuditBudget, Claim  # noqa: E402

AWAY = 0.05
"""How far the claims are from the truth."""


def adaptive(model: Audited, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """[N] bool: which images survive the attacks of one who knows the defence."""
    sources = {f"surrogate {number}": one for number, one in enumerate(model.surrogates)}
    margin = PGD(epsilon=EPSILON, num_steps=60, num_restarts=4, loss="logit_margin")
    targeted = AutoPGD(epsilon=EPSILON, num_steps=50, loss="dlr_targeted")
    attacks = [Transfer(source=name, attack=one) for name in sources for one in (margin, targeted)]
    attacks.append(PGD(epsilon=EPSILON, num_steps=60, num_restarts=2, loss="logit_margin", eot_iter=4))
    slopes = {f"slopes {part}": with_estimated_gradient(model.logits, EPSILON / part, 32) for part in (1, 4)}
    by_slope = PGD(epsilon=EPSILON, num_steps=20, loss="logit_margin")
    attacks += [Transfer(source=name, attack=by_slope) for name in slopes]
    sources |= slopes
    evaluator = Evaluator(
        model.logits,
        attacks,
        batch_size=len(images),
        seed=1,
        outputs=lambda attack: model.logits if attack.proxy is None else sources[attack.proxy],
    )
    return evaluator(images, labels).survived.all(axis=0)


def audited(model: Audited, images, labels, claimed: float, journal: Path, budget: AuditBudget) -> Audit:
    """The audit of one claim; attacks that the journal holds are not run again."""
    subject = Subject(logits=model.logits, probabilities=model.probabilities)
    claim = Claim(robust_accuracy=float(np.clip(claimed, 0, 1)), epsilon=EPSILON)
    held = Journal(journal, Fingerprint())
    try:
        return audit(subject, images, labels, claim, budget=budget, batch_size=len(images), journal=held)
    finally:
        held.close()


def row_of(name: str, count: int, budget: AuditBudget = AuditBudget()) -> dict:  # noqa: B008  a frozen value
    """Audit one model at both claims."""
    model, started = MODELS[name](), time.perf_counter()
    images, labels = (array[TESTED][:count] for array in data())
    survived = adaptive(model, images, labels)
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "attacks"
        # The truth counts what the audit itself breaks, which does not depend on the claim.
        first = audited(model, images, labels, float(survived.mean()), journal, budget)
        left = survived & first.survived
        truth = float(left.mean())
        verdicts = {
            way: audited(model, images, labels, truth + sign * AWAY, journal, budget)
            for way, sign in (("above", 1), ("below", -1))
        }
    return {
        "kind": "honest" if MODELS[name] in HONEST else "deceptive",
        "images": count,
        "clean_accuracy": first.measured.clean_accuracy,
        "truth": truth,
        "verifier": float(first.measured.survived[0].mean()),
        "audit": first.robust_accuracy,
        "above": verdicts["above"].verdict,
        "below": verdicts["below"].verdict,
        "raised": [one.check for one in verdicts["below"].findings if one.status == "raised"],
        "reason": verdicts["above"].reason,
        "seconds": round(time.perf_counter() - started, 1),
    }


def write(path: Path, name: str, row: dict, images: int) -> None:
    """Add a row to the file; the rows of other models are kept."""
    before = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    merged = {**before["rows"], name: row}
    found = {
        "command": f"python -m benchmarks.audits --images {images} --json {path}",
        "epsilon": EPSILON,
        "versions": versions(),
        "rows": {make.__name__: merged[make.__name__] for make in (*HONEST, *DECEPTIVE) if make.__name__ in merged},
    }
    path.write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME")
    parser.add_argument("--images", type=int, default=400, help="audited images; 400 by default")
    parser.add_argument("--json", type=Path, help="the file to write, after each model")
    arguments = parser.parse_args()
    for name in arguments.only:
        row = row_of(name, arguments.images)
        print(name, json.dumps(row), flush=True)
        if arguments.json:
            write(arguments.json, name, row, arguments.images)


if __name__ == "__main__":
    main()
