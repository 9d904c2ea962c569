"""Refreshed examples are crafted at regular intervals, with the weights of that time, of every image."""

import numpy as np
import pytest
from tiny import BATCH, image_data, runner, tiny_network

from keras_rcl.attacks import craft
from keras_rcl.data.adversarial_store import whole_levels
from keras_rcl.errors import InvalidInputError
from keras_rcl.methods import VARIANTS
from keras_rcl.methods.adversarial import AdversarialBatch
from keras_rcl.runtime.progress import Silent
from keras_rcl.vocabulary.attacks import BIM, PGD, Refreshed, parse_attack

pytestmark = pytest.mark.slow

ATTACK = BIM(epsilon=8 / 255, step_size=3 / 255, num_steps=3)


class Watch(Silent):
    """Records the examples and the weights after each step."""

    def __init__(self, network):
        self.network, self.runner, self.seen = network, None, []

    def look(self, done):
        (kept,) = self.runner.batches.refreshed.values()
        self.seen.append((kept.numpy(), self.network.get_weights()))


def test_examples_are_crafted_with_the_weights_of_every_third_step():
    network, data = tiny_network(), image_data()
    (phase,) = AdversarialBatch(batch_size=BATCH, attack=Refreshed(every=3, attack=ATTACK)).phases()
    watch = Watch(network)
    watch.runner = runner(network, phase, data)
    watch.runner.begin()
    begun = network.get_weights()
    for _ in range(3):  # of two steps each
        metrics = watch.runner.run_epoch(watch, "", after_step=watch.look)
    kept = [examples for examples, _ in watch.seen]
    assert all((kept[0] == kept[step]).all() for step in (1, 2)) and all((kept[3] == kept[s]).all() for s in (4, 5))
    other, clean, labels = tiny_network(seed=1), data.train.images, data.train.labels.astype(np.int32)

    def agree(examples, weights):
        """The share of pixels that are what the attack makes through these weights."""
        other.set_weights(weights)
        made = craft(ATTACK, lambda x: other(x, training=False)["logits"], clean.astype(np.float32) / 255, labels)
        return (examples == whole_levels(clean, made.numpy())).mean()

    trained = watch.seen[2][1]
    assert agree(kept[0], begun) > 0.99 and agree(kept[3], trained) > 0.99
    assert agree(kept[0], trained) < 0.99 and agree(kept[3], begun) < 0.99
    assert np.abs(kept[3].astype(int) - clean).max() == 8
    assert (kept[0] != kept[3]).any()
    assert 0 <= metrics["zero_gradients"] < 0.5 and "accuracy_adversarial" in metrics


def test_batches_hold_the_examples_of_their_images():
    data = image_data()
    (phase,) = AdversarialBatch(batch_size=BATCH, attack=Refreshed(every=5, attack=ATTACK)).phases()
    batches = runner(tiny_network(), phase, data).batches
    (kept,) = batches.refreshed.values()
    kept.assign(255 - data.train.images)
    batches.start_epoch(0)
    for step, (images, _, _) in enumerate(batches.dataset):
        chosen = data.train.images[batches.indices(step)].astype(np.float32) / 255
        np.testing.assert_allclose(images[0], chosen, atol=1e-6)
        np.testing.assert_allclose(images[1], 1 - chosen, atol=1e-6)


@pytest.mark.parametrize("name", [name for name, cls in VARIANTS.items() if "attack" in cls.__dataclass_fields__])
def test_every_variant_with_an_attack_takes_refreshed_examples(name):
    """Except for `smooth_adv`, whose attack is of the noise of the step."""
    if name == "smooth_adv":
        with pytest.raises(InvalidInputError, match="'refreshed' is not one of 'fgsm', 'bim', 'mifgsm', 'pgd'"):
            VARIANTS[name](attack={"name": "refreshed", "every": 50, "attack": "pgd-5"})
        return
    method = VARIANTS[name](attack={"name": "refreshed", "every": 50, "attack": "pgd-5"})
    views = [view for phase in method.phases() for one in (phase, *phase.refresh) for view in one.views]
    assert any(view.kind == "adversarial" and not view.crafted for view in views)


def test_the_attack_is_parsed_and_validated():
    word = parse_attack("refreshed-500:attack=pgd-5")
    assert word == Refreshed(every=500, attack=PGD(num_steps=5)) and word.epsilon == 8 / 255
    assert word.label == "PGD-5 every 500 steps" and word.with_epsilon(4 / 255).attack.epsilon == 4 / 255
    with pytest.raises(InvalidInputError, match="every"):
        parse_attack("refreshed")
    with pytest.raises(InvalidInputError, match="kept in pixels"):
        Refreshed(every=5, attack=PGD(protocol="claf-repo"))
