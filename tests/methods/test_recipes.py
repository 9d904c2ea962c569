"""Every variant's phases as text, beside the paper that they are of (SPEC section 3)."""

import dataclasses
import inspect

import pytest

from keras_rcl.methods import VARIANTS
from keras_rcl.vocabulary.attack import describe
from keras_rcl.vocabulary.dataset import CropFlip, NoAugmentation, SimCLR
from keras_rcl.vocabulary.phase import Augmented, CrossEntropy, KLToClean, SupCon
from keras_rcl.vocabulary.threat import format_pixels

# Wang 2024, section IV: Adam 1e-3, batch 128, 10 epochs.
BASELINE = """
    train: 10 epochs, batch 128
        trains    encoder, classifier
        views     clean
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
        draws     classifier anew
        trains    classifier
        views     clean
        terms     1 cross_entropy
        optimizer adam 0.001 cosine
"""

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
        + inner classifier: draws classifier anew
    """,
    "final_start=continued": """
        - linear evaluation: draws classifier anew
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
        + inner classifier: starts its optimizer anew
    """,
    "reduction=sum": """
        - warm-up: terms 1 supcon(temperature 0.07, mean)
        - adversarial positives: terms 1 supcon(temperature 0.07, mean)
        + warm-up: terms 1 supcon(temperature 0.07, sum)
        + adversarial positives: terms 1 supcon(temperature 0.07, sum)
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
}


def view_text(view) -> str:
    if view.kind == "adversarial":
        step = format_pixels(view.attack.resolved_step_size)
        return f"{describe(view.attack)} step {step} of {view_text(view.of)}"
    return view.policy.name if isinstance(view, Augmented) else view.kind


def term_text(term) -> str:
    if isinstance(term, SupCon):
        fields = f"temperature {term.temperature:g}, {term.reduction}" + (not term.normalized) * ", un-normalized"
        return f"{term.weight:g} supcon({fields})"
    if isinstance(term, KLToClean):
        return f"{term.weight:g} kl_to_clean"
    assert isinstance(term, CrossEntropy)
    return f"{term.weight:g} cross_entropy" + (f" on {term.on}" if term.on else "")


def optimizer_text(word) -> str:
    momentum = f" momentum {word.momentum:g}" if word.name == "sgd" else ""
    decay = f" weight decay {word.weight_decay:g}" if word.weight_decay else ""
    return f"{word.name} {word.learning_rate:g} {word.schedule}{momentum}{decay}"


def phase_text(phase) -> list[str]:
    """Everything that a phase says."""
    lines = [f"{phase.name}: {phase.epochs} epochs, batch {phase.batch_size}"]
    if phase.reinitialize:
        lines.append(f"    draws     {', '.join(phase.reinitialize)} anew")
    if phase.fresh_optimizer:
        lines.append("    starts its optimizer anew")
    if not phase.frozen_statistics:
        lines.append("    BatchNorm statistics of the frozen encoder move")
    if not isinstance(phase.augmentation, NoAugmentation):
        lines.append(f"    of        {phase.augmentation.name}, drawn once for all views")
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


@pytest.mark.parametrize(("name", "golden"), [("baseline", BASELINE), ("at", AT), ("trades", TRADES), ("clafs", CLAFS)])
def test_the_variant_is_the_papers(name, golden):
    assert text_of(VARIANTS[name]()) == lines_of(golden)


def test_every_variant_has_its_text():
    assert set(VARIANTS) == {"baseline", "at", "trades", "clafs"}


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_changes_these_lines_and_no_others(switch):
    field, _, value = switch.partition("=")
    changed = VARIANTS["clafs"](**{field: False if value == "False" else value})
    before, after = (sentences(lines) for lines in (lines_of(CLAFS), text_of(changed)))
    differing = [f"- {line}" for line in before if line not in after] + [
        f"+ {line}" for line in after if line not in before
    ]
    assert differing == lines_of(SWITCHES[switch])


def test_every_switch_of_clafs_is_shown():
    """Its fields of a few words each, and the one that is true or false; their other value is a row above."""
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


@pytest.mark.parametrize("name", ["baseline", "at"])
@pytest.mark.parametrize(
    ("policy", "shown"), [(NoAugmentation(), "clean"), (CropFlip(), "crop_flip"), (SimCLR(), "simclr")]
)
def test_with_and_without_augmentation(name, policy, shown):
    views = [line for line in text_of(VARIANTS[name](augmentation=policy)) if "views" in line]
    assert len(views) == 1 and views[0].endswith(f" {shown}")


def test_total_epochs_count_the_refreshes():
    # every epoch of the second stage is preceded by N = 5 of the classifier
    assert [phase.total_epochs for phase in VARIANTS["clafs"]().phases()] == [60, 140 * (1 + 5), 100]
