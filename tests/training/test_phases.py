"""CLAF's Algorithm 1, phase by phase: what moves and what does not; and the engine that runs the phases."""

import dataclasses
import json

import numpy as np
import pytest
from tiny import BATCH, eager_epoch, image_data, moved, runner, snapshot, tiny_clafs, tiny_network, train

from keras_rcl.errors import InvalidInputError
from keras_rcl.measures.embedding_geometry import MEASURES
from keras_rcl.methods.baseline import Baseline
from keras_rcl.runtime.progress import Silent
from keras_rcl.storage.checkpoints import Checkpoints
from keras_rcl.training import run_phases as engine
from keras_rcl.vocabulary.attacks import FGSM
from keras_rcl.vocabulary.phase import SGD, CrossEntropy

FEATURES = {("encoder", kind) for kind in ("kernel", "gamma", "beta", "moving_mean", "moving_variance")} | {
    ("projector", "kernel"),
    ("projector", "bias"),
}
CLASSIFIER = {("classifier", "kernel"), ("classifier", "bias")}
STATISTICS = {("encoder", "moving_mean"), ("encoder", "moving_variance")}
# A bias before a BatchNorm has no gradient but rounding: it may move where the encoder trains.
IDLE = {("encoder", "bias")}

MAY_MOVE = {
    "warm-up": FEATURES,
    "inner classifier": CLASSIFIER,
    "adversarial positives": FEATURES,
    "linear evaluation": CLASSIFIER,
}


def in_order(method):
    """Algorithm 1 at one epoch a stage: warm-up, inner classifier, adversarial positives, linear evaluation."""
    return [step for phase in method.phases() for step in (*phase.refresh, phase)]


@dataclasses.dataclass
class Walked:
    """The weights before a phase began, after it began, before its first epoch, and after that."""

    runner: engine.PhaseRunner
    before: dict
    begun: dict = dataclasses.field(default_factory=dict)
    started: dict = dataclasses.field(default_factory=dict)
    after: dict = dataclasses.field(default_factory=dict)


def walk(network, phase, data=None) -> Walked:
    steps = runner(network, phase, data)
    walked = Walked(steps, before=snapshot(network))
    steps.begin()
    walked.begun = walked.started = snapshot(network)
    steps.run_epoch(Silent(), "")
    walked.after = snapshot(network)
    return walked


@pytest.fixture(scope="module")
def algorithm_1(scripted):
    """The phases and refreshes of a run by name."""
    return scripted["walked"]


@pytest.mark.slow
@pytest.mark.parametrize("name", MAY_MOVE)
def test_algorithm_1_moves(algorithm_1, name):
    walked, expected = algorithm_1[name], MAY_MOVE[name]
    every, some = moved(walked.started, walked.after)
    assert every - IDLE == expected
    assert some - IDLE == expected
    assert not (some & IDLE) or expected == FEATURES


@pytest.mark.slow
def test_only_linear_evaluation_reinitializes_and_only_the_classifier(algorithm_1):
    drawn = {name: moved(walked.before, walked.begun)[1] for name, walked in algorithm_1.items()}
    assert drawn.pop("linear evaluation") == CLASSIFIER
    assert not any(drawn.values())
    begun = algorithm_1["linear evaluation"].begun
    assert not np.any(begun["classifier", "bias"][0])
    # He-normal on the 64-d embedding: a deviation of sqrt(2 / 64), seen in 192 draws
    assert np.std(begun["classifier", "kernel"][0]) == pytest.approx(np.sqrt(2 / 64), rel=0.25)


@pytest.mark.slow
def test_a_phase_that_trains_only_the_classifier_has_no_other_trainable_weight(algorithm_1):
    for name in ("inner classifier", "linear evaluation"):
        trainer = algorithm_1[name].runner.trainer
        kinds = [(variable.name, tuple(variable.shape)) for variable in trainer.trainable_weights]
        assert sorted(kinds) == [("bias", (3,)), ("kernel", (64, 3))]
        assert {tuple(variable.shape) for variable in trainer.optimizer.variables} == {(), (3,), (64, 3)}


@pytest.mark.slow
def test_every_setting_of_the_published_code_trains_together():
    """As scale `claf-code` has it: one epoch of each phase moves the parts that it trains, and every loss is finite."""
    crop = dict(name="simclr", jitter_probability=0, greyscale_probability=0)
    method = tiny_clafs(
        positive_of="crop",
        positive_augmentation=crop,
        head_augmentation=crop,
        projection_normalized=False,
        unit_embeddings=True,
        batchnorm_statistics="moving",
        inner_optimizer_state="anew",
        schedule_over="both_stages",
        optimizer=SGD(learning_rate=0.05, momentum=0, schedule="cosine", final_share=0.001, weight_decay=1e-4),
    )
    network = tiny_network()
    warm_up, positives, evaluation = method.phases()
    for phase in (warm_up, *positives.refresh, dataclasses.replace(positives, refresh=()), evaluation):
        before = snapshot(network)
        metrics = eager_epoch(runner(network, phase))
        every, _ = moved(before, snapshot(network))
        assert np.isfinite(metrics["loss"]) and {(part, "kernel") for part in phase.trains} <= every
        assert ("encoder", "moving_mean") in every


@pytest.mark.slow
def test_moving_statistics_move_and_nothing_else_of_the_encoder():
    network = tiny_network()
    warm_up, inner, _, linear = in_order(tiny_clafs(batchnorm_statistics="moving"))
    assert not inner.frozen_statistics and not linear.frozen_statistics
    walked = walk(network, linear)
    every, some = moved(walked.begun, walked.after)
    assert every == some == CLASSIFIER | STATISTICS
    walked = walk(network, warm_up)
    assert moved(walked.begun, walked.after)[0] - IDLE == FEATURES  # what was frozen trains again


@pytest.mark.parametrize(("inner_start", "drawn"), [("continued", set()), ("reinitialized", CLASSIFIER)])
def test_inner_start(inner_start, drawn):
    network = tiny_network()
    _, inner, _, _ = in_order(tiny_clafs(inner_start=inner_start))
    steps, kernels = runner(network, inner, epochs=2), []
    for epoch in range(2):
        before, steps.epochs_run = snapshot(network), epoch
        steps.begin()
        assert moved(before, snapshot(network))[1] - {("classifier", "bias")} == drawn - {("classifier", "bias")}
        kernels.append(snapshot(network)["classifier", "kernel"][0])
    assert np.array_equal(*kernels) == (not drawn)  # each epoch's draw is its own


def test_final_start_continued_keeps_the_inner_classifier():
    network = tiny_network()
    _, _, _, linear = in_order(tiny_clafs(final_start="continued"))
    walked = walk(network, linear)
    assert moved(walked.before, walked.begun) == (set(), set())
    assert moved(walked.begun, walked.after)[0] == CLASSIFIER


@pytest.mark.parametrize(("state", "precision"), [("kept", "float32"), ("anew", "mixed_float16")])
def test_inner_optimizer_state(state, precision):
    network = tiny_network(precision=precision)
    _, inner, _, _ = in_order(tiny_clafs(inner_optimizer_state=state))
    steps = runner(network, inner, epochs=2, precision=precision)
    steps.begin()
    fresh = [variable.numpy() for variable in steps.optimizer.variables]
    steps.run_epoch(Silent(), "")
    used = [variable.numpy() for variable in steps.optimizer.variables]
    assert any((a != b).any() for a, b in zip(fresh, used, strict=True))
    weights = snapshot(network)
    steps.begin()
    expected = used if state == "kept" else fresh
    for variable, value in zip(steps.optimizer.variables, expected, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    assert moved(weights, snapshot(network)) == (set(), set())


@pytest.mark.parametrize(("state", "spanned"), [("kept", 3 * 2), ("anew", 2)])
def test_an_inner_schedule_spans_all_runs_or_restarts_with_each(tmp_path, monkeypatch, state, spanned):
    class Enough(Exception):
        pass

    def record(network, phase, data, *, epochs, **settings):
        spans[phase.name] = epochs
        if phase.name == "linear evaluation":
            raise Enough

    spans = {}
    monkeypatch.setattr(engine, "PhaseRunner", record)
    method = tiny_clafs(adversarial_epochs=3, inner_epochs=2, linear_epochs=4, inner_optimizer_state=state)
    with pytest.raises(Enough):
        scripted_run(tmp_path, tiny_network(), method)
    assert spans == {"warm-up": 1, "inner classifier": spanned, "adversarial positives": 3, "linear evaluation": 4}


def one_step(phase, terms):
    """The network after one SGD step of the phase with these terms (SGD: what has no gradient does not move)."""
    network = tiny_network()
    phase = dataclasses.replace(phase, terms=terms, optimizer=SGD(learning_rate=0.1, momentum=0.0))
    steps = runner(network, phase, image_data(BATCH))
    begun = snapshot(network)
    eager_epoch(steps)
    return Walked(steps, begun, begun, begun, snapshot(network))


@pytest.mark.slow
def test_an_online_head_learns_behind_a_stop_gradient():
    _, online, _ = tiny_clafs(head="online", attack=FGSM(epsilon=8 / 255)).phases()
    assert not online.refresh and online.detach_classifier
    contrast = online.terms[0]
    with_head = one_step(online, (contrast, CrossEntropy(on="adversarial")))
    without = one_step(online, (contrast, CrossEntropy(on="adversarial", weight=0.0)))
    attached = one_step(
        dataclasses.replace(online, detach_classifier=False), (contrast, CrossEntropy(on="adversarial"))
    )
    assert moved(with_head.begun, with_head.after)[0] - IDLE == FEATURES | CLASSIFIER
    assert not moved(without.begun, without.after)[1] & CLASSIFIER

    def gap(other):
        return max(
            np.abs(a - b).max() for key in FEATURES for a, b in zip(with_head.after[key], other.after[key], strict=True)
        )

    assert gap(without) < 1e-6
    assert gap(attached) > 1e-3  # what the stop-gradient keeps out


# The engine


def scripted_run(folder, network, method, validate=None, seed=0):
    chosen = train(folder, network, method.phases(), evaluate=validate, seed=seed)
    return chosen, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def scripted(tmp_path_factory):
    """A whole run, with the validation's verdict written beforehand."""
    folder, network = tmp_path_factory.mktemp("run"), tiny_network()
    verdicts, seen, made, begun, walked = iter((0.2, 0.7, 0.7, 0.3)), [], [], [], {}

    def validate():
        seen.append(network.get_weights())
        return {"clean_accuracy": 0.5, "robust_accuracy": next(verdicts)}

    class Counted(engine.PhaseRunner):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

        def begin(self):
            begun.append((self.phase.name, self.epochs_run))
            first = walked.setdefault(self.phase.name, Walked(self, before=snapshot(network)))
            super().begin()
            first.begun = first.begun or snapshot(network)

        def run_epoch(self, *args, **kwargs):
            first = walked[self.phase.name]
            first.started = first.started or snapshot(network)
            metrics = super().run_epoch(*args, **kwargs)
            first.after = first.after or snapshot(network)
            return metrics

    method = tiny_clafs(warmup_epochs=2, adversarial_epochs=2, inner_epochs=2, linear_epochs=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "PhaseRunner", Counted)
        chosen, lines = scripted_run(folder, network, method, validate)
    found = dict(folder=folder, network=network, seen=seen, runners=made, begun=begun, chosen=chosen, lines=lines)
    return {**found, "walked": walked}


@pytest.mark.slow
def test_phases_run_in_algorithm_1s_order(scripted):
    expected = [("warm-up", 1), ("warm-up", 2)]
    expected += [("inner classifier", 1), ("inner classifier", 2), ("adversarial positives", 1)]
    expected += [("inner classifier", 3), ("inner classifier", 4), ("adversarial positives", 2)]
    expected += [("linear evaluation", epoch) for epoch in (1, 2, 3, 4)]
    assert [(line["phase"], line["epoch"]) for line in scripted["lines"]] == expected
    assert [line["step"] for line in scripted["lines"]] == list(range(1, len(expected) + 1))


@pytest.mark.slow
def test_a_phase_begins_once_and_a_refresh_before_each_of_its_runs(scripted):
    stages = [("warm-up", 0), ("adversarial positives", 0), ("inner classifier", 0), ("inner classifier", 2)]
    assert scripted["begun"] == [*stages, ("linear evaluation", 0)]


@pytest.mark.slow
def test_no_phase_or_refresh_is_traced_twice(scripted):
    assert {r.phase.name: (r.trainer.traces, r.epochs_run) for r in scripted["runners"]} == {
        "warm-up": (1, 2),
        "inner classifier": (1, 4),
        "adversarial positives": (1, 2),
        "linear evaluation": (1, 4),
    }


@pytest.mark.slow
def test_a_refresh_reuses_its_batches(monkeypatch):
    from keras_rcl.data import pipeline

    traced, augment = [], pipeline.augment
    monkeypatch.setattr(pipeline, "augment", lambda *args: traced.append(args) or augment(*args))
    _, phase, _ = tiny_clafs().phases()
    steps, orders = runner(tiny_network(), phase, epochs=3), set()
    dataset = steps.batches.dataset
    for _ in range(3):
        steps.begin()
        steps.run_epoch(Silent(), "")
        orders.add(tuple(label for _, labels, _ in dataset for label in labels.numpy()))
        assert steps.batches.dataset is dataset
        assert len(traced) == 3  # what all views share, and the two crops, once
    assert len(orders) == 3  # and yet each epoch has its own


@pytest.mark.slow
def test_the_best_weights_by_robust_accuracy_are_kept(scripted):
    assert scripted["chosen"] == {"clean_accuracy": 0.5, "robust_accuracy": 0.7, "epoch": 2}
    checkpoints = Checkpoints(scripted["folder"] / "checkpoints")
    assert checkpoints.names() == ["1-warm-up", "2-adversarial-positives", "3-linear-evaluation", "best", "last"]
    best, last = tiny_network(seed=1), tiny_network(seed=1)
    checkpoints.load(best, "best")
    checkpoints.load(last, "last")

    def same(first, second):
        return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))

    seen = scripted["seen"]
    assert [same(best.get_weights(), weights) for weights in seen] == [False, True, False, False]
    assert [same(last.get_weights(), weights) for weights in seen] == [False, False, False, True]
    assert same(scripted["network"].get_weights(), seen[1])


@pytest.mark.slow
def test_an_error_leaves_the_best_weights_so_far_on_the_disk(tmp_path):
    network, seen = tiny_network(), []

    def validate():
        if seen:
            raise InvalidInputError("of the second epoch")
        seen.append(network.get_weights())
        return {"robust_accuracy": 0.5}

    with pytest.raises(InvalidInputError, match="of the second epoch"):
        train(tmp_path, network, Baseline(epochs=3, batch_size=BATCH).phases(), evaluate=validate)
    ended = network.get_weights()
    Checkpoints(tmp_path / "checkpoints").load(network, "best")
    assert all(np.array_equal(a, b) for a, b in zip(network.get_weights(), seen[0], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(ended, seen[0], strict=True))


@pytest.mark.slow
def test_every_line_has_its_numbers(scripted):
    for line in scripted["lines"]:
        contrastive = line["phase"] in ("warm-up", "adversarial positives")
        attacked = line["phase"] in ("inner classifier", "adversarial positives")
        kinds = {"warm-up": ["augmented"], "inner classifier": ["adversarial"], "linear evaluation": ["clean"]}
        names = {"step", "phase", "epoch", "loss", "learning_rate", "images_per_second"}
        names |= {"supcon", "anchors_without_positives", "collapse_value"} if contrastive else {"cross_entropy"}
        names |= {"zero_gradients"} if attacked else set()
        names |= {f"accuracy_{kind}" for kind in kinds.get(line["phase"], ["adversarial", "augmented"])}
        if line["phase"] != "inner classifier":
            names |= {"monitor_clean_accuracy", "monitor_adversarial_accuracy", "monitor_zero_gradients"}
            names |= {f"{space}_{measure}" for space in ("embedding", "projection") for measure in MEASURES}
        if line["phase"] == "linear evaluation":
            names |= {"validation_clean_accuracy", "validation_robust_accuracy"}
        assert set(line) == names
    assert [line["validation_robust_accuracy"] for line in scripted["lines"][-4:]] == [0.2, 0.7, 0.7, 0.3]


@pytest.mark.slow
def test_without_validation_the_last_weights_stay_and_the_seed_decides_them(tmp_path):
    """`test_resumed_training.py` trains with one seed more than once, which gives the same bits."""
    weights = []
    method = Baseline(epochs=1, batch_size=BATCH, optimizer=SGD(learning_rate=0.05))
    for seed in (0, 1):
        network, folder = tiny_network(), tmp_path / str(len(weights))
        chosen, lines = scripted_run(folder, network, method, seed=seed)
        weights.append(network.get_weights())
        assert chosen == {} and [line["phase"] for line in lines] == ["train"]
        checkpoints, last = Checkpoints(folder / "checkpoints"), tiny_network(seed=1)
        assert "best" not in checkpoints.names()
        checkpoints.load(last, "last")
        for left, kept in zip(last.get_weights(), network.get_weights(), strict=True):
            np.testing.assert_array_equal(left, kept)
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(*weights, strict=True))


@pytest.mark.parametrize(
    ("patience", "robust", "run"),
    [
        (None, [5, 4, 3, 2, 1, 0], 6),
        (1, [5, 6, 6, 9, 9, 9], 3),
        (2, [5, 4, 6, 4, 4, 9], 5),
        (2, [1, 2, 3, 4, 5, 4], 6),
    ],
)
def test_early_stopping(patience, robust, run, tmp_path, monkeypatch):
    """The phase ends after `patience` epochs that are not better; the best weights and all checkpoints are there."""
    monkeypatch.setattr(engine.PhaseRunner, "run_epoch", lambda *args, **kwargs: {"loss": 0.0})
    values = iter(robust)
    (phase,) = Baseline(epochs=6, batch_size=BATCH).phases()
    evaluate = lambda: {"robust_accuracy": next(values)}  # noqa: E731
    best = train(tmp_path, tiny_network(), (phase,), evaluate=evaluate, patience=patience)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == run
    assert best == {"robust_accuracy": max(robust[:run]), "epoch": 1 + robust.index(max(robust[:run]))}
    assert Checkpoints(tmp_path / "checkpoints").names() == ["1-train", "best", "last"]
