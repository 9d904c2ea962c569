"""Every variant's phases as text, beside the paper that they are of (SPEC section 3)."""

import dataclasses
import inspect

import pytest

from keras_rcl import config
from keras_rcl.methods import VARIANTS
from keras_rcl.vocabulary.attacks import PGD, describe
from keras_rcl.vocabulary.dataset import CropFlip, NoAugmentation, SimCLR
from keras_rcl.vocabulary.phase import (
    Adam,
    Adversarial,
    Augmented,
    BoostedCrossEntropy,
    Clean,
    CrossEntropy,
    IntervalTightness,
    KLToClean,
    MarginContrastive,
    MisclassifiedKL,
    Phase,
    PrototypeContrastive,
    Ramp,
    ReLUBalance,
    SupCon,
    WeightPerturbation,
)
from keras_rcl.vocabulary.threat import format_pixels

# Wang 2024, section IV: Adam 1e-3, batch 128, 10 epochs.
BASELINE = """
    train: 10 epochs, batch 128
        trains    encoder, classifier
        views     clean
        terms     1 cross_entropy
        optimizer adam 0.001 constant
"""

# Wang 2024, sections III and IV: L = alpha L_SCL + beta L_CE (eq. 3) or alpha L_Margin + beta L_CE (eq. 5), alpha =
# beta = 0.5, m_p = 0.5, m_n = 0.1; "the baseline ResNet-18 model is trained for 10 epochs", then "refined for 10
# additional epochs"; figs. 6 and 7 are the joint loss without a baseline before it.
SCL = """
    joint training: 10 epochs, batch 128
        trains    encoder, projector, classifier
        views     clean
        terms     0.5 supcon(temperature 0.07, mean) + 0.5 cross_entropy
        optimizer adam 0.001 constant
"""

REFINED_SCL = """
    baseline: 10 epochs, batch 128
        trains    encoder, classifier
        views     clean
        terms     1 cross_entropy
        optimizer adam 0.001 constant
    refinement: 10 epochs, batch 128
        trains    encoder, projector, classifier
        views     clean
        terms     0.5 supcon(temperature 0.07, mean) + 0.5 cross_entropy
        optimizer adam 0.001 constant
"""

MARGIN_SCL = """
    baseline: 10 epochs, batch 128
        trains    encoder, classifier
        views     clean
        terms     1 cross_entropy
        optimizer adam 0.001 constant
    margin refinement: 10 epochs, batch 128
        trains    encoder, projector, classifier
        views     clean
        terms     0.5 margin_contrastive(0.5, 0.1) + 0.5 cross_entropy
        optimizer adam 0.001 constant
"""

# CLAF's Table 1 names it and no setting: its own section 4.1 without the attack, "200 epochs in total" and linear
# evaluation as there.
SUPCON_LINEAR = """
    contrastive training: 200 epochs, batch 256
        trains    encoder, projector
        views     simclr | simclr
        terms     1 supcon(temperature 0.07, mean)
        optimizer adam 0.05 cosine
    linear classifier: 100 epochs, batch 256
        trains    classifier
        views     clean
        terms     1 cross_entropy
        optimizer adam 0.001 cosine
"""

# Cusin 2026, section 2.4: "first train the encoder using the SCL [...], then train a classification head"; L = alpha
# L_SCL + (1 - alpha) L_CE on the encoder's output. Epochs, batch and alpha are the published code's.
DOUBLE_TRAINING = """
    contrastive training: 20 epochs, batch 128
        trains    encoder
        views     clean
        terms     1 supcon of embedding(temperature 0.07, mean)
        optimizer adam 0.001 constant
    linear classifier: 10 epochs, batch 128
        trains    classifier
        views     clean
        terms     1 cross_entropy
        optimizer adam 0.001 constant
"""

SINGLE_TRAINING = """
    single training: 30 epochs, batch 128
        trains    encoder, classifier
        views     clean
        terms     0.1 supcon of embedding(temperature 0.07, mean) + 0.9 cross_entropy
        optimizer adam 0.001 constant
"""

# Cusin 2026, section 4: "the images' batch is augmented with Adversarial Examples found by the PGD method (eps =
# 8/255)". The published code: PGD-10 with steps of 2/255, and 64 images where 128 were, "because we add adversarial
# examples"; the contrastive one at temperature 0.1 for 40 epochs, its attack on the same loss, its head on the same
# batch for 10.
ADVERSARIAL = """
    adversarial training: 10 epochs, batch 64
        trains    encoder, classifier
        views     clean | PGD-10 linf 8/255 step 2/255 of clean
        terms     1 cross_entropy
        optimizer adam 0.001 constant
"""

ADVERSARIAL_CONTRASTIVE = """
    adversarial contrastive training: 40 epochs, batch 64
        trains    encoder
        views     clean | SupCon-10 of embeddings linf 8/255 step 2/255 of clean
        terms     1 supcon of embedding(temperature 0.1, mean)
        optimizer adam 0.001 constant
    linear classifier: 10 epochs, batch 64
        trains    classifier
        views     clean | PGD-10 linf 8/255 step 2/255 of clean
        terms     1 cross_entropy
        optimizer adam 0.001 constant
"""

# Madry et al. 2018 at the setting of Rice et al. 2020.
AT = """
    adversarial training: 100 epochs, batch 128
        trains    encoder, classifier
        views     PGD-10 linf 8/255 step 2/255 of crop_flip
        terms     1 cross_entropy
        optimizer sgd 0.1 cosine momentum 0.9 weight decay 0.0005
"""

# Zhang et al. 2019, section 5.3: beta = 6 (1/lambda), k = 10, steps of 2/255 in a ball of 8/255; schedule as for `at`.
TRADES = """
    TRADES: 100 epochs, batch 128
        of        crop_flip, drawn once for all views
        trains    encoder, classifier
        views     clean | PGD-10 kl_to_clean linf 8/255 step 2/255 of clean
        terms     1 cross_entropy on clean + 6 kl_to_clean
        optimizer sgd 0.1 cosine momentum 0.9 weight decay 0.0005
"""

# Wang et al. 2020, sections 3 and 4: BCE(adversarial) + lambda KL(p(clean) || p(adversarial)) (1 - p_y(clean)), lambda
# = 5, PGD-10; schedule as for `at`.
MART = """
    MART: 100 epochs, batch 128
        of        crop_flip, drawn once for all views
        trains    encoder, classifier
        views     clean | PGD-10 linf 8/255 step 2/255 of clean
        terms     1 boosted_cross_entropy on adversarial + 5 misclassified_kl
        optimizer sgd 0.1 cosine momentum 0.9 weight decay 0.0005
"""

# Ours: `at` and `trades` above, SupCon over their views and one more.
AT_SCL = """
    contrastive adversarial training: 100 epochs, batch 128
        of        crop_flip, drawn once for all views
        trains    encoder, projector, classifier
        views     clean | simclr | PGD-10 linf 8/255 step 2/255 of clean
        terms     1 cross_entropy on adversarial + 0.5 supcon(temperature 0.07, mean)
        optimizer sgd 0.1 cosine momentum 0.9 weight decay 0.0005
"""

CONTRAST = "0.5 supcon(temperature 0.07, mean)"

TRADES_SCL = """
    contrastive TRADES: 100 epochs, batch 128
        of        crop_flip, drawn once for all views
        trains    encoder, projector, classifier
        views     clean | simclr | PGD-10 kl_to_clean linf 8/255 step 2/255 of clean
        terms     1 cross_entropy on clean + 6 kl_to_clean + 0.5 supcon(temperature 0.07, mean)
        optimizer sgd 0.1 cosine momentum 0.9 weight decay 0.0005
"""

# Wong et al. 2020, section 4: one step of 1.25 epsilon from a random start; 15 epochs.
FAST_AT = """
    fast adversarial training: 15 epochs, batch 128
        trains    encoder, classifier
        views     PGD-1 linf 8/255 step 10/255 of crop_flip
        terms     1 cross_entropy
        optimizer sgd 0.1 cosine momentum 0.9 weight decay 0.0005
"""

# Kim et al. 2020, sections 3.2 and 4, and their code: temperature 0.5, 7 steps of 0.007, 1000 epochs, then adversarial
# training of all parts for 150.
ROCL_AT = """
    contrastive pre-training: 1000 epochs, batch 256
        trains    encoder, projector
        views     simclr | simclr | SupCon-7 image by image linf 8/255 step 0.007 of simclr
        terms     1 supcon(temperature 0.5, mean, positives by image)
        optimizer sgd 0.1 cosine momentum 0.9 weight decay 1e-06
    adversarial training: 150 epochs, batch 256
        trains    encoder, classifier
        views     PGD-10 linf 8/255 step 0.007 of crop_flip
        terms     1 cross_entropy
        optimizer sgd 0.1 cosine momentum 0.9 weight decay 0.0005
"""

# Landsman et al., sections 2 and 3: a pre-trained network; the examples "as additional positive pairs"; SupCon "on the
# outputs of the layer before the final classification layer"; "Both": "first trained using the SupCon loss [...], then
# the entire model was fully fine-tuned using only the cross-entropy loss"; "Retrained": "we froze the backbone and
# retrained only the classification head using cross-entropy loss on clean data". All numbers are ours.
PGD_BOTH = """
    pre-training: 90 epochs, batch 256
        of        crop_flip, drawn once for all views
        trains    encoder, classifier
        views     clean
        terms     1 cross_entropy
        optimizer sgd 0.1 cosine momentum 0.9 weight decay 0.0001
    SupCon: 10 epochs, batch 256
        of        crop_flip, drawn once for all views
        trains    encoder
        views     clean | PGD-10 linf 8/255 step 2/255 of clean
        terms     1 supcon of embedding(temperature 0.07, mean)
        optimizer sgd 0.01 cosine momentum 0.9 weight decay 0.0001
    cross-entropy: 10 epochs, batch 256
        of        crop_flip, drawn once for all views
        trains    encoder, classifier
        views     clean | PGD-10 linf 8/255 step 2/255 of clean
        terms     1 cross_entropy
        optimizer sgd 0.01 cosine momentum 0.9 weight decay 0.0001
"""
HEAD_RETRAINING = """
    head retraining: 10 epochs, batch 256
        of        crop_flip, drawn once for all views
        trains    classifier
        views     clean
        terms     1 cross_entropy
        optimizer sgd 0.01 cosine momentum 0.9 weight decay 0.0001
"""
_PRETRAINING, _SUPCON, _CROSS_ENTROPY = (PGD_BOTH.splitlines(True)[start:][:6] for start in (1, 7, 13))
PGD_CE = "".join(["\n", *_PRETRAINING, *_CROSS_ENTROPY])
PGD_SUPCON = "".join(["\n", *_PRETRAINING, *_SUPCON])


def with_embedding_attack(text: str) -> str:
    """Landsman et al.: "the same attack strategy", on the "mean squared distance between [...] embedding vectors"."""
    return text.replace("PGD-10", "embedding-10")


# Rahamim and Naeh 2022, Algorithm 1 and section 4.1: f and g by "Adam optimizer, with an initial learning rate of 0.05
# with cosine learning rate decay", batch 256, 60 + 140 epochs; c "each time for 5 epochs using Adam optimizer with a
# learning rate of 0.001", eps = 8/255, eta = 2/255, k = 5; the last "for 100 epochs with Adam optimizer with an initial
# learning rate of 0.001 and cosine learning rate decay". The temperature is the published code's.
CLAFS = """
    warm-up: 60 epochs, batch 256
        trains    encoder, projector
        views     simclr | simclr
        terms     1 supcon(temperature 0.07, mean)
        optimizer adam 0.05 cosine
    adversarial positives: 140 epochs, batch 256
        trains    encoder, projector
        views     simclr | simclr | PGD-5 linf 8/255 step 2/255 of clean
        terms     1 supcon(temperature 0.07, mean)
        optimizer adam 0.05 cosine
        before each epoch
            inner classifier: 5 epochs, batch 256
                trains    classifier
                views     PGD-5 linf 8/255 step 2/255 of clean
                terms     1 cross_entropy
                optimizer adam 0.001 constant
    linear evaluation: 100 epochs, batch 256
        redraws   classifier
        trains    classifier
        views     clean
        terms     1 cross_entropy
        optimizer adam 0.001 cosine
"""

# Shi et al. 2021, section 4.1 for CIFAR-10: Adam 5e-4, batch 128, gradients clipped at 8, 160 epochs, epsilon 0 in the
# first and growing in the next 80; lambda = 0.5 falls as epsilon grows. Cusin 2026, section 4: epsilon 2/255.
CERTIFIED = """
    certified training: 160 epochs, batch 128
        draws     its kernels for intervals
        of        crop_flip, drawn once for all views
        trains    encoder, classifier
        views     clean | worst case ibp (0 to 2/255 smooth over 80 epochs after 1)
        terms     1 cross_entropy on worst_case \
+ (0.5 to 0 smooth over 80 epochs after 1) interval_tightness \
+ (0.5 to 0 smooth over 80 epochs after 1) relu_balance
        optimizer adam 0.0005 steps clipped at 8
"""

# De Palma et al. 2024, eq. 7: alpha L_IBP + (1 - alpha) L(x_adv), on the same schedule; the published code attacks,
# for CIFAR-10 at 2/255, 2.1 times as far as the ball at each step of the ramp, in 8 steps of a quarter of that.
MTL_IBP = """
    MTL-IBP: 160 epochs, batch 128
        draws     its kernels for intervals
        of        crop_flip, drawn once for all views
        trains    encoder, classifier
        views     PGD-8 linf 4.2/255 step 1.05/255 of clean \
(0 to 1 smooth over 80 epochs after 1) \
| worst case ibp (0 to 2/255 smooth over 80 epochs after 1)
        terms     0.996 cross_entropy on adversarial + 0.004 cross_entropy on worst_case \
+ (0.5 to 0 smooth over 80 epochs after 1) interval_tightness \
+ (0.5 to 0 smooth over 80 epochs after 1) relu_balance
        optimizer adam 0.0005 steps clipped at 8
"""

# Mueller et al. 2023, eq. 5 to 7: intervals of a box of radius tau = lambda * epsilon around an image that PGD finds
# within epsilon - tau. lambda = 0.1 at 2/255, 8 steps of half the radius, epsilon 0 in the first two epochs and growing
# in the next 80 (the published code's settings for CIFAR-10).
SABR = """
    SABR: 160 epochs, batch 128
        draws     its kernels for intervals
        of        crop_flip, drawn once for all views
        trains    encoder, classifier
        views     PGD-8 linf 1.8/255 step 0.9/255 of clean \
(0 to 1 smooth over 80 epochs after 2) \
| worst case ibp 0.1 of (0 to 2/255 smooth over 80 epochs after 2)
        terms     1 cross_entropy on worst_case \
+ (0.5 to 0 smooth over 80 epochs after 2) interval_tightness \
+ (0.5 to 0 smooth over 80 epochs after 2) relu_balance
        optimizer adam 0.0005 steps clipped at 8
"""

# Cusin 2026, section 4, CROWN-IBP at 2/255 without a ramp: SupCon on the lower bounds of the embedding, then
# cross-entropy on the lower bounds of all logits (the authors' code).
CERTIFIED_CONTRASTIVE = """
    certified contrastive training: 20 epochs, batch 128
        trains    encoder
        views     clean | worst case crown-ibp lower bounds 2/255
        terms     1 supcon of embedding(temperature 0.07, mean) on worst_case
        optimizer adam 0.001 constant
    linear classifier: 10 epochs, batch 128
        trains    classifier
        views     clean | worst case crown-ibp lower bounds 2/255
        terms     1 cross_entropy on worst_case
        optimizer adam 0.001 constant
"""

SOUND_CERTIFIED_CONTRASTIVE = """
    certified contrastive training: 20 epochs, batch 128
        trains    encoder, classifier
        views     clean | worst case crown-ibp (0 to 2/255 smooth over 10 epochs after 1)
        terms     1 cross_entropy on worst_case + 0.1 supcon of embedding(temperature 0.07, mean)
        optimizer adam 0.001 constant
"""

# Cohen et al. 2019, section 4 and appendix: base classifiers "trained with Gaussian data augmentation" for 90 epochs,
# batch 256, SGD 0.1, momentum 0.9, weight decay 1e-4.
SMOOTHED = """
    training on noise: 90 epochs, batch 256
        adds      noise 0.25 to all views
        of        crop_flip, drawn once for all views
        trains    encoder, classifier
        views     clean
        terms     1 cross_entropy
        optimizer sgd 0.1 cosine momentum 0.9 weight decay 0.0001
"""

# Salman et al. 2019, section 3 and pseudocode 1: PGD on the mean softmax over m draws, then all m noisy copies of the
# attacked image. The published code: from the image, steps of 2 epsilon / num_steps; 256 rows in m copies; 150 epochs.
SMOOTH_ADV = """
    SmoothAdv: 150 epochs, batch 128
        adds      noise 0.25 to all views
        of        crop_flip, drawn once for all views
        trains    encoder, classifier
        views     ATTACKED | ATTACKED
        terms     1 cross_entropy
        optimizer sgd 0.1 cosine momentum 0.9 weight decay 0.0001
""".replace("ATTACKED", "PGD-4 through 2 draws of noise 0.25 l2 0.5 step 0.25 of clean")

# Each switch of `clafs`, and the lines by which it differs: the paper's ablations, then its published code, then ours.
SWITCHES = {
    "inner_classifier=natural": """
        - inner classifier: views PGD-5 linf 8/255 step 2/255 of clean
        + inner classifier: views clean
    """,
    "linear_evaluation=adversarial": """
        - linear evaluation: views clean
        + linear evaluation: views PGD-5 linf 8/255 step 2/255 of clean
    """,
    "inner_start=reinitialized": """
        + inner classifier: redraws classifier
    """,
    "final_start=continued": """
        - linear evaluation: redraws classifier
    """,
    "projection_normalized=False": """
        - warm-up: terms 1 supcon(temperature 0.07, mean)
        + warm-up: terms 1 supcon(temperature 0.07, mean, un-normalized)
    """,
    "positive_of=crop": """
        - adversarial positives: views simclr | simclr | PGD-5 linf 8/255 step 2/255 of clean
        + adversarial positives: views simclr | simclr | PGD-5 linf 8/255 step 2/255 of simclr
    """,
    "batchnorm_statistics=moving": """
        + inner classifier: BatchNorm statistics of the frozen encoder move
        + linear evaluation: BatchNorm statistics of the frozen encoder move
    """,
    "inner_optimizer_state=anew": """
        + inner classifier: resets its optimizer
    """,
    "reduction=sum": """
        - warm-up: terms 1 supcon(temperature 0.07, mean)
        - adversarial positives: terms 1 supcon(temperature 0.07, mean)
        + warm-up: terms 1 supcon(temperature 0.07, sum)
        + adversarial positives: terms 1 supcon(temperature 0.07, sum)
    """,
    "unit_embeddings=True": """
        + warm-up: projector of embeddings at unit length
    """,
    "schedule_over=both_stages": """
        + warm-up: epochs 0 to 60 of 200 of its schedule
        + adversarial positives: epochs 60 to 200 of 200 of its schedule
    """,
    "head=online": """
        - adversarial positives: trains encoder, projector
        - adversarial positives: terms 1 supcon(temperature 0.07, mean)
        - adversarial positives: before each epoch
        - inner classifier: 5 epochs, batch 256
        - inner classifier: trains classifier
        - inner classifier: views PGD-5 linf 8/255 step 2/255 of clean
        - inner classifier: terms 1 cross_entropy
        - inner classifier: optimizer adam 0.001 constant
        + adversarial positives: trains encoder, projector, classifier behind a stop-gradient
        + adversarial positives: terms 1 supcon(temperature 0.07, mean) + 1 cross_entropy on adversarial
    """,
    "separate_batchnorm=True": """
        + adversarial positives: BatchNorm of their own for views that are not adversarial
    """,
}


def view_text(view) -> str:
    if view.kind == "adversarial":
        step = format_pixels(view.attack.resolved_step_size)
        growth = f" {number_text(view.growth)}" if view.growth else ""
        return f"{describe(view.attack)} step {step} of {view_text(view.of)}{growth}"
    if view.kind == "worst_case":
        outputs = {"lower_bounds": " lower bounds", "embedding_lower_bounds": " lower bounds of embedding"}
        outputs = outputs.get(view.outputs, "")
        share = f" {view.share:g} of" if view.share < 1 else ""
        return f"worst case {view.bound}{outputs}{share} {number_text(view.epsilon, format_pixels)}"
    return policy_text(view.policy) if isinstance(view, Augmented) else view.kind


def number_text(number, text="{:g}".format) -> str:
    if not isinstance(number, Ramp):
        return text(number)
    when = f"over {number.epochs:g} epochs after {number.after:g}"
    return f"({text(number.start)} to {text(number.stop)} {number.shape} {when})"


def term_text(term) -> str:
    said = f"{number_text(term.weight)} {term.term}"
    if isinstance(term, SupCon):
        fields = f"temperature {term.temperature:g}, {term.reduction}" + (not term.normalized) * ", un-normalized"
        fields += (term.positives == "image") * ", positives by image"
        fields += f", anchors on {term.anchors_on}" if term.anchors_on else ""
        fields += f", {term.detached} detached" if term.detached else ""
        fields += term.hard_positives * ", hard positives" + term.hard_negatives * ", hard negatives"
        on = f" on {term.on}" if term.on else ""
        return f"{said}{(term.reads == 'embedding') * ' of embedding'}({fields}){on}"
    if isinstance(term, MarginContrastive):
        return f"{said}({term.positive_margin:g}, {term.negative_margin:g})"
    if isinstance(term, (KLToClean, MisclassifiedKL, IntervalTightness, ReLUBalance)):
        return said
    if isinstance(term, PrototypeContrastive):
        return f"{said}(temperature {term.temperature:g}{term.detached * ', detached'})"
    assert isinstance(term, (CrossEntropy, BoostedCrossEntropy))
    said += f" on {term.on}" if term.on else ""
    smoothing, margin = getattr(term, "label_smoothing", 0.0), getattr(term, "margin", 0.0)
    return said + (f" smoothed by {smoothing:g}" if smoothing else "") + (f" margin {margin:g}" if margin else "")


def optimizer_text(word) -> str:
    momentum = f" momentum {word.momentum:g}" if word.name == "sgd" else ""
    decay = f" weight decay {word.weight_decay:g}" if word.weight_decay else ""
    decay += f" to {word.final_share:g}" if word.final_share else ""
    decay += f" after a warm-up of {word.warmup_share:g}" if word.warmup_share else ""
    decay += f" epsilon {word.epsilon:g}" if word.name == "adam" and word.epsilon != 1e-7 else ""
    clip = f" clipped at {word.clip_norm:g}" if word.name == "adam" and word.clip_norm else ""
    return f"{word.name} {word.learning_rate:g} {word.schedule}{momentum}{decay}{clip}"


def policy_text(policy) -> str:
    if policy.name == "chain":
        return " then ".join(map(policy_text, policy.policies))
    fields = {name: value for name, value in vars(policy).items() if name != "name"}
    changed = [f"{name} {value:g}" for name, value in fields.items() if value != getattr(type(policy)(), name)]
    return " ".join([policy.name, *changed])


def phase_text(phase) -> list[str]:
    """Everything that a phase says."""
    lines = [f"{phase.name}: {phase.epochs} epochs, batch {phase.batch_size}"]
    if phase.reinitialize:
        lines.append(f"    redraws   {', '.join(phase.reinitialize)}")
    if phase.interval_initialization:
        lines.append("    draws     its kernels for intervals")
    if phase.fresh_optimizer:
        lines.append("    resets its optimizer")
    if phase.ema:
        lines.append(f"    keeps     a moving average of decay {phase.ema:g}")
    if phase.awp.gamma:
        lines.append(
            f"    perturbs  kernels by {phase.awp.gamma:g} of their length after {phase.awp.warmup_epochs} epochs"
        )
    if phase.separate_batchnorm:
        lines.append("    BatchNorm of their own for views that are not adversarial")
    if not phase.frozen_statistics:
        lines.append("    BatchNorm statistics of the frozen encoder move")
    if phase.unit_embeddings:
        lines.append("    projector of embeddings at unit length")
    if phase.schedule_epochs:
        after, total = phase.schedule_after, phase.schedule_epochs
        lines.append(f"    epochs {after} to {after + phase.epochs} of {total} of its schedule")
    if phase.noise:
        lines.append(f"    adds      noise {phase.noise:g} to all views")
    if not isinstance(phase.augmentation, NoAugmentation):
        lines.append(f"    of        {policy_text(phase.augmentation)}, drawn once for all views")
    lines += [
        f"    trains    {', '.join(phase.trains)}" + phase.detach_classifier * " behind a stop-gradient",
        f"    views     {' | '.join(view_text(view) for view in phase.views)}",
        f"    terms     {' + '.join(term_text(term) for term in phase.terms)}",
        f"    optimizer {optimizer_text(phase.optimizer)}",
    ]
    if phase.refresh:
        lines.append("    before each epoch")
        lines += [f"        {line}" for inner in phase.refresh for line in phase_text(inner)]
    return lines


def text_of(method) -> list[str]:
    return [line for phase in method.phases() for line in phase_text(phase)]


def lines_of(text: str) -> list[str]:
    return inspect.cleandoc(text).splitlines()


def sentences(lines: list[str]) -> list[str]:
    """Each line with the phase that it is of."""
    found, phase = [], None
    for line in lines:
        phase, rest = line.strip().split(": ") if " epochs, " in line else (phase, line)
        found.append(f"{phase}: {' '.join(rest.split())}")
    assert len(set(found)) == len(found)
    return found


TEXTS = {
    "baseline": BASELINE,
    "scl": SCL,
    "refined_scl": REFINED_SCL,
    "margin_scl": MARGIN_SCL,
    "supcon_linear": SUPCON_LINEAR,
    "single_training": SINGLE_TRAINING,
    "at": AT,
    "fast_at": FAST_AT,
    "trades": TRADES,
    "mart": MART,
    "at_scl": AT_SCL,
    "trades_scl": TRADES_SCL,
    "rocl_at": ROCL_AT,
    "clafs": CLAFS,
    "pgd_ce": PGD_CE,
    "pgd_supcon": PGD_SUPCON,
    "pgd_both": PGD_BOTH,
    "sc_ce": with_embedding_attack(PGD_CE),
    "sc_supcon": with_embedding_attack(PGD_SUPCON),
    "sc_both": with_embedding_attack(PGD_BOTH),
    "sc_supcon_retrained": with_embedding_attack(PGD_SUPCON) + HEAD_RETRAINING.lstrip("\n"),
    "adversarial": ADVERSARIAL,
    "adversarial_contrastive": ADVERSARIAL_CONTRASTIVE,
    "certified": CERTIFIED,
    "certified_contrastive": CERTIFIED_CONTRASTIVE,
    "mtl_ibp": MTL_IBP,
    "sabr": SABR,
    "smoothed": SMOOTHED,
    "smooth_adv": SMOOTH_ADV,
}


@pytest.mark.parametrize("name", TEXTS)
def test_the_variant_is_the_papers(name):
    assert text_of(VARIANTS[name]()) == lines_of(TEXTS[name])


def test_every_variant_has_its_text_in_the_order_of_the_table():
    assert list(VARIANTS) == list(TEXTS)


@pytest.mark.parametrize("name", ["at", "trades", "mart", "at_scl", "trades_scl"])
def test_the_average_and_the_perturbation_are_one_setting_each(name):
    phase, *lines = lines_of(TEXTS[name])
    assert text_of(VARIANTS[name](ema=0.999)) == [phase, "    keeps     a moving average of decay 0.999", *lines]
    perturbs = "    perturbs  kernels by 0.005 of their length after 10 epochs"
    assert text_of(VARIANTS[name](awp=dict(gamma=0.005, warmup_epochs=10))) == [phase, perturbs, *lines]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_that_mixes_views_can_separate_their_batchnorm(name):
    def mixes(phase):
        kinds = {view.kind for view in phase.views}
        return "adversarial" in kinds and len(kinds) > 1 and "encoder" in phase.trains and not phase.worst_case

    mixed = [phase.name for phase in VARIANTS[name]().phases() if mixes(phase)]
    if not mixed:
        assert "separate_batchnorm" not in VARIANTS[name].__dataclass_fields__
        return
    separated = [phase for phase in VARIANTS[name](separate_batchnorm=True).phases() if phase.separate_batchnorm]
    assert [phase.name for phase in separated] == mixed


@pytest.mark.parametrize(
    "changes",
    [
        dict(views=(Clean(),)),
        dict(views=(Adversarial(attack=PGD()),)),
        dict(trains=("classifier",)),
        dict(awp=WeightPerturbation(gamma=0.01)),
    ],
)
def test_what_has_no_two_branches_is_refused(changes):
    fields = dict(name="p", epochs=1, trains=("encoder",), views=(Clean(), Adversarial(attack=PGD())))
    with pytest.raises(ValueError, match="'p': separate_batchnorm needs"):
        Phase(terms=(CrossEntropy(),), separate_batchnorm=True, **{**fields, **changes})


@pytest.mark.parametrize(
    ("setting", "before", "after"),
    [
        (dict(second_view="none"), "| simclr |", "|"),
        (dict(second_view="crop_flip"), "| simclr |", "| crop_flip |"),
        (dict(clean_view=False), "clean | simclr |", "simclr |"),
        (dict(clean_view=False, second_view="none"), "clean | simclr | ", ""),
        (dict(contrast=dict(term="margin_contrastive", weight=0.3)), CONTRAST, "0.3 margin_contrastive(0.5, 0.1)"),
        (
            dict(contrast=dict(term="prototype_contrastive", detached=True)),
            CONTRAST,
            "1 prototype_contrastive(temperature 0.1, detached)",
        ),
        (
            dict(contrast=SupCon(weight=0.5, anchors_on="adversarial", detached="clean", hard_negatives=True)),
            "(temperature 0.07, mean)",
            "(temperature 0.07, mean, anchors on adversarial, clean detached, hard negatives)",
        ),
        (dict(label_smoothing=0.1), "cross_entropy on adversarial", "cross_entropy on adversarial smoothed by 0.1"),
        (dict(margin=3), "cross_entropy on adversarial", "cross_entropy on adversarial margin 3"),
        (dict(attack=dict(name="supcon")), "PGD-10", "SupCon-10"),
        (dict(attack=dict(name="joint", weight=0.5)), "PGD-10", "joint-10 + 0.5 SupCon"),
    ],
)
def test_what_at_scl_contrasts_and_attacks_are_settings(setting, before, after):
    assert before in AT_SCL
    assert text_of(VARIANTS["at_scl"](**setting)) == lines_of(AT_SCL.replace(before, after))


@pytest.mark.parametrize("name", ["smooth_adv", "smoothed"])
def test_the_contrast_of_noisy_copies_is_one_setting(name):
    method = VARIANTS[name](contrast=dict(term="supcon", weight=0.5), num_draws=2)
    views, terms = ("clean | clean", "1 cross_entropy")
    if name == "smooth_adv":
        attacked = "PGD-4 through 2 draws of noise 0.25 l2 0.5 step 0.25 of clean"
        views, terms = f"clean | {attacked} | {attacked}", "1 cross_entropy on adversarial"
    lines = [" ".join(line.split()) for line in text_of(method)]
    assert {f"views {views}", f"terms {terms} + {CONTRAST}", "trains encoder, projector, classifier"} <= {*lines}
    (headless,) = VARIANTS[name](contrast=SupCon(reads="embedding")).phases()
    assert headless.trains == ("encoder", "classifier")


def test_without_a_projection_the_projector_does_not_train():
    (phase,) = VARIANTS["trades_scl"](contrast=SupCon(reads="embedding")).phases()
    assert phase.trains == ("encoder", "classifier")


@pytest.mark.parametrize(("name", "passes"), [("at", 23), ("trades", 27), ("at_scl", 29), ("trades_scl", 30)])
def test_the_passes_that_the_recipes_say_an_image_costs(name, passes):
    """Ten steps forward and back, TRADES' look at the clean image, and three a view: forward, and back twice over."""
    (phase,) = VARIANTS[name]().phases()
    (attacked,) = (view for view in phase.views if view.kind == "adversarial")
    assert attacked.attack.cost + 3 * len(phase.views) == passes
    if name.endswith("scl"):
        assert f"costs {passes} passes" in inspect.cleandoc(VARIANTS[name].__doc__)


@pytest.mark.parametrize(
    ("name", "settings", "epochs"),
    [
        ("at", {}, 8),
        ("at_scl", {}, 6),
        ("trades_scl", {}, 6),
        ("at", dict(awp=dict(gamma=0.01)), 7),
        ("fast_at", {}, 36),
    ],
)
def test_a_budget_of_passes_gives_the_epochs(name, settings, epochs):
    """184 passes: of 23 (AT), 29 (with contrast), 30, 26 (AWP passes each view twice: 6 in place of 3), 5 (FGSM)."""
    (phase,) = VARIANTS[name](passes=184, **settings).phases()
    assert phase.epochs == epochs
    (phase,) = VARIANTS[name](passes=1, **settings).phases()
    assert phase.epochs == 1


def test_cusins_double_training_is_a_setting_of_supcon_linear():
    adam = Adam(learning_rate=1e-3)
    short = dict(encoder_epochs=20, linear_epochs=10, batch_size=128, optimizer=adam, linear_optimizer=adam)
    method = VARIANTS["supcon_linear"](reads="embedding", num_views=1, augmentation="none", **short)
    assert text_of(method) == lines_of(DOUBLE_TRAINING)


def test_the_sound_form_of_certified_contrastive():
    assert text_of(VARIANTS["certified_contrastive"](form="sound")) == lines_of(SOUND_CERTIFIED_CONTRASTIVE)


def test_kappa_takes_from_one_cross_entropy_what_it_gives_to_the_other():
    (phase,) = VARIANTS["certified"](initial_kappa=1, final_kappa=0.5, regularization=0).phases()
    when = "smooth over 80 epochs after 1"
    assert [term_text(term) for term in phase.terms] == [
        f"(1 to 0.5 {when}) cross_entropy on clean",
        f"(0 to 0.5 {when}) cross_entropy on worst_case",
    ]


@pytest.mark.parametrize("name", ["pgd_ce", "sc_supcon"])
def test_landsmans_examples_by_themselves(name):
    _, mixed = (phase.views for phase in VARIANTS[name]().phases())
    _, alone = (phase.views for phase in VARIANTS[name](mixed=False).phases())
    assert [view.kind for view in mixed] == ["clean", "adversarial"] and alone == mixed[1:]


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_changes_these_lines_and_no_others(switch):
    field, _, value = switch.partition("=")
    changed = VARIANTS["clafs"](**{field: {"True": True, "False": False}.get(value, value)})
    before, after = (sentences(lines) for lines in (lines_of(CLAFS), text_of(changed)))
    differing = [f"- {line}" for line in before if line not in after] + [
        f"+ {line}" for line in after if line not in before
    ]
    assert differing == lines_of(SWITCHES[switch])


def test_every_switch_of_clafs_is_shown():
    """Its fields of a few words each, and those that are true or false; their other value is a row above."""
    clafs = VARIANTS["clafs"]()
    switches = {
        field.name
        for field in dataclasses.fields(clafs)
        if isinstance(getattr(clafs, field.name), (str, bool)) and field.name != "name"
    }
    assert switches == {switch.partition("=")[0] for switch in SWITCHES}


def test_the_three_pgd_lengths_of_table_3_are_one_setting():
    attack = VARIANTS["clafs"]().attack
    for steps in (20, 40, 100):
        method = VARIANTS["clafs"](attack=dataclasses.replace(attack, num_steps=steps))
        assert text_of(method) == [line.replace("PGD-5", f"PGD-{steps}") for line in lines_of(CLAFS)]


@pytest.mark.parametrize("name", ["baseline", "scl", "single_training", "at", "fast_at"])
@pytest.mark.parametrize(
    ("policy", "shown"), [(NoAugmentation(), "clean"), (CropFlip(), "crop_flip"), (SimCLR(), "simclr")]
)
def test_with_and_without_augmentation(name, policy, shown):
    views = [line for line in text_of(VARIANTS[name](augmentation=policy)) if "views" in line]
    assert len(views) == 1 and views[0].endswith(f" {shown}")


@pytest.mark.parametrize("name", ["refined_scl", "margin_scl", "adversarial", "adversarial_contrastive"])
def test_augmentation_reaches_every_phase(name):
    plain, varied = (VARIANTS[name](augmentation=policy).phases() for policy in (NoAugmentation(), CropFlip()))
    assert len(plain) == len(varied)
    for before, after in zip(plain, varied, strict=True):
        moved = "views" if name.endswith("scl") else "augmentation"
        assert getattr(before, moved) != getattr(after, moved)


def test_total_epochs_count_the_refreshes():
    # every epoch of the second stage is preceded by N = 5 of the classifier
    assert [phase.total_epochs for phase in VARIANTS["clafs"]().phases()] == [60, 140 * (1 + 5), 100]


@pytest.mark.parametrize("name", ["pgd_supcon", "pgd_both", "sc_supcon", "sc_supcon_retrained"])
def test_landsmans_loss_for_stored_examples_is_one_setting(name):
    usual, euclidean = (VARIANTS[name](contrast=contrast).phases() for contrast in ("supcon", "euclidean_supcon"))
    assert [term.term for term in euclidean[1].terms] == ["euclidean_supcon"]
    assert usual[:1] + usual[2:] == euclidean[:1] + euclidean[2:]


@pytest.mark.parametrize("name", ["scl", "refined_scl"])
def test_wangs_mean_over_all_anchors_is_one_setting(name):
    phase = VARIANTS[name](anchors="all").phases()[-1]
    assert [term.anchors for term in phase.terms if isinstance(term, SupCon)] == ["all"]
    assert config.load(config.CONFIGS / f"papers/wang/{name}.yaml", scale="full").method.anchors == "all"


@pytest.mark.parametrize(("name", "epochs"), [("baseline", [10]), ("scl", [10]), ("refined_scl", [10, 10])])
def test_the_epochs_of_wangs_text_are_a_scale(name, epochs):
    """Section IV: 10 epochs, and 10 more of refinement; its figures have 200."""
    for scale, factor in (("text", 1), ("full", 20)):
        experiment = config.load(config.CONFIGS / f"papers/wang/{name}.yaml", scale=scale)
        assert [phase.epochs for phase in experiment.method.phases()] == [factor * count for count in epochs]
        assert (experiment.dataset.name, experiment.network.encoder) == ("cifar100", "resnet18")


@pytest.mark.parametrize("name", ["scl", "refined_scl", "margin_scl"])
def test_wangs_parallel_streams_are_one_setting(name):
    assert all(len(phase.views) == 2 for phase in VARIANTS[name](num_views=2).phases())


# CLAF's published code at its last commit: stage 1 contrasts g(f / |f|) as it is; one SGD of 0.05 without momentum and
# with weight decay 1e-4, by one cosine to a thousandth over 200 epochs; the positive starts from a resized crop without
# jitter, on which c is trained too, in training mode, by a new Adam per epoch; the last c has a constant rate.
CLAF_CODE = """
    warm-up: 60 epochs, batch 256
        projector of embeddings at unit length
        epochs 0 to 60 of 200 of its schedule
        trains    encoder, projector
        views     simclr | simclr
        terms     1 supcon(temperature 0.07, mean, un-normalized)
        optimizer sgd 0.05 cosine momentum 0 weight decay 0.0001 to 0.001
    adversarial positives: 140 epochs, batch 256
        epochs 60 to 200 of 200 of its schedule
        trains    encoder, projector
        views     simclr | simclr | PGD-5 linf 8/255 claf-repo step 2/255 of CROP
        terms     1 supcon(temperature 0.07, mean)
        optimizer sgd 0.05 cosine momentum 0 weight decay 0.0001 to 0.001
        before each epoch
            inner classifier: 5 epochs, batch 256
                resets its optimizer
                BatchNorm statistics of the frozen encoder move
                trains    classifier
                views     PGD-5 linf 8/255 claf-repo step 2/255 of CROP
                terms     1 cross_entropy
                optimizer adam 0.001 constant epsilon 1e-08
    linear evaluation: 100 epochs, batch 256
        redraws   classifier
        BatchNorm statistics of the frozen encoder move
        trains    classifier
        views     CROP
        terms     1 cross_entropy
        optimizer adam 0.001 constant epsilon 1e-08
""".replace("CROP", "simclr jitter_probability 0 greyscale_probability 0")


def test_claf_code_is_the_published_code():
    experiment = config.load("configs/papers/claf/clafs_claf_repo.yaml", scale="claf-code")
    assert text_of(experiment.method) == lines_of(CLAF_CODE)
    assert (experiment.dataset.validation_fraction, experiment.dataset.limit) == (0, None)
    network = experiment.network
    assert (network.encoder, network.projection_hidden, network.projection_dim) == ("resnet18", 512, 128)
    assert (network.normalization, network.initialization) == ("claf-repo", "pytorch")


# Cusin's notebook and the counters in the published weights: file -> phases as text. Epsilons are in [-1, 1].
THEIRS = "adam 0.001 constant epsilon 1e-08"
JITTERED = "crop_flip then rotation then colour_jitter then gaussian_noise"  # 15 degrees; 0.4, 0.4, 0.4, 0.1; 0.05 / 2
CUSIN_CODE = {
    "normal": ("train: 30 epochs, batch 128", "views clean"),
    "normal_augmented": ("train: 60 epochs, batch 128", f"views {JITTERED}"),
    "normal_contrastive": (
        "contrastive training: 20 epochs, batch 128",
        "terms 1 supcon of embedding(temperature 0.07, mean)",
        "linear classifier: 10 epochs, batch 128",
    ),
    "normal_contrastive_augmented": ("contrastive training: 50 epochs, batch 128", f"views {JITTERED}"),
    "adversarial": (
        "adversarial training: 10 epochs, batch 64",
        "views clean | PGD-10 linf 8/255 cusin-repo step 2/255 of clean",
    ),
    "adversarial_augmented": (
        "adversarial training: 60 epochs, batch 64",
        f"of {JITTERED}, drawn once for all views",
        "views clean | PGD-10 linf 8/255 cusin-repo step 2/255 of clean",
    ),
    "adversarial_contrastive": (
        "adversarial contrastive training: 40 epochs, batch 128",
        "views clean | SupCon-10 of embeddings together linf 8/255 cusin-repo step 2/255 of clean",
        "terms 1 supcon of embedding(temperature 0.1, mean)",
        "linear classifier: 10 epochs, batch 128",
    ),
    "adversarial_contrastive_augmented": ("adversarial contrastive training: 50 epochs, batch 64",),
    "certified": (
        "certified training: 30 epochs, batch 128",
        "views clean | worst case crown-ibp lower bounds 1/255",
        "terms 1 cross_entropy on worst_case",
    ),
    "certified_augmented": ("certified training: 30 epochs, batch 128", f"of {JITTERED}, drawn once for all views"),
    "certified_contrastive": (
        "certified contrastive training: 20 epochs, batch 128",
        "views clean | worst case crown-ibp lower bounds of embedding 1/255",
        "terms 1 supcon of embedding(temperature 0.07, mean) on worst_case",
        "linear classifier: 10 epochs, batch 128",
        "terms 1 cross_entropy on worst_case",
    ),
    "certified_contrastive_augmented": ("linear classifier: 10 epochs, batch 128",),
}


@pytest.mark.slow_after(12)
@pytest.mark.parametrize("row", CUSIN_CODE)
def test_cusin_code_is_the_notebook(row):
    experiment = config.load(f"configs/papers/cusin/{row}.yaml", scale="cusin-code")
    found = [" ".join(line.split()) for line in text_of(experiment.method)]
    assert set(CUSIN_CODE[row]) <= {*found}
    assert {line for line in found if line.startswith("optimizer")} == {f"optimizer {THEIRS}"}
    assert (experiment.dataset.limit, experiment.dataset.validation_fraction) == (40_000, 0)
    network = experiment.network
    assert (network.encoder, network.normalization, network.initialization) == ("strided_cnn", "minus1to1", "pytorch")
    assert network.projection_dim is None
    halves = [attack for attack in experiment.evaluation.attacks if attack.step_size == attack.epsilon / 2]
    assert [(round(attack.epsilon * 255), attack.protocol) for attack in halves] == [
        (epsilon, "cusin-repo") for epsilon in (1, 2, 4, 8, 16)
    ]
