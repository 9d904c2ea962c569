"""The trainer: one joint pass, its metrics, what it differentiates; and the optimizers."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from reference import objectives as loops
from tiny import BATCH, eager_epoch, image_data, image_part, runner, snapshot, tiny_clafs, tiny_network

from keras_rcl.data.sources import ImageData
from keras_rcl.networks import parts
from keras_rcl.networks.two_headed import batch_norms
from keras_rcl.runtime.progress import Silent
from keras_rcl.training import phase_runner
from keras_rcl.training import views as batch_views
from keras_rcl.training.optimizers import make_optimizer
from keras_rcl.training.steps.step import StepInput
from keras_rcl.training.views import gradient_fn, stack_views
from keras_rcl.vocabulary.attacks import FGSM, PGD
from keras_rcl.vocabulary.dataset import CropFlip
from keras_rcl.vocabulary.phase import SGD, Adam, Adversarial, Augmented, Clean, CrossEntropy, Phase, SupCon

STILL = SGD(learning_rate=1e-12, momentum=0.0)


def phase_of(*views, trains=("classifier",), **fields) -> Phase:
    fields = {"terms": (CrossEntropy(),), "optimizer": STILL, "batch_size": BATCH, **fields}
    return Phase(name="test", epochs=1, trains=trains, views=views, **fields)


def strided_convolution(x, kernel, bias):
    """3x3, stride 2, one ring of zeros around: [N, H, W, C] -> [N, H / 2, W / 2, F], by its definition."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    out = np.zeros((len(x), x.shape[1] // 2, x.shape[2] // 2, kernel.shape[-1])) + bias
    for row in range(out.shape[1]):
        for column in range(out.shape[2]):
            patch = padded[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            out[:, row, column] += np.einsum("nhwc,hwcf->nf", patch, kernel)
    return out


def test_batch_statistics_are_of_one_joint_pass_over_all_views():
    # An attack of radius 0 crafts through every weight and gives its start back.
    idle = Adversarial(attack=PGD(epsilon=0, num_steps=3), of=Clean())
    views = (Clean(), Augmented(policy=CropFlip(padding=4)), idle)
    phase = phase_of(*views, trains=("encoder", "projector"), terms=(SupCon(),))
    network = tiny_network()
    steps = runner(network, phase, image_data(BATCH))
    ((images, _, _),) = steps.batches.dataset
    conv, norm = (parts(network)["encoder"].get_layer(name) for name in ("conv1", "conv1_norm"))
    pixels = images.numpy().reshape(-1, 8, 8, 1)  # all views as one batch
    assert not np.allclose(*images.numpy()[:2])
    outputs = strided_convolution((pixels - 0.35) / 0.3, *(weight.numpy() for weight in conv.weights))
    eager_epoch(steps)
    np.testing.assert_allclose(norm.moving_mean, 0.1 * outputs.mean(axis=(0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, 0.9 + 0.1 * outputs.var(axis=(0, 1, 2)), rtol=1e-4)


def test_views_are_stacked_view_by_view_with_their_labels():
    network = tiny_network()
    phase = phase_of(Clean(), Adversarial(attack=FGSM(epsilon=8 / 255)))
    images = tf.random.stateless_uniform([2, 4, 8, 8, 1], [0, 1])
    labels = tf.constant([2, 0, 1, 1])
    stacked, tiled, zeros = stack_views(network, phase, images, labels, tf.constant([3, 4]))
    np.testing.assert_array_equal(tiled, [2, 0, 1, 1, 2, 0, 1, 1])
    np.testing.assert_array_equal(stacked[:4], images[0])
    moved = np.abs(stacked[4:] - images[1])
    assert moved.max() <= 8 / 255 + 1e-6 and np.median(moved) > 7 / 255
    before = loops.cross_entropy(labels.numpy(), network(images[1], training=False)["logits"].numpy())
    after = loops.cross_entropy(labels.numpy(), network(stacked[4:], training=False)["logits"].numpy())
    assert (after > before).all()
    assert 0 <= float(zeros) < 0.1


def test_examples_to_train_on_have_all_steps_of_the_attack():
    """`cusin-repo` is [-1, 1], where 8/255 is 4/255 of a pixel; its last step is lost in evaluations only."""
    network, seed = tiny_network(), tf.constant([3, 4])
    images, labels = tf.random.stateless_uniform([4, 8, 8, 1], [0, 1]), tf.constant([2, 0, 1, 1])
    theirs = PGD(epsilon=8 / 255, step_size=2 / 255, num_steps=3, random_start=False, protocol="cusin-repo")
    pixel = PGD(epsilon=4 / 255, step_size=1 / 255, num_steps=3, random_start=False)
    found, expected = (
        batch_views.attacked(network, attack, seed, images, labels, dtype="float32")[0] for attack in (theirs, pixel)
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.slow
def test_metrics_of_an_epoch_are_those_of_its_images(monkeypatch):
    network, data = tiny_network(), image_data()
    steps = runner(network, phase_of(Clean(), optimizer=Adam(learning_rate=0.05)), data)
    for _ in range(3):
        steps.run_epoch(Silent(), "")
    labels = data.train.labels.copy()
    labels[:8] = (labels[:8] + 1) % 3  # wrong from here on, as are the predictions, some of them
    data = dataclasses.replace(data, train=dataclasses.replace(data.train, labels=labels))
    idle = Adversarial(attack=FGSM(epsilon=0), of=Clean())
    phase = phase_of(Clean(), idle, terms=(CrossEntropy(on="clean"), CrossEntropy(weight=0.5, on="adversarial")))
    steps = runner(network, phase, data)
    clock = iter((100.0, 102.0))
    monkeypatch.setattr(phase_runner, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    metrics = steps.run_epoch(Silent(), "")
    pixels, labels = data.train.images.astype("float32") / 255, data.train.labels
    logits = network(pixels, training=False)["logits"].numpy()
    accuracy, entropy = (logits.argmax(1) == labels).mean(), loops.cross_entropy(labels, logits).mean()
    assert 0.4 < accuracy <= 0.75
    expected = {
        "accuracy_clean": accuracy,
        "accuracy_adversarial": accuracy,
        "cross_entropy_clean": entropy,
        "cross_entropy_adversarial": entropy,
        "loss": 1.5 * entropy,
        "learning_rate": 1e-12,
        "images_per_second": len(labels) / 2.0,
    }
    assert metrics.pop("zero_gradients") < 0.1
    assert metrics == pytest.approx(expected, rel=1e-4)


def test_metrics_are_reset_each_epoch():
    steps = runner(tiny_network(), phase_of(Clean()), epochs=2)
    first, second = (steps.run_epoch(Silent(), "")["cross_entropy"] for _ in range(2))
    assert second == pytest.approx(first, rel=1e-4)  # nothing moves: the same images in another order
    head = parts(steps.network)["classifier"]
    head.set_weights([np.zeros_like(weight) for weight in head.get_weights()])
    assert steps.run_epoch(Silent(), "")["cross_entropy"] == pytest.approx(math.log(3), rel=1e-4)


def test_a_classifier_that_ignores_its_input_has_only_zero_gradients():
    network = tiny_network()
    head = parts(network)["classifier"]
    head.set_weights([np.zeros_like(weight) for weight in head.get_weights()])
    steps = runner(network, phase_of(Adversarial(attack=PGD(num_steps=2))), image_data(BATCH))
    assert eager_epoch(steps)["zero_gradients"] == 1.0


def test_a_batch_without_positives_moves_nothing():
    network = tiny_network()
    three = image_part(3, seed=0)
    data = ImageData(name="three", class_names=("a", "b", "c"), train=three, validation=three, test=three)
    phase = phase_of(Clean(), trains=("encoder", "projector"), terms=(SupCon(),), optimizer=SGD(learning_rate=1.0))
    steps, before = runner(network, phase, data), snapshot(network)
    metrics = steps.run_epoch(Silent(), "")
    assert metrics["anchors_without_positives"] == 1.0 and metrics["supcon"] == metrics["loss"] == 0.0
    assert metrics["collapse_value"] == pytest.approx(math.log(2))
    after = snapshot(network)
    for key in before:
        if "moving" not in key[1]:
            assert all(np.array_equal(a, b) for a, b in zip(before[key], after[key], strict=True)), key


def operations(phase) -> set[str]:
    """The kinds of operation that a training step executes: those that its outputs and its assignments need."""
    steps = runner(tiny_network(), phase, image_data(BATCH))
    step = tf.function(steps.trainer.train_step, autograph=False)
    graph = step.get_concrete_function(steps.batches.dataset.element_spec).graph
    needed, reached = [*graph.control_outputs, *(output.op for output in graph.outputs)], set()
    while needed:
        operation = needed.pop()
        if operation not in reached:
            reached.add(operation)
            needed += [*operation.control_inputs, *(tensor.op for tensor in operation.inputs)]
    return {operation.type for operation in reached}


@pytest.mark.slow
def test_a_classifier_only_phase_differentiates_no_encoder():
    warm_up, _, linear = tiny_clafs().phases()
    backward = {"Conv2DBackpropFilter", "Conv2DBackpropInput"}
    assert operations(warm_up) > backward | {"Conv2D"}
    varied = dataclasses.replace(linear, augmentation=CropFlip(padding=1))
    assert operations(varied) & (backward | {"Conv2D"}) == {"Conv2D"}
    assert not operations(linear) & (backward | {"Conv2D"})  # its images are the same ones in every epoch


# Optimizers


def pytorch_sgd(start, target, *, rate, momentum, decay, steps) -> list[float]:
    """PyTorch's SGD: weight_decay * w is part of the gradient, here of (w - target)^2 / 2, or of 0 without target."""
    weight, buffer, path = start, 0.0, []
    for _ in range(steps):
        gradient = 0.0 if target is None else weight - target
        buffer = momentum * buffer + gradient + decay * weight
        weight -= rate * buffer
        path.append(weight)
    return path


def our_sgd(start, target, *, rate, momentum, decay, steps) -> list[float]:
    optimizer = make_optimizer(SGD(learning_rate=rate, momentum=momentum, weight_decay=decay), steps)
    weight, path = tf.Variable(start), []
    for _ in range(steps):
        optimizer.apply([tf.zeros([]) if target is None else weight - target], [weight])
        path.append(float(weight))
    return path


def test_sgd_without_momentum_decays_weights_as_pytorch_does():
    setting = dict(rate=0.02, momentum=0.0, decay=0.25, steps=50)
    assert our_sgd(2.0, 1.0, **setting) == pytest.approx(pytorch_sgd(2.0, 1.0, **setting), rel=1e-5)


@pytest.mark.slow
def test_sgd_with_momentum_does_so_in_the_long_run():
    setting = dict(rate=0.02, momentum=0.9, decay=0.25, steps=300)
    expected = pytorch_sgd(2.0, 1.0, **setting)[-1]
    assert expected == pytest.approx(1 / (1 + 0.25), rel=1e-3)  # where decay and gradient balance
    assert our_sgd(2.0, 1.0, **setting)[-1] == pytest.approx(expected, rel=1e-3)
    setting = dict(rate=0.002, momentum=0.9, decay=0.25, steps=300)
    free = pytorch_sgd(2.0, None, **setting)
    assert free[-1] < 0.5  # 2 exp(-rate * decay / (1 - momentum) * steps) = 2 exp(-1.5)
    assert our_sgd(2.0, None, **setting) == pytest.approx(free, rel=0.06)


def test_adams_epsilon_is_added_to_the_root_of_the_second_moment():
    """The first step of Kingma and Ba's efficient order: rate sqrt(1 - b2) / (1 - b1) m / (sqrt(v) + epsilon)."""
    gradient, moved = 1e-7, []
    for epsilon in (1e-8, 1e-7):
        weight = tf.Variable(0.0)
        make_optimizer(Adam(learning_rate=0.1, epsilon=epsilon), 1).apply([tf.constant(gradient)], [weight])
        root = math.sqrt(0.001 * gradient**2)
        expected = -0.1 * math.sqrt(0.001) / 0.1 * (0.1 * gradient) / (root + epsilon)
        assert float(weight) == pytest.approx(expected, rel=1e-4)
        moved.append(float(weight))
    assert moved[0] < 1.5 * moved[1] < 0


@pytest.mark.parametrize("word", [SGD(learning_rate=0.1), Adam(learning_rate=0.1)])
def test_without_weight_decay_none_is_applied(word):
    optimizer, weight = make_optimizer(word, 1), tf.Variable([3.0])
    optimizer.apply([tf.zeros(1)], [weight])
    assert weight.numpy() == 3.0


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_cosine_schedule_falls_to_zero(kind):
    optimizer = make_optimizer(kind(learning_rate=0.05, schedule="cosine"), 40)
    rates = []
    for step in (0, 10, 20, 30, 40):
        optimizer.iterations.assign(step)
        rates.append(float(optimizer.learning_rate))
    expected = [0.025 * (1 + math.cos(math.pi * share)) for share in (0, 0.25, 0.5, 0.75, 1)]
    assert rates == pytest.approx(expected, abs=1e-7)
    assert rates[0] == pytest.approx(0.05) and rates[-1] == 0.0


def test_a_cosine_ends_at_its_share_and_goes_on_in_the_next_phase():
    """0.05 (f + (1 - f) (1 + cos(pi t)) / 2) with f = 0.001, as CLAF's code; two phases share one curve of 40 steps."""
    word = SGD(learning_rate=0.05, schedule="cosine", final_share=0.001)
    first, second = make_optimizer(word, 40), make_optimizer(word, 40, 30)
    rates = []
    for optimizer, step in ((first, 0), (first, 20), (first, 30), (second, 0), (second, 10)):
        optimizer.iterations.assign(step)
        rates.append(float(optimizer.learning_rate))
    curve = [0.05 * (0.001 + 0.999 * (1 + math.cos(math.pi * t)) / 2) for t in (0, 0.5, 0.75, 0.75, 1)]
    assert rates == pytest.approx(curve, rel=1e-5)


def test_a_cosine_with_a_warmup():
    """Ten of 40 steps rise linearly from 1/25 of the rate, a cosine over the other 30 follows."""
    optimizer = make_optimizer(Adam(learning_rate=0.5, schedule="cosine", warmup_share=0.25), 40)
    rates = []
    for step in (0, 5, 10, 20, 40):
        optimizer.iterations.assign(step)
        rates.append(float(optimizer.learning_rate))
    curve = [0.5 * (1 + math.cos(math.pi * t)) / 2 for t in (0, 1 / 3, 1)]
    assert rates == pytest.approx([0.02, 0.26, *curve], rel=1e-5, abs=1e-9)
    with pytest.raises(ValueError, match="warmup_share 0.1 needs schedule cosine, not constant"):
        SGD(warmup_share=0.1)


def test_two_stages_share_one_schedule():
    first, second, _ = tiny_clafs(warmup_epochs=1, adversarial_epochs=3, schedule_over="both_stages").phases()
    runs = [runner(tiny_network(), dataclasses.replace(phase, refresh=())) for phase in (first, second)]
    starts, steps = [run.learning_rate for run in runs], runs[0].batches.steps_per_epoch
    assert starts == pytest.approx([0.01, 0.005 * (1 + math.cos(math.pi / 4))], rel=1e-5)
    runs[0].optimizer.iterations.assign(steps)
    assert runs[0].learning_rate == pytest.approx(starts[1], rel=1e-5)


def test_the_projector_reads_unit_embeddings_where_the_phase_says_so():
    (phase, *_) = tiny_clafs(unit_embeddings=True, projection_normalized=False).phases()
    network, trainer = (run := runner(tiny_network(), phase)).network, run.trainer
    images = tf.random.stateless_uniform([4, 8, 8, 1], [0, 1])
    labels = np.array([0, 1, 0, 1])
    outputs = trainer(StepInput(images, labels), training=True)
    v = outputs["embedding"].numpy()
    (kernel, bias), (kernel2, bias2) = (
        layer.get_weights() for layer in network.get_layer("projector").layers if layer.get_weights()
    )
    hidden = np.maximum((v / np.linalg.norm(v, axis=1, keepdims=True)) @ kernel + bias, 0)
    projection = hidden @ kernel2 + bias2
    np.testing.assert_allclose(outputs["unnormalized_projection"], projection, rtol=1e-3, atol=1e-5)
    unit = projection / np.linalg.norm(projection, axis=1, keepdims=True)
    np.testing.assert_allclose(outputs["projection"], unit, rtol=1e-3, atol=1e-5)


def test_constant_schedule_is_constant():
    optimizer = make_optimizer(Adam(learning_rate=1e-3), 40)
    optimizer.iterations.assign(40)
    assert float(optimizer.learning_rate) == pytest.approx(1e-3)


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_the_schedule_spans_the_phase(precision):
    phase = phase_of(Clean(), optimizer=Adam(learning_rate=0.05, schedule="cosine"))
    steps = runner(tiny_network(precision=precision), phase, epochs=2, precision=precision)
    rates = [steps.run_epoch(Silent(), "")["learning_rate"] for _ in range(2)]
    assert rates == pytest.approx([0.025, 0.0], abs=1e-7)


@pytest.mark.slow
def test_attacks_of_a_training_have_the_requested_dtype(monkeypatch):
    """What its attacks see is the folded network in bfloat16; what it learns from is the network in float32."""
    asked, images = [], image_data().train.images[:5].astype("float32") / 255

    def folded(network, reads, dtype):
        asked.append(dtype)
        return at_inference(network, reads, dtype)

    at_inference = batch_views.at_inference
    monkeypatch.setattr(batch_views, "at_inference", folded)
    phase = phase_of(Clean(), Adversarial(attack=FGSM(epsilon=8 / 255)))
    networks = [tiny_network() for _ in range(2)]
    for network, dtype in zip(networks, ("float32", "bfloat16"), strict=True):
        eager_epoch(runner(network, phase, attack_dtype=dtype))
    assert set(asked[: len(asked) // 2]) == {"float32"} and set(asked[len(asked) // 2 :]) == {"bfloat16"}
    first, second = (network(images, training=False)["logits"].numpy() for network in networks)
    np.testing.assert_allclose(first, second, atol=0.05 * np.abs(first).max())


@pytest.mark.parametrize("reads", ["logits", "embedding", "projection", ("logits", "projection")])
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_what_an_attack_sees_is_the_network_at_inference(reads, precision):
    """In float32 its BatchNorms are folded; either way they neither read the batch's statistics nor move their own."""
    network, images = tiny_network(precision=precision), image_data().train.images[:5].astype("float32") / 255
    rng = np.random.default_rng(0)
    for layer in batch_norms(network):
        for variable in (layer.gamma, layer.moving_mean, layer.moving_variance):
            variable.assign(rng.uniform(0.5, 2.0, variable.shape))
    before = network.get_weights()
    seen, outputs = gradient_fn(network, reads)(images), network(images, training=False)
    names, seen = ((reads,), (seen,)) if isinstance(reads, str) else (reads, seen)
    for name, one in zip(names, seen, strict=True):
        np.testing.assert_allclose(one, outputs[name], atol=1e-5)
    for one, other in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    rounded = np.array(gradient_fn(network, names[0], "bfloat16")(images))
    np.testing.assert_allclose(rounded, outputs[names[0]], atol=0.05 * np.abs(outputs[names[0]]).max())
