"""CLAF (Rahamim and Naeh 2022)."""

from keras_rcl.vocabulary.attacks import PGD, AutoAttack
from keras_rcl.vocabulary.paper import (
    Claim,
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
    Table,
)

_REPO = "claf-repo"


def _pgd(epsilon: int, num_steps: int = 10) -> Column:
    attack = PGD(epsilon=epsilon / 255, step_size=2 / 255, num_steps=num_steps)
    measures = tuple(Robust(attack=attack.with_protocol(protocol)) for protocol in (_REPO, "pixel"))
    return Column(title=f"PGD-{num_steps} {epsilon}/255", measures=measures)


_NATURAL = Column(title="Nat.", measures=(Clean(),))
_AUTOATTACK = Column(title="AutoAttack 8/255", measures=(Robust(attack=AutoAttack(), limit=1000),))
_ADVERSARIAL = ("PGD-10 8/255", "PGD-10 16/255")


def _under_repo(rows: dict[str, str]) -> tuple[Row, ...]:
    """Label and config of rows -> the same trained under claf-repo, which stand for them in claims under claf-repo."""
    return tuple(
        Row(label=f"{label}, trained under claf-repo", config=f"{config}_claf_repo", in_place_of=label)
        for label, config in rows.items()
    )


_SHARED = dict(protocol=_REPO, columns=(_NATURAL, _pgd(8), _pgd(16)))

CLAF = Paper(
    name="claf",
    title="CLAF: Contrastive Learning with Adversarial Features",
    reference="Rahamim and Naeh 2022, arXiv:2203.08959",
    tables=(
        Table(
            name="Table 1",
            caption="Accuracy on CIFAR-10, of ResNet-18 in the paper",
            protocol=_REPO,
            columns=(_NATURAL, _pgd(8), _pgd(16), _AUTOATTACK),
            rows=(
                Row(label="Natural", config="natural", published=(95.5, 0.0, 0.0, None)),
                Row(label="SCL", config="scl", published=(92.6, 18.3, 9.1, None)),
                Row(label="AT", config="at", published=(84.8, 44.7, 25.9, None)),
                Row(label="TRADES", config="trades", published=(83.7, 51.4, 34.3, None)),
                Row(label="RoCL-AT", config="rocl_at", published=(80.2, 40.7, 22.8, None)),
                Row(label="CLAF", config="clafs", published=(92.4, 60.4, 48.3, None)),
                *_under_repo({"AT": "at", "TRADES": "trades", "RoCL-AT": "rocl_at", "CLAF": "clafs"}),
            ),
            comparisons=tuple(
                Comparison(row="CLAF", against=other) for other in ("Natural", "SCL", "AT", "TRADES", "RoCL-AT")
            ),
            claims=(
                Claim.above(
                    "CLAF is more robust than all others, at 8/255 and at 16/255",
                    _ADVERSARIAL,
                    "CLAF",
                    *("Natural", "SCL", "AT", "TRADES", "RoCL-AT"),
                ),
                Claim.above(
                    "CLAF is more accurate than adversarial training", ("Nat.",), "CLAF", "AT", "TRADES", "RoCL-AT"
                ),
            ),
            notes=(
                "The paper reports RoCL-AT from Kim et al. 2020 and does not measure it.",
                "The published code trains and attacks under claf-repo. Rows that are trained by an attack in these "
                "coordinates stand for the others in conclusions under claf-repo. At scales full and cpu other "
                "deviations of the published code from the paper are not in them; at scale claf-code they are.",
            ),
        ),
        Table(
            name="Table 2",
            caption="The classifier c of Algorithm 1, trained on natural or on adversarial images",
            rows=(
                Row(label="Natural", config="inner_natural", published=(92.3, 56.1, 47.5)),
                Row(label="Adversarial", config="clafs", published=(92.4, 60.4, 48.3)),
                *_under_repo({"Natural": "inner_natural", "Adversarial": "clafs"}),
            ),
            comparisons=(Comparison(row="Adversarial", against="Natural"),),
            claims=(
                Claim.above("Adversarial training of c makes ours more accurate", ("Nat.",), "Adversarial", "Natural"),
                Claim.above("... and more robust", _ADVERSARIAL, "Adversarial", "Natural"),
            ),
            **_SHARED,
        ),
        Table(
            name="Table 3",
            caption="More PGD steps",
            protocol=_REPO,
            columns=(_pgd(8, 20), _pgd(8, 40), _pgd(8, 100)),
            rows=(Row(label="CLAF", config="clafs", published=(60.12, 60.05, 60.03)), *_under_repo({"CLAF": "clafs"})),
            notes=("The paper does not state epsilon here. The one of its Table 1 with 60.4 is used.",),
        ),
        Table(
            name="Table 4",
            caption="Linear evaluation on natural or on adversarial images",
            rows=(
                Row(label="Natural", config="clafs", published=(92.4, 60.4, 48.3)),
                Row(label="Adversarial", config="linear_adversarial", published=(81.9, 50.7, 36.5)),
                *_under_repo({"Natural": "clafs", "Adversarial": "linear_adversarial"}),
            ),
            comparisons=(Comparison(row="Natural", against="Adversarial"),),
            claims=(
                Claim.above(
                    "Linear evaluation is better trained on natural images: accuracy",
                    ("Nat.",),
                    "Natural",
                    "Adversarial",
                ),
                Claim.above("... and robust accuracy", _ADVERSARIAL, "Natural", "Adversarial"),
            ),
            **_SHARED,
        ),
        Table(
            name="Table 5",
            caption="The classifier c before each epoch",
            rows=(
                Row(label="Reinitialized", config="inner_reinitialized", published=(92.2, 60.8, 49.5)),
                Row(label="Continuous", config="clafs", published=(92.4, 60.4, 48.3)),
                *_under_repo({"Reinitialized": "inner_reinitialized", "Continuous": "clafs"}),
            ),
            comparisons=(Comparison(row="Reinitialized", against="Continuous"),),
            claims=(
                Claim.above(
                    "Starting c from scratch makes ours more robust", _ADVERSARIAL, "Reinitialized", "Continuous"
                ),
                Claim.above("... and less accurate", ("Nat.",), "Continuous", "Reinitialized"),
            ),
            **_SHARED,
        ),
        Table(
            name="Table 6",
            caption="The classifier of the linear evaluation",
            rows=(
                Row(label="Reinitialized", config="clafs", published=(92.4, 60.4, 48.3)),
                Row(label="Continued from c", config="final_continued", published=(92.4, 60.9, 48.3)),
                *_under_repo({"Reinitialized": "clafs", "Continued from c": "final_continued"}),
            ),
            comparisons=(Comparison(row="Continued from c", against="Reinitialized"),),
            claims=(
                Claim.above(
                    "Continuing makes ours more robust at 16/255",
                    ("PGD-10 16/255",),
                    *("Continued from c", "Reinitialized"),
                ),
            ),
            notes=(
                "The paper's text says that continuing gains at 16/255; its table has the gain at 8/255 and "
                "48.3 twice at 16/255.",
            ),
            **_SHARED,
        ),
    ),
    figures=(
        RobustCurves(
            title="Figure 1: natural and robust accuracy",
            table="Table 1",
            rows=("Natural", "SCL", "AT", "TRADES", "RoCL-AT", "CLAF"),
        ),
        LossCurves(
            title="Losses of training",
            panels=(
                ("SCL", "scl", None),
                ("AT", "at", None),
                ("TRADES", "trades", None),
                ("CLAF", "clafs", None),
            ),
        ),
        Embeddings(title="Embeddings of test images", panels=(("Natural", "natural"), ("AT", "at"), ("CLAF", "clafs"))),
        Pictures(
            title="PGD-10 at 8/255 of a pixel's range",
            panels=(("AT", "at"), ("CLAF", "clafs")),
            attack=PGD(epsilon=8 / 255, step_size=2 / 255, num_steps=10),
        ),
    ),
    notes=(
        "claf-repo: the published code attacks images normalised by mean and standard deviation, with epsilon and the "
        "clamp to [0, 1] in those units. Its 8/255 is about 1.6/255 of a pixel's range, and its clamp alone "
        "moves pixels by up to 125/255. The published numbers are therefore numbers of claf-repo and cannot be "
        "compared with pixel.",
        "Scale cpu is Cusin's CNN on 20,000 training images of CIFAR-10 in place of ResNet-18 on 50,000, with 4 + 8 + "
        "6 epochs in place of 60 + 140 + 100, one inner epoch in place of 5, Adam 2e-3 in place of 0.05 and "
        "temperature 0.1. At this schedule CLAF has not converged: the SupCon loss of its second stage rises from "
        "6.15 to 6.45, where 6.64 is the value of collapsed embeddings, and its inner classifier is near chance. Its "
        "rows say nothing about the method at the paper's schedule.",
        "Scale claf-code is the recipe of the authors' last commit: SGD without momentum and with weight decay, one "
        "cosine over both contrastive stages, a projector that reads embeddings at unit length and projections that "
        "are not normalized in the first stage, a third crop without jitter as positive, classifiers that are "
        "trained on crops while BatchNorm's statistics move, a new Adam per epoch, PyTorch's initialization, all "
        "images and the last epoch. There the learning rate changes once per epoch, here with every step; the last, "
        "smaller batch of an epoch is left out here. The code trains no other method; those rows have the settings "
        "of scale full.",
        "Scale cpu-long has half of the images of scale cpu, crop and flip in place of the augmentation of SimCLR, "
        "batches of 128, one cosine over both contrastive stages of 2 + 80 epochs, ten times as many steps of the "
        "second stage, and two inner epochs at a learning rate of 0.02, at which the inner classifier keeps up with "
        "the encoder. There CLAF learns. Trained in pixels, the SupCon loss of its second stage falls to 4.41, where "
        "collapse is 5.95, and its inner classifier gets 33 % of the adversarial training images right; trained under "
        "claf-repo, 4.18 and 88 %. AT and RoCL-AT hardly learn there under claf-repo: they get 16.7 and "
        "14.0 % of the clean images right.",
        "Full scale holds 2 % of the training images out and keeps the epoch of the last phase that is most robust on "
        "them; the paper trains on all images and keeps the last epoch. One optimizer and one cosine belong to each "
        "stage; the paper has one of each for both contrastive stages.",
    ),
)
