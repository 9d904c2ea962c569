"""What the writer leaves is what TensorBoard's own readers find."""

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.plugins.projector import ProjectorConfig
from tensorboard.plugins.scalar.summary_v2 import scalar_pb

from keras_rcl import config
from keras_rcl.data.pictures import GAP, picture_grid, to_rgb
from keras_rcl.errors import InvalidInputError
from keras_rcl.training.tensorboard import SPRITE_SIDE, TensorBoardWriter, flatten


def read(folder, sub_run) -> EventAccumulator:
    events = EventAccumulator(str(folder / "tensorboard" / sub_run))
    events.Reload()
    return events


def scalars(events, tag) -> list[tuple[int, float]]:
    return [(event.step, float(tf.make_ndarray(event.tensor_proto))) for event in events.Tensors(tag)]


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
    nested = {"seed": 1, "method": {"name": "clafs", "views": [1, {"a": None}], "limit": None, "arguments": {}}}
    assert flatten(nested) == {
        "seed": 1,
        "method.name": "clafs",
        "method.views": '[1, {"a": null}]',
    }


def test_scalars_images_texts_and_hparams_are_read_back_from_one_event_file_per_phase(tmp_path):
    grid = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    with TensorBoardWriter(tmp_path) as writer:
        writer.scalars("warm-up", {"supcon": 5.0, "images/s": np.float32(3)}, step=7)
        writer.scalars("linear evaluation", {"monitor_clean_accuracy": 0.5}, step=7)
        writer.scalars("warm-up", {"supcon": tf.constant(4.5)}, step=8)
        writer.images("warm-up", "attack", grid, step=7)
        writer.text("config", "# clafs")
        writer.results(
            "mine", flatten({"method": {"name": "clafs", "fast": True}, "seed": 3}), {"clean_accuracy": 0.75}
        )
    files = [path.relative_to(tmp_path / "tensorboard") for path in (tmp_path / "tensorboard").rglob("*.v2")]
    assert sorted(str(path.parent) for path in files) == ["linear-evaluation", "results", "warm-up"]

    events = read(tmp_path, "warm-up")
    assert scalars(events, "supcon") == [(7, 5.0), (8, 4.5)]
    assert scalars(events, "images/s") == [(7, 3.0)]
    width, height, png = tf.make_ndarray(events.Tensors("attack")[0].tensor_proto)
    assert (int(width), int(height)) == (5, 4)
    np.testing.assert_array_equal(tf.io.decode_png(png), grid)
    assert scalars(read(tmp_path, "linear-evaluation"), "clean_accuracy") == [(7, 0.5)]

    events = read(tmp_path, "results")
    assert scalars(events, "clean_accuracy") == [(0, 0.75)]
    assert tf.make_ndarray(events.Tensors("config")[0].tensor_proto).item() == b"# clafs"
    content = events.PluginTagToContent(hparams_metadata.PLUGIN_NAME)[hparams_metadata.SESSION_START_INFO_TAG]
    started = hparams_metadata.parse_session_start_info_plugin_data(content)
    assert started.group_name == "mine"
    assert started.hparams["method.name"].string_value == "clafs"
    assert started.hparams["method.fast"].bool_value is True
    assert started.hparams["seed"].number_value == 3


def test_scalars_are_written_as_tensorboard_writes_them(tmp_path):
    values = {"loss": 0.1, "zero": -0.0, "none": float("nan"), "large": 1e30}
    with TensorBoardWriter(tmp_path) as writer:
        writer.scalars("warm-up", values, step=3)
    (path,) = (tmp_path / "tensorboard").rglob("*.v2")
    events = [tf.compat.v1.Event.FromString(record.numpy()) for record in tf.data.TFRecordDataset(str(path))]
    expected = b"".join(scalar_pb(name, value).SerializeToString() for name, value in values.items())
    assert [event.summary.SerializeToString() for event in events if event.step == 3] == [expected]


@pytest.fixture
def compared(tmp_path):
    """What TensorBoard's HParams tab gets to see of two runs; with `chosen` only those that have this value."""
    from tensorboard import context
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.plugins import base_plugin
    from tensorboard.plugins.hparams import api_pb2, backend_context, get_experiment, list_session_groups

    given = ["dataset.limit=100", "dataset.image_size=8", "evaluation.limit=50"]
    for name, settings in (("whole", []), ("quick", given)):
        with TensorBoardWriter(tmp_path / name) as writer:
            writer.scalars("adversarial training", {"loss": 1.0, "monitor_clean_accuracy": 0.5, name: 2.0}, step=1)
            hparams = flatten(config.to_dict(config.load(None, "at", settings)))
            writer.results(name, hparams, {"clean_accuracy": 0.75, "robust_accuracy": 0.25})
    found = plugin_event_multiplexer.EventMultiplexer()
    found.AddRunsFromDirectory(str(tmp_path))
    found.Reload()
    provider = data_provider.MultiplexerDataProvider(found, str(tmp_path))
    board = base_plugin.TBContext(logdir=str(tmp_path), data_provider=provider)
    request, hparams = context.RequestContext(), backend_context.Context(board)
    experiment = get_experiment.Handler(request, hparams, "x", api_pb2.GetExperimentRequest()).run()

    def rows(name, domain):
        asked = api_pb2.ListSessionGroupsRequest(start_index=0, slice_size=9, allowed_statuses=[0, 1, 2, 3])
        if name:
            asked.col_params.add(hparam=name).filter_interval.CopyFrom(domain.domain_interval)
        return list_session_groups.Handler(request, hparams, "x", asked).run().session_groups

    return experiment, rows


def test_the_hparams_tab_shows_named_runs_with_clean_and_robust_accuracy(compared):
    experiment, rows = compared
    assert [metric.name.tag for metric in experiment.metric_infos] == ["clean_accuracy", "robust_accuracy"]
    assert [group.name for group in rows(None, None)] == ["quick", "whole"]
    values = {value.name.tag: value.value for value in rows(None, None)[0].metric_values}
    assert values == {"clean_accuracy": 0.75, "robust_accuracy": 0.25}


@pytest.mark.parametrize("name", ["dataset.limit", "dataset.image_size", "evaluation.limit"])
def test_a_setting_that_is_left_out_in_one_run_is_a_number_in_the_other(compared, name):
    from tensorboard.plugins.hparams import api_pb2

    experiment, rows = compared
    (column,) = [info for info in experiment.hparam_infos if info.name == name]
    assert column.type == api_pb2.DATA_TYPE_FLOAT64
    assert "quick" in [group.name for group in rows(name, column)]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_projector_finds_vectors_labels_and_sprites(tmp_path, channels):
    rng = np.random.default_rng(0)
    embeddings, images = rng.standard_normal((5, 4)), rng.random((5, 6, 8, channels))
    labels = np.array([0, 1, 1, 2, 0])
    with TensorBoardWriter(tmp_path) as writer:
        writer.projector(embeddings, labels, ["cat", "red\tdog", "owl"], images)

    folder = tmp_path / "tensorboard/results"
    layout = text_format.Parse((folder / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (entry,) = layout.embeddings
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
    with Image.open(tmp_path / "tensorboard/results/sprite.png") as picture:
        assert picture.width == 8 * 1024 <= SPRITE_SIDE


def test_tensorboards_projector_plugin_serves_it(tmp_path):
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.projector.projector_plugin import ProjectorPlugin
    from werkzeug.test import Client

    with TensorBoardWriter(tmp_path) as writer:
        writer.results("mine", {"seed": 1}, {"clean_accuracy": 1.0})
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

    assert b"tensorboard/results" in get("/runs")
    here = dict(run="tensorboard/results", name="embeddings")
    np.testing.assert_array_equal(np.frombuffer(get("/tensor", **here), np.float32).reshape(3, 3), np.eye(3))
    assert get("/metadata", **here).startswith(b"label\tclass\na\t0\n")
    assert get("/sprite_image", **here).startswith(b"\x89PNG")
