"""A table of this project, not of a paper: adversarial training with and without a contrastive loss."""

from keras_rcl.vocabulary.attacks import PGD, AutoAttack
from keras_rcl.vocabulary.paper import Claim, Clean, Column, Comparison, Paper, Robust, Row, Table

_PGD = PGD(epsilon=8 / 255, step_size=2 / 255, num_steps=10)
_AUTOATTACK = "AutoAttack 8/255"


def _columns(pgd_limit: int | None, autoattack_limit: int) -> tuple[Column, ...]:
    return (
        Column(title="Clean", measures=(Clean(),)),
        Column(title="PGD-10 8/255", measures=(Robust(attack=_PGD, limit=pgd_limit),)),
        Column(title=_AUTOATTACK, measures=(Robust(attack=AutoAttack(), limit=autoattack_limit),)),
    )


def _above(text: str, row: str, *others: str) -> Claim:
    return Claim.above(text, (_AUTOATTACK,), row, *others)


CONTRAST = Paper(
    name="contrast",
    title="Does contrast add to adversarial training?",
    reference="This repository",
    notes=(
        "Scale cpu is Cusin's CNN on all 50,000 training images of CIFAR-10, with 5 to 8 epochs. It says nothing "
        "about a ResNet that is trained to convergence.",
    ),
    tables=(
        Table(
            name="Table 1",
            caption="Accuracy on CIFAR-10 at one budget of passes through the network",
            columns=_columns(None, 1000),
            rows=(
                Row(label="AT", config="at"),
                Row(label="TRADES", config="trades"),
                Row(label="AT + SupCon", config="at_scl"),
                Row(label="TRADES + SupCon", config="trades_scl"),
            ),
            comparisons=(
                Comparison(row="TRADES", against="AT"),
                Comparison(row="AT + SupCon", against="AT"),
                Comparison(row="TRADES + SupCon", against="TRADES"),
            ),
            claims=(
                _above("TRADES is more robust than AT", "TRADES", "AT"),
                _above("Contrast makes AT more robust", "AT + SupCon", "AT"),
                _above("Contrast makes TRADES more robust", "TRADES + SupCon", "TRADES"),
                _above("AT with contrast beats both without", "AT + SupCon", "AT", "TRADES"),
                _above("TRADES with contrast beats both without", "TRADES + SupCon", "AT", "TRADES"),
            ),
            notes=(
                "A pass is one forward or backward pass of one image, including those of the attack. The rows differ "
                "in epochs, so that a row with contrast has at most as many passes as the row without.",
                "The weight of SupCon is Wang's, its temperature Khosla et al.'s; beta of TRADES is 6. None was tuned.",
            ),
        ),
        Table(
            name="Table 2",
            caption="The same after a search of 40 trials each, at one budget of passes through the network",
            columns=_columns(2000, 2000),
            rows=(
                Row(label="AT", config="at"),
                Row(label="AT, tuned", config="robust"),
                Row(label="AT + SupCon, tuned", config="robust_scl"),
            ),
            comparisons=(
                Comparison(row="AT, tuned", against="AT"),
                Comparison(row="AT + SupCon, tuned", against="AT, tuned"),
            ),
            claims=(
                _above("The search makes AT more robust", "AT, tuned", "AT"),
                _above("Contrast makes the tuned AT more robust", "AT + SupCon, tuned", "AT, tuned"),
            ),
            notes=(
                "AT is that of Table 1. The tuned rows hold 10 % of the training images out to choose the epoch, so "
                "that they have 10 % fewer images and more passes of each of them.",
                "The search compared trials by AutoAttack on 1,000 of these images (docs/contrast.md).",
            ),
        ),
    ),
)
