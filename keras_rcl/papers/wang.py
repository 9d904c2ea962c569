"""Wang 2024."""

from keras_rcl.vocabulary.attacks import BIM, FGSM, PGD, AutoAttack
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

_EPSILONS = (0.01, 0.02, 0.03)
_PROTOCOLS = ("wang-minus1to1", "wang-meanstd", "pixel")


def _fgsm(epsilon: float) -> Column:
    measures = tuple(Robust(attack=FGSM(epsilon=epsilon).with_protocol(protocol)) for protocol in _PROTOCOLS)
    return Column(title=f"FGSM {epsilon}", measures=measures)


def _iterated(title: str, attack: BIM | PGD) -> Column:
    """A column of an iterated attack at the smallest epsilon; at larger ones all rows are near 0."""
    measures = tuple(Robust(attack=attack.with_protocol(protocol)) for protocol in ("wang-minus1to1", "pixel"))
    return Column(title=f"{title} 0.01", measures=measures)


_ITERATED = (
    _iterated("BIM-10", BIM(epsilon=0.01)),
    _iterated("PGD-10", PGD(epsilon=0.01)),
    _iterated("CW-10", PGD(epsilon=0.01, loss="logit_margin")),
)


def _published(*fgsm: float | None) -> tuple[float | None, ...]:
    """The published numbers: those of FGSM at the three epsilons."""
    return (None, *fgsm, *(None for _ in _ITERATED), None)


def _above(text: str, row: str, against: str) -> Claim:
    return Claim.above(text, tuple(_fgsm(epsilon).title for epsilon in _EPSILONS), row, against)


WANG = Paper(
    name="wang",
    title="Enhancing Adversarial Robustness of Deep Neural Networks Through Supervised Contrastive Learning",
    reference="Wang 2024, arXiv:2412.19747",
    tables=(
        Table(
            name="Figures 10 to 12",
            caption="FGSM accuracy, on CIFAR-100 with ResNet-18 in the paper",
            protocol="no stated protocol",
            columns=(
                Column(title="clean", measures=(Clean(),)),
                *map(_fgsm, _EPSILONS),
                *_ITERATED,
                Column(title="AutoAttack 8/255", measures=(Robust(attack=AutoAttack(), limit=1000),)),
            ),
            rows=(
                Row(label="Baseline (fig. 10)", config="baseline", published=_published(19.7, None, None)),
                Row(label="SCL (fig. 10)", config="scl", published=_published(20.4, None, None)),
                Row(label="Baseline (figs. 11, 12)", config="baseline", published=_published(20.2, 12.0, 8.2)),
                Row(label="Refined SCL (fig. 11)", config="refined_scl", published=_published(19.8, None, 7.1)),
                Row(label="Margin SCL (fig. 12)", config="margin_scl", published=_published(None, 12.6, None)),
                Row(label="Baseline, augmented", config="baseline_augmented"),
                Row(label="SCL, augmented", config="scl_augmented"),
            ),
            comparisons=(
                Comparison(row="SCL (fig. 10)", against="Baseline (fig. 10)"),
                Comparison(row="Refined SCL (fig. 11)", against="Baseline (figs. 11, 12)"),
                Comparison(row="Margin SCL (fig. 12)", against="Baseline (figs. 11, 12)"),
                Comparison(row="SCL, augmented", against="Baseline, augmented"),
            ),
            claims=(
                _above("SCL is more robust at every epsilon", "SCL (fig. 10)", "Baseline (fig. 10)"),
                _above(
                    "Refined SCL is less robust than the baseline", "Baseline (figs. 11, 12)", "Refined SCL (fig. 11)"
                ),
                _above(
                    "Margin SCL is more robust than the baseline at every epsilon",
                    *("Margin SCL (fig. 12)", "Baseline (figs. 11, 12)"),
                ),
                _above("... and than refined SCL", "Margin SCL (fig. 12)", "Refined SCL (fig. 11)"),
            ),
            notes=(
                "The paper does not report clean accuracy, so a change of robust accuracy may be a change of clean "
                "accuracy. Here both are shown.",
                "Figures 10 and 11 give two numbers, 19.7 and 20.2, for the baseline at 0.01. The paper does "
                "not say which baseline figures 11 and 12 show; its set-up has no augmentation, so the same is used.",
                "The review of the paper speaks of up to 2.5 points; the largest gain that the paper states is 0.7.",
                "FGSM takes one step. Under the ten steps of BIM, PGD and CW in the units of [-1, 1], at scale cpu and "
                "without augmentation, SCL is 1.0 to 1.1 points above the baseline and refined SCL 0.6 to 0.7, which "
                "is more than their spread over three seeds; margin SCL is within it.",
            ),
        ),
        Table(
            name="Weights and margins",
            caption="What alpha, beta and the margins change; the paper has one value of each",
            columns=(
                Column(title="clean", measures=(Clean(),)),
                *map(_fgsm, _EPSILONS),
                _ITERATED[1],
            ),
            rows=(
                Row(label="SCL: alpha 0.5, beta 0.5", config="scl"),
                Row(label="SCL: alpha 0.1, beta 0.9", config="scl_alpha_01"),
                Row(label="SCL: alpha 0.9, beta 0.1", config="scl_alpha_09"),
                Row(label="SCL: two crops of each image (fig. 1)", config="scl_two_views"),
                Row(label="Margin SCL: alpha 0.5, beta 0.5, margins 0.5 and 0.1", config="margin_scl"),
                Row(label="Margin SCL: alpha 0.1, beta 0.9", config="margin_scl_alpha_01"),
                Row(label="Margin SCL: alpha 0.9, beta 0.1", config="margin_scl_alpha_09"),
                Row(label="Margin SCL: positive margin 0.3", config="margin_scl_positive_03"),
                Row(label="Margin SCL: positive margin 0.7", config="margin_scl_positive_07"),
                Row(label="Margin SCL: negative margin 0", config="margin_scl_negative_00"),
                Row(label="Margin SCL: negative margin 0.3", config="margin_scl_negative_03"),
            ),
            notes=(
                "Of images without augmentation two views would be equal, so the row of two crops is augmented.",
                "Rows of one seed have seed 0. At this seed the first row of SCL has 5.5 under FGSM 0.01 in the units "
                "of [-1, 1] and the first row of margin SCL 4.9; the other rows without augmentation have 4.0 to 6.3. "
                "Three seeds of one row differ by as much.",
            ),
        ),
    ),
    figures=(
        LossCurves(
            title="Figures 2 to 9: losses of the eight models",
            panels=(
                ("2: Baseline, augmented", "baseline_augmented", None),
                ("3: Baseline", "baseline", None),
                ("4: Baseline of margin SCL", "margin_scl", "baseline"),
                ("5: Baseline of refined SCL", "refined_scl", "baseline"),
                ("6: SCL, augmented", "scl_augmented", None),
                ("7: SCL", "scl", None),
                ("8: Refined SCL", "refined_scl", "refinement"),
                ("9: Margin SCL", "margin_scl", "margin refinement"),
            ),
        ),
        RobustCurves(
            title="Figure 10: FGSM accuracy, baseline and SCL",
            table="Figures 10 to 12",
            rows=("Baseline (fig. 10)", "SCL (fig. 10)"),
        ),
        RobustCurves(
            title="Figure 11: FGSM accuracy, baseline and refined SCL",
            table="Figures 10 to 12",
            rows=("Baseline (figs. 11, 12)", "Refined SCL (fig. 11)"),
        ),
        RobustCurves(
            title="Figure 12: FGSM accuracy, baseline and margin SCL",
            table="Figures 10 to 12",
            rows=("Baseline (figs. 11, 12)", "Margin SCL (fig. 12)"),
        ),
        Embeddings(
            title="Embeddings of test images",
            panels=(("Baseline", "baseline"), ("SCL", "scl"), ("Margin SCL", "margin_scl")),
        ),
        Pictures(
            title="PGD-10 at 8/255 of a pixel's range",
            panels=(("Baseline", "baseline"), ("SCL", "scl")),
            attack=PGD(),
        ),
    ),
    notes=(
        'wang-minus1to1, wang-meanstd: the paper normalises "to the range [-1, 1] using the mean and standard '
        'deviation", '
        "which are two different things, and does not state the unit of epsilon. An epsilon of 0.01 is 0.005 of the "
        "pixel range in the first reading and about 0.0026 in the second.",
        "The text trains for 10 epochs, and 10 more of refinement; the figures show 200. Full scale here is 200, scale "
        "text is the text's.",
        "Its text says that no augmentation is applied, its figures 2 and 6 that it is: two models each.",
        "Figures 4 and 5 are taken to be the first phase of the models of figures 9 and 8.",
        "Scale cpu is Cusin's CNN on 20,000 training images of CIFAR-10 in place of ResNet-18 on CIFAR-100. Refined "
        "and margin SCL have 10 + 10 epochs there, the baseline and SCL 15: a difference between them may be one of "
        "epochs. The order of rows can be compared, the numbers cannot.",
        "Equation 1 is a mean over all anchors, and so is the loss at full scale. At scale cpu the mean is over the "
        "anchors that have positives. For batches of 128 images of 100 classes it would be 1.39 times as large; of 10 "
        "classes one anchor in 650,000 has none, and the two are the same.",
        "Figure 1 has two parallel streams of images with shared weights. A batch has one view of each image, except "
        "in the row of two crops.",
        "CW is PGD on the difference of the two largest logits, the loss of Carlini and Wagner.",
    ),
)
