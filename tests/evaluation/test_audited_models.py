"""The core of `benchmarks.audits`: no false claim stands about a model that fools gradients, and an honest one does."""

import pytest

from benchmarks.audited_models import DECEPTIVE, EPSILON, HONEST
from keras_rcl.vocabulary.attacks import PGD
from keras_rcl.vocabulary.claim import AuditBudget

SMALL = AuditBudget(
    num_images=60,
    num_steps=10,
    num_restarts=2,
    num_queries=100,
    num_draws=2,
    verifier=PGD(epsilon=EPSILON, num_steps=40, num_restarts=2, loss="logit_margin"),
)


def test_there_are_enough_models():
    assert len(DECEPTIVE) >= 10 and len(HONEST) >= 6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scaled_logits", "reversed_gradient", "plateaus"])
def test_claims_beside_the_truth(name):
    from benchmarks.audits import row_of

    row = row_of(name, 120, SMALL)
    assert row["kind"] == ("honest" if name == "scaled_logits" else "deceptive")
    assert 0.1 < row["truth"] < row["clean_accuracy"]
    assert row["above"] != "stands" and row["below"] != "falls", row
    if row["kind"] == "honest":
        assert row["below"] == "stands", row
