"""ResNet-50 with weights of keras.applications: the network that those weights are of, fed as it was trained."""

import keras
import numpy as np
import pytest

from keras_rcl.errors import InvalidInputError
from keras_rcl.networks import build_network, parts
from keras_rcl.networks import pretrained as module
from keras_rcl.vocabulary.network import Network

SHAPE = (32, 32, 3)


@pytest.fixture(scope="module")
def random(tmp_path_factory):
    """A randomly initialised network of the same class, and the file of its weights."""
    keras.utils.set_random_seed(0)
    network = keras.applications.ResNet50(include_top=False, weights=None, input_shape=SHAPE, pooling="avg")
    path = tmp_path_factory.mktemp("weights") / "resnet50.weights.h5"
    network.save_weights(path)
    return network, path


@pytest.mark.slow
def test_its_embedding_is_the_network_of_keras_behind_kerass_preprocessing(random):
    network, path = random
    ours = build_network(Network(encoder="resnet50", pretrained=str(path)), SHAPE, 10)
    images = np.random.default_rng(0).uniform(size=(2, *SHAPE)).astype(np.float32)
    expected = network(keras.applications.resnet50.preprocess_input(255 * images), training=False)
    found = ours(images, training=False)
    np.testing.assert_allclose(found["embedding"], expected, rtol=1e-3, atol=1e-4 * float(np.abs(expected).max()))
    assert found["logits"].shape == (2, 10) and set(parts(ours)) == {"encoder", "projector", "classifier"}
    half = module.pretrained_resnet50(str(path), SHAPE, "mixed_bfloat16")
    policies = {layer.name: layer.compute_dtype for layer in half.layers}
    assert policies["conv1_conv"] == "float32" and policies["conv2_block1_1_conv"] == "bfloat16"


def test_weights_that_cannot_be_loaded_give_an_error_of_one_line(tmp_path, monkeypatch):
    def unreachable(**arguments):
        assert arguments["weights"] == "imagenet" and not arguments["include_top"]
        raise Exception("URL fetch failure on https://storage.googleapis.com: [Errno -3] name resolution\nmore")

    monkeypatch.setattr(keras.applications, "ResNet50", unreachable)
    with pytest.raises(
        InvalidInputError, match="'imagenet' could not be loaded: URL fetch failure .* resolution; hint: download"
    ) as error:
        build_network(Network(encoder="resnet50", pretrained="imagenet"), SHAPE, 10)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("shape", "weights", "said"),
    [
        ((32, 32, 1), "imagenet", "read RGB images"),
        ((8, 8, 3), "imagenet", "of 32x32 or more"),
        (SHAPE, "nowhere.weights.h5", "is not a file"),
        (SHAPE, "broken.weights.h5", "could not be loaded"),
    ],
)
def test_invalid_weights_or_images_raise(shape, weights, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.weights.h5").write_bytes(b"no HDF5")
    with pytest.raises(InvalidInputError, match=said):
        module.pretrained_resnet50(weights, shape)


def test_other_encoders_have_no_pretrained_weights():
    with pytest.raises(ValueError, match="for encoder resnet50, not for resnet18"):
        Network(encoder="resnet18", pretrained="imagenet")
