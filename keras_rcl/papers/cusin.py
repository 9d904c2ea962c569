"""Cusin 2026."""

from keras_rcl.vocabulary.attacks import PGD, AutoAttack
from keras_rcl.vocabulary.paper import (
    Bars,
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
    Verified,
)

_EPSILONS = (1, 2, 4, 8, 16)
_PROTOCOLS = ("cusin-repo", "pixel")
_MODELS = {  # label: (config, accuracy without, with augmentation, Table 1: timeout, safe, safe-incomplete)
    "Normal": ("normal", 67.71, 79.70, "8 / 9 / 3"),
    "Normal contrastive": ("normal_contrastive", 67.53, 79.24, "12 / 7 / 1"),
    "Adversarial": ("adversarial", 68.63, 72.54, "0 / 0 / 20"),
    "Adversarial contrastive": ("adversarial_contrastive", 67.78, 51.28, "0 / 0 / 20"),
    "Certified": ("certified", 54.21, 50.51, "1 / 0 / 19"),
    "Certified contrastive": ("certified_contrastive", 13.39, 33.95, "0 / 0 / 20"),
}
_AUGMENTED = ", augmented"


def _pgd(epsilon: int) -> Column:
    attack = PGD(epsilon=epsilon / 255, num_steps=10)
    measures = tuple(Robust(attack=attack.with_protocol(protocol)) for protocol in _PROTOCOLS)
    return Column(title=f"PGD-10 {epsilon}/255", measures=measures)


def _rows(published: dict[str, tuple]) -> tuple[Row, ...]:
    """The rows of the twelve models, with the published numbers of each."""
    return tuple(
        Row(label=label + ending, config=config + file, published=published.get(label + ending, ()))
        for ending, file in (("", ""), (_AUGMENTED, "_augmented"))
        for label, (config, *_) in _MODELS.items()
    )


_ACCURACIES = {
    label + ending: (accuracy, None)
    for label, (_, without, with_augmentation, _) in _MODELS.items()
    for ending, accuracy in (("", without), (_AUGMENTED, with_augmentation))
}
_CONTRASTIVE = tuple(
    Comparison(row=f"{base} contrastive{ending}", against=base + ending)
    for ending in ("", _AUGMENTED)
    for base in ("Normal", "Adversarial", "Certified")
)


def _claim(text: str, columns: str, *pairs: tuple[str, str]) -> Claim:
    """The claim that the first row of each pair lies above the second row."""
    above = tuple(Comparison(row=row, against=against) for row, against in pairs)
    return Claim(text=text, columns=tuple(columns.split(", ")), pairs=above)


def _with(*labels: str) -> tuple[tuple[str, str], ...]:
    """Pairs of each model with augmentation and without."""
    return tuple((label + _AUGMENTED, label) for label in labels)


def _without(*labels: str) -> tuple[tuple[str, str], ...]:
    return tuple((without, augmented) for augmented, without in _with(*labels))


_ALL = tuple(label + ending for ending in ("", _AUGMENTED) for label in _MODELS)

CUSIN = Paper(
    name="cusin",
    title="An Empirical Study of Supervised Contrastive Loss for Enhancing CNN Robustness",
    reference="Cusin and Serafini 2026",
    tables=(
        Table(
            name="Figure 3",
            caption="Accuracy of the twelve models on CIFAR-10",
            protocol="no attack; the authors' code prints what the paper plots",
            columns=(
                Column(title="accuracy", measures=(Clean(),)),
                Column(title="AutoAttack 8/255", measures=(Robust(attack=AutoAttack(), limit=1000),)),
            ),
            rows=_rows(_ACCURACIES),
            comparisons=(
                *_CONTRASTIVE,
                *(Comparison(row=label + _AUGMENTED, against=label) for label in _MODELS),
            ),
            claims=(
                _claim(
                    "Augmentation raises the accuracy of normal and normal contrastive",
                    "accuracy",
                    *_with("Normal", "Normal contrastive"),
                ),
                _claim(
                    "If the plot's labels are swapped, those two are more accurate without augmentation",
                    "accuracy",
                    *_without("Normal", "Normal contrastive"),
                ),
                _claim(
                    "Augmentation does not raise the accuracy of adversarial models and of certified",
                    "accuracy",
                    *_without("Adversarial", "Adversarial contrastive", "Certified"),
                ),
                _claim(
                    "Augmentation raises the accuracy of certified contrastive",
                    "accuracy",
                    *_with("Certified contrastive"),
                ),
                _claim(
                    "With augmentation, contrastive training lowers the accuracy of adversarial training",
                    "accuracy",
                    ("Adversarial, augmented", "Adversarial contrastive, augmented"),
                ),
                _claim(
                    "Certified training lowers accuracy, with augmentation and without",
                    "accuracy",
                    ("Normal", "Certified"),
                    ("Normal, augmented", "Certified, augmented"),
                ),
            ),
            notes=(
                "The plots of the authors' code probably swap the labels of augmentation; the numbers here are as "
                "the code prints them.",
                "The paper's certified loss is cross-entropy on the lower bounds of all logits, which certifies "
                "nothing. Here the variant certified trains on the worst case, with a ramp of epsilon; the variant "
                "certified_contrastive has the paper's loss.",
            ),
        ),
        Table(
            name="Figure 4",
            caption="Robust accuracy = accuracy x attack failure rate",
            protocol="cusin-repo; plotted only",
            columns=tuple(map(_pgd, _EPSILONS)),
            rows=_rows({}),
            comparisons=_CONTRASTIVE,
            claims=(
                _claim(
                    "Adversarial and certified models support larger perturbations than normal ones",
                    "PGD-10 4/255, PGD-10 8/255",
                    *((label, "Normal") for label in ("Adversarial", "Certified")),
                    *((label, "Normal contrastive") for label in ("Adversarial contrastive", "Certified contrastive")),
                ),
                _claim(
                    "Contrastive training makes the normal model without augmentation more robust (by 1 to 2 points)",
                    "PGD-10 1/255, PGD-10 2/255",
                    ("Normal contrastive", "Normal"),
                ),
                _claim(
                    "With augmentation, certified contrastive is more robust than certified",
                    "PGD-10 1/255, PGD-10 2/255",
                    ("Certified contrastive, augmented", "Certified, augmented"),
                ),
                _claim(
                    "All other contrastive models are less robust than those without contrastive loss",
                    "PGD-10 1/255, PGD-10 2/255",
                    ("Adversarial", "Adversarial contrastive"),
                    ("Certified", "Certified contrastive"),
                    ("Normal, augmented", "Normal contrastive, augmented"),
                    ("Adversarial, augmented", "Adversarial contrastive, augmented"),
                ),
                _claim(
                    "Augmentation makes certified contrastive more robust, and the models without contrastive loss",
                    "PGD-10 1/255, PGD-10 2/255",
                    *_with("Certified contrastive", "Normal", "Adversarial", "Certified"),
                ),
            ),
            notes=("The paper plots these numbers without values. PGD-10 and its step, epsilon / 4, are our choice.",),
        ),
        Table(
            name="Table 1",
            caption="Verification of images on which PGD failed: timeout / safe / safe-incomplete",
            protocol='"2/255" of [-1, 1], which is 1/255; 20 images, 180 seconds each',
            columns=(
                Column(
                    title="timeout / safe / safe-incomplete",
                    measures=(Verified(epsilon=1 / 255), Verified(epsilon=2 / 255)),
                ),
            ),
            rows=_rows({label: (counts,) for label, (*_, counts) in _MODELS.items()}),
            notes=(
                "The paper does not say whether its six models were trained with augmentation; they are shown "
                "beside those without.",
                "Counted are the first images that the network classifies correctly and that the attack, APGD on two "
                "losses, did not break. Images that branch and bound broke are among them, in none of the counts.",
            ),
        ),
    ),
    figures=(
        Bars(title="Figure 3: accuracy of the twelve models", table="Figure 3"),
        RobustCurves(title="Figure 4: robust accuracy, without augmentation", table="Figure 4", rows=_ALL[:6]),
        RobustCurves(title="Figure 4: robust accuracy, with augmentation", table="Figure 4", rows=_ALL[6:]),
        Embeddings(
            title="Figure 1: 100 embeddings with and without contrastive loss",
            panels=(("with", "normal_contrastive"), ("without", "normal")),
        ),
        LossCurves(
            title="Losses of training, without augmentation",
            panels=tuple((label, config, None) for label, (config, *_) in _MODELS.items()),
        ),
        Pictures(
            title="PGD-10 at 8/255 of a pixel's range",
            panels=(("Normal", "normal"), ("Normal contrastive", "normal_contrastive"), ("Adversarial", "adversarial")),
            attack=PGD(),
        ),
    ),
    notes=(
        "cusin-repo: epsilon is in units of images in [-1, 1], so half of it in pixels, and the last step of PGD "
        "never counts. What the paper calls {1, 2, 4, 8, 16}/255 is {0.5, 1, 2, 4, 8}/255 of a pixel's range.",
    ),
)
