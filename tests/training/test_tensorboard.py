"""What the writer leaves is what TensorBoard's own readers find."""

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.plugins.projector import ProjectorConfig

from keras_rcl.data.pictures import GAP, picture_grid, to_rgb
from keras_rcl.errors import InvalidInputError
from keras_rcl.training.tensorboard import SPRITE_SIDE, TensorBoardWriter, flatten


def read(folder) -> EventAccumulator:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def test_a_grid_by_hand():
    clean = np.array([[[0.0, 0.2]], [[0.4, 0.6]], [[1.0, 0.0]]])[..., None]  # [3, 1, 2, 1]
    change = np.array([[[0.2, -0.1]], [[0.0, 0.0]], [[-0.1, 0.1]]])[..., None]
    grid = picture_grid(clean, clean + change, columns=2, scale=1)
    white = [255] * GAP
    expected = [
        [0, 51, *white, 102, 153],
        [51, 26, *white, 102, 153],
        [255, 64, *white, 128, 128],
        [255, 0, *white, 255, 255],
        [230, 26, *white, 255, 255],
        [0, 255, *white, 255, 255],
    ]
    assert grid.dtype == np.uint8 and grid.shape == (6 + 5 * GAP, 4 + GAP, 3)
    assert (grid == grid[..., :1]).all()
    np.testing.assert_array_equal(grid[:: 1 + GAP, :, 0], expected)
    for gap in range(1, 1 + GAP):
        assert (grid[gap :: 1 + GAP] == 255).all()


def test_tiles_are_at_least_48_wide_and_keep_their_colours():
    images = np.random.default_rng(0).random((2, 32, 40, 3), dtype=np.float32)
    grid = picture_grid(images, images)
    assert grid.shape == (3 * 64 + 2 * GAP, 2 * 80 + GAP, 3)
    np.testing.assert_array_equal(grid[0:64:2, 0:80:2], to_rgb(images)[0])
    np.testing.assert_array_equal(grid[1:64:2, 1:80:2], to_rgb(images)[0])
    assert (grid[-64:, :80] == 128).all()
    assert picture_grid(images[:1, :8, :8], images[:1, :8, :8]).shape == (3 * 48 + 2 * GAP, 48, 3)


def test_images_of_two_channels_are_refused():
    with pytest.raises(InvalidInputError, match=r"images of shape \(1, 8, 8, 2\) cannot be shown"):
        picture_grid(np.zeros((1, 8, 8, 2)), np.zeros((1, 8, 8, 2)))


def test_flatten():
    config = {"seed": 1, "method": {"name": "clafs", "views": [1, {"a": None}], "limit": None, "arguments": {}}}
    assert flatten(config) == {
        "seed": 1,
        "method.name": "clafs",
        "method.views": '[1, {"a": null}]',
        "method.limit": "null",
    }


def test_scalars_images_texts_and_hparams_are_read_back_from_one_event_file(tmp_path):
    grid = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    with TensorBoardWriter(tmp_path) as writer:
        writer.scalars("warm-up", {"supcon": 5.0, "images/s": np.float32(3)}, step=7)
        writer.scalars("warm-up", {"supcon": tf.constant(4.5)}, step=8)
        writer.images("warm-up", "attack", grid, step=7)
        writer.text("config", "# clafs")
        writer.hparams(flatten({"method": {"name": "clafs", "fast": True}, "seed": 3}), {"clean accuracy": 0.75})
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1

    events = read(tmp_path)
    curve = [(event.step, float(tf.make_ndarray(event.tensor_proto))) for event in events.Tensors("warm-up/supcon")]
    assert curve == [(7, 5.0), (8, 4.5)]
    assert events.Tensors("warm-up/images/s")[0].step == 7
    assert float(tf.make_ndarray(events.Tensors("final/clean accuracy")[0].tensor_proto)) == 0.75
    assert tf.make_ndarray(events.Tensors("config")[0].tensor_proto).item() == b"# clafs"
    width, height, png = tf.make_ndarray(events.Tensors("warm-up/attack")[0].tensor_proto)
    assert (int(width), int(height)) == (5, 4)
    np.testing.assert_array_equal(tf.io.decode_png(png), grid)

    content = events.PluginTagToContent(hparams_metadata.PLUGIN_NAME)[hparams_metadata.SESSION_START_INFO_TAG]
    hparams = hparams_metadata.parse_session_start_info_plugin_data(content).hparams
    assert hparams["method.name"].string_value == "clafs"
    assert hparams["method.fast"].bool_value is True
    assert hparams["seed"].number_value == 3


@pytest.mark.parametrize("channels", [1, 3])
def test_the_projector_finds_vectors_labels_and_sprites(tmp_path, channels):
    rng = np.random.default_rng(0)
    embeddings, images = rng.standard_normal((5, 4)), rng.random((5, 6, 8, channels))
    labels = np.array([0, 1, 1, 2, 0])
    with TensorBoardWriter(tmp_path) as writer:
        writer.projector(embeddings, labels, ["cat", "red\tdog", "owl"], images)

    folder = tmp_path / "tensorboard"
    config = text_format.Parse((folder / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (entry,) = config.embeddings
    assert list(entry.tensor_shape) == [5, 4]
    np.testing.assert_allclose(np.loadtxt(folder / entry.tensor_path, delimiter="\t"), embeddings, rtol=1e-5)
    assert (folder / entry.metadata_path).read_text().splitlines() == [
        "label\tclass",
        "cat\t0",
        "red dog\t1",
        "red dog\t1",
        "owl\t2",
        "cat\t0",
    ]
    assert list(entry.sprite.single_image_dim) == [8, 6]
    with Image.open(folder / entry.sprite.image_path) as picture:
        sprite = np.asarray(picture)
    assert sprite.shape == (3 * 6, 3 * 8, 3)
    np.testing.assert_array_equal(sprite[6:12, 8:16], to_rgb(images)[4])
    assert (sprite[6:12, 16:] == 255).all()


def test_a_sprite_that_webgl_would_refuse_is_thinned_out(tmp_path):
    images = np.zeros((50, 1, 2048, 1), np.float32)
    with TensorBoardWriter(tmp_path) as writer:
        writer.projector(np.zeros((50, 2)), np.zeros(50, int), ["a"], images)
    with Image.open(tmp_path / "tensorboard" / "sprite.png") as picture:
        assert picture.width == 8 * 1024 <= SPRITE_SIDE


def test_tensorboards_projector_plugin_serves_it(tmp_path):
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.projector.projector_plugin import ProjectorPlugin
    from werkzeug.test import Client

    with TensorBoardWriter(tmp_path) as writer:
        writer.scalars("final", {"clean accuracy": 1.0}, step=0)
        writer.projector(np.eye(3), np.arange(3), ["a", "b", "c"], np.zeros((3, 8, 8, 1)))
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(tmp_path))
    multiplexer.Reload()
    plugin = ProjectorPlugin(
        TBContext(
            logdir=str(tmp_path),
            multiplexer=multiplexer,
            data_provider=MultiplexerDataProvider(multiplexer, str(tmp_path)),
        )
    )
    apps = plugin.get_plugin_apps()

    def get(route: str, **query) -> bytes:
        response = Client(apps[route]).get("/", query_string=query)
        assert response.status_code == 200, response.data
        return response.data

    assert b"tensorboard" in get("/runs")
    here = dict(run="tensorboard", name="embeddings")
    np.testing.assert_array_equal(np.frombuffer(get("/tensor", **here), np.float32).reshape(3, 3), np.eye(3))
    assert get("/metadata", **here).startswith(b"label\tclass\na\t0\n")
    assert get("/sprite_image", **here).startswith(b"\x89PNG")
