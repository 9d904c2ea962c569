"""Attacks as values, and how they are written on the command line."""

import dataclasses
import functools

import pytest

from keras_rcl.errors import InvalidInputError
from keras_rcl.vocabulary.attacks import (
    ATTACKS,
    BIM,
    FGSM,
    PGD,
    AutoAttack,
    AutoPGD,
    CarliniWagner,
    Corruptions,
    Noise,
    RayS,
    Refreshed,
    SmoothedAttack,
    Spatial,
    Square,
    Stored,
    Transfer,
    as_attack,
    as_attacks,
    describe,
    parse_attack,
    to_cli,
)


@pytest.mark.parametrize(
    "text, attack, line",
    [
        ("fgsm", FGSM(), "FGSM linf 8/255"),
        ("fgsm:epsilon=4/255", FGSM(epsilon=4 / 255), "FGSM linf 4/255"),
        ("bim-5:loss=logit_margin", BIM(num_steps=5, loss="logit_margin"), "BIM-5 logit_margin linf 8/255"),
        ("pgd", PGD(), "PGD-10 linf 8/255"),
        ("pgd-40", PGD(num_steps=40), "PGD-40 linf 8/255"),
        (
            "pgd-40:num_restarts=5,norm=l2,epsilon=128/255",
            PGD(num_steps=40, num_restarts=5, norm="l2", epsilon=128 / 255),
            "PGD-40x5 l2 128/255",
        ),
        (
            "pgd: random_start = false, targeted=true, step_size=0.01",
            PGD(random_start=False, targeted=True, step_size=0.01),
            "PGD-10 targeted linf 8/255",
        ),
        ("pgd:norm=l2,epsilon=2", PGD(norm="l2", epsilon=2), "PGD-10 l2 510/255"),
        ("cw", CarliniWagner(), "CW-1000 l2 128/255"),
        ("cw-50:epsilon=1,confidence=2", CarliniWagner(num_steps=50, epsilon=1, confidence=2), "CW-50 l2 1"),
        ("cw-inf", PGD(loss="logit_margin"), "PGD-10 logit_margin linf 8/255"),
        (
            "cw-inf-40:epsilon=4/255",
            PGD(num_steps=40, loss="logit_margin", epsilon=4 / 255),
            "PGD-40 logit_margin linf 4/255",
        ),
        ("rays", RayS(), "RayS-10000 linf 8/255"),
        ("rays-500:epsilon=4/255", RayS(num_queries=500, epsilon=4 / 255), "RayS-500 linf 4/255"),
        ("square-300", Square(num_queries=300), "Square-300 linf 8/255"),
        ("noise:kind=gaussian", Noise(kind="gaussian"), "noise gaussian linf 8/255"),
        ("noise:num_restarts=10,norm=l2", Noise(num_restarts=10, norm="l2"), "noise uniform x10 l2 8/255"),
    ],
)
def test_parse_attack_and_describe(text, attack, line):
    assert parse_attack(text) == attack
    assert describe(attack) == line


def test_an_attack_one_of_several_and_a_text_are_read_alike():
    assert as_attacks("pgd-40") == as_attacks(PGD(num_steps=40)) == as_attacks(["pgd-40"]) == [PGD(num_steps=40)]
    assert Transfer(source="other", attack="pgd-3").attack == PGD(num_steps=3)


def test_what_is_not_an_attack_is_named():
    for given, shown in ((PGD, "the class PGD"), (3, "3"), (None, "None"), (object(), "an object"), ([[]], "a list")):
        with pytest.raises(InvalidInputError, match=f"^{shown} is not an attack; hint: give one, such as"):
            as_attack(given) if not isinstance(given, list) else as_attacks(given)


@pytest.mark.parametrize(
    "text, says",
    [
        ("pdg-40", "unknown attack 'pdg'; choose from fgsm, bim, mifgsm, pgd"),
        ("", "unknown attack ''"),
        ("pgd-forty", "num_steps"),
        ("pgd-0", "num_steps"),
        ("pgd-2.5", "num_steps"),
        ("pgd:epsilon=8", "did you mean 8/255?"),
        ("pgd:epsilon=abc", "'abc' is not a distance"),
        ("pgd:num_stpes=3", "num_stpes: no such field"),
        ("pgd:norm=l3", "'l3'"),
        ("pgd:norm", "'norm' is not key=value"),
        ("fgsm-3", "num_steps: no such field"),
        ("bim:num_restarts=2", "num_restarts: no such field"),
        ("cw:norm=linf", "'l2'"),
        ("cw:binary_search_steps=0", "binary_search_steps"),
        ("cw-infinity", "num_steps"),
        ("cw-inf-0", "num_steps"),
        ("rays-0", "num_queries"),
        ("rays:norm=l2", "'linf'"),
        ("rays:num_steps=3", "num_steps: no such field"),
        ("noise:kind=pink", "'salt_and_pepper'"),
        ("noise-3", "num_steps: no such field"),
    ],
)
def test_invalid_text_is_rejected_in_one_line(text, says):
    with pytest.raises(InvalidInputError) as caught:
        parse_attack(text)
    (line,) = str(caught.value).splitlines()
    assert says in line


@pytest.mark.parametrize("cls", ATTACKS.values())
def test_an_attack_is_frozen_hashable_and_rejects_unknown_fields(cls):
    around = {Transfer: dict(source="saved_models/other"), Refreshed: dict(every=100), SmoothedAttack: {}}
    if cls in around:
        cls = functools.partial(cls, **around[cls])
        attack, same, other = (cls(attack=FGSM(epsilon=value)) for value in ("4/255", 4 / 255, "5/255"))
    elif cls in (Spatial, Corruptions):
        field = {Spatial: "num_rotations", Corruptions: "severity"}[cls]
        attack, same, other = (cls(**{field: value}) for value in ("4", 4, "5"))
    else:
        cls = functools.partial(Stored, folder="adversarial") if cls is Stored else cls
        attack, same, other = (cls(epsilon=value) for value in ("4/255", 4 / 255, "5/255"))
    assert {attack: 1}[same] == 1
    assert attack != other
    with pytest.raises(dataclasses.FrozenInstanceError):
        attack.epsilon = 0.1
    with pytest.raises(InvalidInputError) as caught:
        cls(epsilom=0.1)
    assert str(caught.value).startswith("epsilom: no such field (got 0.1)")


def test_settings_have_names():
    with pytest.raises(InvalidInputError, match=r"^eps: no such field \(got 0.1\); did you mean 'epsilon'\?$"):
        PGD(eps=0.1)
    with pytest.raises(InvalidInputError, match="^0.1 is given to PGD without a name; hint: one of norm, epsilon, "):
        PGD(0.1)


@pytest.mark.parametrize("cls", [BIM, PGD])
@pytest.mark.parametrize("value", [0, -1, 1.5, "many", None])
def test_at_least_one_step(cls, value):
    with pytest.raises(InvalidInputError) as caught:
        cls(num_steps=value)
    assert str(caught.value).startswith("num_steps: ")


@pytest.mark.parametrize("name", ATTACKS)
def test_with_protocol(name):
    """An attack with the field takes any protocol; one without runs in pixels only and raises."""
    needed = {"transfer": {"source": "other"}, "stored": {"folder": "adversarial"}, "refreshed": {"every": 100}}
    attack = ATTACKS[name](**needed.get(name, {}))
    assert attack.with_protocol("pixel") == attack
    if attack.takes_protocol:
        assert attack.with_protocol("claf-repo").threat_model.protocol == "claf-repo"
        assert describe(attack.with_protocol("claf-repo")) == f"{describe(attack)} claf-repo"
    else:
        with pytest.raises(InvalidInputError, match="pixels only, not under claf-repo; protocols are for fgsm, bim"):
            attack.with_protocol("claf-repo")


def test_transfer_needs_a_source_and_an_attack_that_can_be_crafted_elsewhere():
    assert parse_attack("transfer:source=a/b,attack=pgd-40:epsilon=4/255") == Transfer(
        source="a/b", attack=PGD(num_steps=40, epsilon="4/255")
    )
    assert not Transfer(source="other", attack=AutoPGD()).takes_protocol
    for text, says in (
        ("transfer", "source: Field required"),
        ("transfer:source=", "source"),
        ("transfer:source=other,attack=fab", "'fab'"),
        ("transfer:source=other,attack=transfer:source=third", "'transfer'"),
        ("transfer:source=other,attack=pgd-0", "num_steps"),
    ):
        with pytest.raises(InvalidInputError) as caught:
            parse_attack(text)
        (line,) = str(caught.value).splitlines()
        assert says in line


def test_all_errors_are_reported_at_once():
    with pytest.raises(InvalidInputError) as caught:
        PGD(num_steps=0, norm="l7", num_restarts=-1)
    line = str(caught.value)
    assert all(word in line for word in ("num_steps: ", "norm: ", "num_restarts: ")) and "\n" not in line


def test_steps_in_pixels():
    """The default step is a quarter of the radius, all of it for FGSM; a given step does not depend on the radius."""
    assert PGD().resolved_step_size == 2 / 255
    assert BIM(epsilon="4/255").resolved_step_size == 1 / 255
    assert FGSM(epsilon="4/255").resolved_step_size == 4 / 255
    assert PGD(step_size="1/255").with_epsilon(16 / 255) == PGD(step_size=1 / 255, epsilon="16/255")
    assert PGD().with_epsilon(16 / 255).resolved_step_size == 4 / 255
    with pytest.raises(ValueError, match="did you mean 8/255"):
        PGD().with_epsilon(8)


@pytest.mark.parametrize(("step_size", "hint"), [("2", "2/255"), ("0", "a quarter of epsilon")])
def test_a_step_in_0_to_255_or_of_length_0_is_rejected(step_size, hint):
    with pytest.raises(ValueError, match=f"step_size {step_size} .*{hint}"):
        PGD(step_size=step_size)


def test_a_step_may_be_larger_than_a_swept_epsilon():
    assert PGD(step_size="2/255").with_epsilon(0.0).resolved_step_size == 2 / 255


ON_THE_COMMAND_LINE = [
    FGSM(epsilon=0.01, protocol="wang-meanstd"),
    PGD(epsilon=16 / 255, step_size=2 / 255, num_steps=40, norm="l2", random_start=False),
    PGD(loss="logit_margin"),
    PGD(start_deviation=0.001),
    AutoAttack(epsilon=4 / 255, version="rand"),
]


@pytest.mark.parametrize("attack", ON_THE_COMMAND_LINE, ids=to_cli)
def test_to_cli_and_parse_attack_are_inverse(attack):
    assert parse_attack(to_cli(attack)) == attack


def test_to_cli_leaves_out_defaults():
    assert to_cli(PGD()) == "pgd"
    assert to_cli(PGD(num_steps=20, step_size=2 / 255)) == "pgd:step_size=2/255,num_steps=20"
