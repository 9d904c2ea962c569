"""Landsman et al."""

import math

from keras_rcl.vocabulary.attacks import PGD, AutoAttack, Embedding
from keras_rcl.vocabulary.paper import (
    Claim,
    Clean,
    Column,
    Comparison,
    Embeddings,
    Paper,
    Pictures,
    Robust,
    Row,
    StoredExamples,
    Table,
)

_PGD = PGD(epsilon=8 / 255, step_size=2 / 255, num_steps=10)
_SC = Embedding(epsilon=8 / 255, step_size=2 / 255, num_steps=10)
_ROWS = {  # label: (config, accuracies of Table 1, losses of Table 2), adversarial before clean
    "Clean": ("clean", (2.28, 81.49), ("6.9071", "6.5415")),
    "PGD - CE Loss": ("pgd_ce", (69.12, 72.22), ("6.2583", "6.2300")),
    "PGD - SupCon Loss": ("pgd_supcon", (17.88, 40.28), ("6.9067", "6.9045")),
    "PGD - Both Loss": ("pgd_both", (66.40, 70.31), ("6.2822", "6.2510")),
    "SC - CE Loss": ("sc_ce", (11.88, 73.12), ("6.7986", "6.2117")),
    "SC - SupCon Loss": ("sc_supcon", (18.44, 40.82), ("6.9063", "6.9039")),
    "SC - Both Loss": ("sc_both", (11.88, 73.12), ("6.7986", "6.2117")),
    "SC - SupCon Retrained": ("sc_supcon_retrained", (17.20, 31.35), ("6.9028", "6.8963")),
}

CLASSES = 1000


def mean_probability(loss: str) -> float:
    """The mean probability of the right class, in percent, of a loss of Table 2.

    Cross-entropy of probabilities p in place of logits is log(sum_k exp(p_k)) - p_y. For 1,000 classes its first term
    lies between 6.9088 (uniform) and 6.9095 (one class certain), so the loss is 6.909 - p_y to 0.0004.
    """
    logs = (math.log(CLASSES) + 1 / CLASSES, math.log(CLASSES - 1 + math.e))
    return round(100 * max(0.0, sum(logs) / 2 - float(loss)), 1)


_PGD_COLUMN, _SC_COLUMN, _CLEAN_COLUMN = "Adversarial (PGD-10 8/255)", "SC-10 8/255", "Clean"


def _above(text: str, column: str, row: str, *others: str) -> Claim:
    return Claim.above(text, (column,), row, *others)


LANDSMAN = Paper(
    name="landsman",
    title="Adversarially Enhanced Supervised Contrastive Learning: Balancing Robustness and Performance",
    reference="Landsman, Zhao and Chari",
    tables=(
        Table(
            name="Table 1",
            caption="Accuracy, on ImageNet-1k with a pre-trained ResNet-50 in the paper",
            protocol="no stated protocol",
            columns=(
                Column(title=_PGD_COLUMN, measures=(Robust(attack=_PGD),)),
                Column(title=_CLEAN_COLUMN, measures=(Clean(),)),
                Column(title=_SC_COLUMN, measures=(Robust(attack=_SC),)),
                Column(title="AutoAttack 8/255", measures=(Robust(attack=AutoAttack(), limit=1000),)),
            ),
            rows=(
                *(
                    Row(label=label, config=config, published=(*accuracies, None, None))
                    for label, (config, accuracies, _) in _ROWS.items()
                ),
                *(
                    Row(label=f"{label}, Euclidean", config=f"{_ROWS[label][0]}_euclidean")
                    for label in ("PGD - SupCon Loss", "SC - SupCon Loss")
                ),
                Row(label="PGD - CE Loss, refreshed", config="pgd_ce_refreshed"),
            ),
            comparisons=(
                Comparison(row="PGD - CE Loss", against="Clean"),
                Comparison(row="PGD - SupCon Loss", against="Clean"),
                Comparison(row="PGD - Both Loss", against="PGD - CE Loss"),
                Comparison(row="SC - SupCon Loss", against="SC - CE Loss"),
                Comparison(row="SC - SupCon Retrained", against="SC - SupCon Loss"),
            ),
            claims=(
                _above(
                    "Cross-entropy on clean images alone is the most accurate",
                    _CLEAN_COLUMN,
                    "Clean",
                    *(label for label in _ROWS if label != "Clean"),
                ),
                _above(
                    "Of those trained against PGD, cross-entropy alone is the most robust",
                    _PGD_COLUMN,
                    *("PGD - CE Loss", "PGD - SupCon Loss", "PGD - Both Loss"),
                ),
                _above("SupCon against PGD gains some robustness", _PGD_COLUMN, "PGD - SupCon Loss", "Clean"),
                _above(
                    "Of those trained against SC, SupCon alone is the most robust",
                    _PGD_COLUMN,
                    *("SC - SupCon Loss", "SC - CE Loss", "SC - Both Loss"),
                ),
                _above(
                    "A retrained head does not recover the accuracy of cross-entropy",
                    _CLEAN_COLUMN,
                    *("SC - CE Loss", "SC - SupCon Retrained"),
                ),
                Claim(
                    text="All models are vulnerable to the SC attack",
                    columns=(_CLEAN_COLUMN,),
                    pairs=tuple(Comparison(row=label, against=label) for label in _ROWS),
                    above_column=_SC_COLUMN,
                ),
            ),
            notes=(
                "The paper states neither epsilon, steps, epochs nor learning rate. 8/255 and ten steps of 2/255 "
                "are our choice.",
                "SC - CE and SC - Both are the same row to the last digit, in both tables.",
                "The paper concludes that all models are vulnerable to the embedding (SC) attack but shows no number "
                "for it. Here it is a column, and the conclusion is that each row is less accurate under it.",
                "The rows SupCon have the loss of Khosla et al. For stored examples the paper describes another loss, "
                "Euclidean distances masked by label and summed per example; the rows Euclidean have it. The paper "
                "does not say what pairs of two classes add. If they add nothing, as here, one embedding for all "
                "images is the minimum: trained against PGD, the loss falls from 77 in the first epoch to 0.3 in the "
                "second, and the classifier is right on 10 % of the images.",
                "The row refreshed has examples that are crafted every 312 steps, two epochs at scale cpu, and kept in "
                "between, the second of the paper's three sources of examples. They are in memory, so the row "
                "has no full scale.",
                "69.1 % of adversarial images right at 72.2 % of clean ones suggests examples that were crafted once, "
                "on the base network. Here each network is attacked with its own gradients, which breaks more images.",
            ),
        ),
        Table(
            name="Table 2",
            caption="Losses",
            protocol="no stated protocol",
            columns=(
                Column(title="Adversarial loss"),
                Column(title="Clean loss"),
                Column(title="Adversarial, mean probability of the right class"),
                Column(title="Clean, mean probability of the right class"),
            ),
            rows=tuple(
                Row(label=label, config=config, published=(*losses, *map(mean_probability, losses)))
                for label, (config, _, losses) in _ROWS.items()
            ),
            notes=(
                "Every loss lies between 6.21 and 6.91, as does cross-entropy of probabilities in place of logits (a "
                "softmax too many) of 1,000 classes: it is 6.909 less the mean probability of the right class, to "
                "0.0004. So the losses can be read as these probabilities, in percent, which are computed from them in "
                "the last two columns. No probability is measured here.",
                "The networks of SupCon give the right class a mean probability of at most 1.3 %, also on clean "
                "images, of which they get 31 to 41 % right. Their probabilities are almost uniform.",
            ),
        ),
    ),
    stored=(
        StoredExamples(
            folder="adversarial/landsman-sc",
            proxy="claf/scl",
            attack=_SC,
        ),
    ),
    figures=(
        Embeddings(
            title="Embeddings of test images",
            panels=(("Clean", "clean"), ("PGD - CE", "pgd_ce"), ("PGD - SupCon", "pgd_supcon")),
        ),
        Pictures(
            title="PGD-10 at 8/255",
            panels=(("Clean", "clean"), ("PGD - CE", "pgd_ce"), ("SC - CE", "sc_ce")),
            attack=_PGD,
        ),
    ),
    notes=(
        "Scale cpu is Cusin's CNN on 20,000 training images of CIFAR-10 in place of a pre-trained ResNet-50 on "
        "ImageNet-1k; the pre-training is the first phase of each row. The order of the rows can be compared with "
        "the paper, the numbers cannot. Ten epochs of pre-training do not converge, and all rows but Clean train for "
        "four or eight more. That Clean is not the most accurate row at this scale may be due to that.",
        "The SC examples of training are stored once, as in the paper. At scale cpu they are made with the encoder of "
        "CLAF's SCL row as the proxy, at full scale with DINOv2-small, as in the paper. The column SC-10 uses the "
        "embedding of the attacked network.",
        "Full scale reads ImageNet and the stored examples from their files. It has not been run.",
        "PGD examples are crafted for each batch; the paper stored them once.",
    ),
)
