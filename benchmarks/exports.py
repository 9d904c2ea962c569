"""Write SavedModels as other people write them: by Keras 3, Keras 2, KerasHub and TensorFlow 1, with random weights.

    python -m benchmarks.exports FOLDER keras3 tf1 modules

Each family is written by the environment that it belongs to, so this file imports nothing of this package:

    python -m venv old && old/bin/pip install tensorflow-cpu==2.15.1
    old/bin/python benchmarks/exports.py FOLDER keras2 tf1
    pip install keras-hub && python -m benchmarks.exports FOLDER kerashub

`benchmarks.sound_models` compares what this package and TensorFlow's own loader make of them.
"""

import argparse
import functools
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import tensorflow as tf

EXPORTS: dict[str, dict[str, Callable[[Path], object]]] = {}
"""Family -> name -> what writes the SavedModel to a path that does not exist."""


def export(family: str, name: str):
    """Add a function that writes a SavedModel."""

    def add(write):
        EXPORTS.setdefault(family, {})[name] = write
        return write

    return add


def keras_model(families: str, name: str):
    """Add a function of `keras` that builds a model; Keras 3 exports it, and Keras 2 saves it."""

    def add(build):
        for family in families.split():
            EXPORTS.setdefault(family, {})[name] = functools.partial(_write, build, family)
        return build

    return add


def _write(build: Callable, family: str, path: Path) -> None:
    tf.keras.utils.set_random_seed(0)
    model = build(tf.keras)
    if family == "keras3":
        model.export(str(path), verbose=False)
    else:
        model.save(str(path))


# --- Keras 2 and 3: the same models, exported by each -----------------------------------------------------------------

BOTH = "keras3 keras2"


APPLICATIONS = {
    "MobileNet": 32,
    "MobileNetV2": 32,
    "MobileNetV3Small": 32,
    "EfficientNetB0": 32,
    "EfficientNetV2B0": 32,
    "ResNet50": 32,
    "ResNet50V2": 32,
    "DenseNet121": 32,
    "VGG16": 32,
    "InceptionV3": 75,
    "Xception": 71,
    "NASNetMobile": 32,
    "ConvNeXtTiny": 32,
}
"""Networks of keras.applications, and the size of their images."""


def _application(name: str, keras):
    size = APPLICATIONS[name]
    return getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3), classes=10)


for _name in APPLICATIONS:
    _families = BOTH if _name in ("MobileNetV2", "ResNet50", "EfficientNetB0") else "keras3"
    keras_model(_families, _name)(functools.partial(_application, _name))


def _small(keras, *layers, shape=(16, 16, 3)):
    """A network of these layers and a classifier."""
    return keras.Sequential(
        [keras.Input(shape), *layers, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
    )


@keras_model(BOTH, "Normalization, Rescaling")
def _(keras):
    normalization = keras.layers.Normalization()
    normalization.adapt(np.random.default_rng(0).random((8, 16, 16, 3)).astype(np.float32))
    return _small(keras, keras.layers.Rescaling(2.0, -1.0), normalization, keras.layers.Conv2D(8, 3))


@keras_model(BOTH, "augmentation layers")
def _(keras):
    layers = keras.layers
    return _small(
        keras,
        *(layers.RandomFlip(), layers.RandomRotation(0.1), layers.RandomZoom(0.1), layers.RandomContrast(0.2)),
        *(layers.RandomTranslation(0.1, 0.1), layers.RandomCrop(12, 12), layers.GaussianNoise(0.1)),
        *(layers.Conv2D(8, 3, activation="relu"), layers.Dropout(0.5), layers.SpatialDropout2D(0.2)),
    )


@keras_model(BOTH, "resize layers")
def _(keras):
    layers = keras.layers
    resized = [
        layers.Resizing(20 + i, 18, interpolation=kind) for i, kind in enumerate(("bilinear", "bicubic", "area"))
    ]
    return _small(keras, *resized, layers.UpSampling2D(2), layers.CenterCrop(16, 16), layers.ZeroPadding2D(1))


@keras_model(BOTH, "mixed_float16")
def _(keras):
    layers = [keras.layers.Conv2D(8, 3, dtype="mixed_float16"), keras.layers.BatchNormalization(dtype="mixed_float16")]
    return _small(keras, *layers)


@keras_model(BOTH, "mixed_bfloat16")
def _(keras):
    return _small(keras, keras.layers.Conv2D(8, 3, dtype="mixed_bfloat16", activation="gelu"))


@keras_model(BOTH, "LSTM over rows")
def _(keras):
    layers = keras.layers
    stack = [layers.Reshape((16, 48)), layers.LSTM(8, return_sequences=True), layers.LSTM(8), layers.Dense(10)]
    return keras.Sequential([keras.Input((16, 16, 3)), *stack])


@keras_model(BOTH, "bidirectional GRU")
def _(keras):
    layers = keras.layers
    stack = [layers.Reshape((16, 48)), layers.Bidirectional(layers.GRU(8)), layers.Dense(10)]
    return keras.Sequential([keras.Input((16, 16, 3)), *stack])


@keras_model(BOTH, "RNN of a cell, ConvLSTM2D")
def _(keras):
    layers = keras.layers
    images = keras.Input((16, 16, 3))
    rows = layers.RNN(layers.SimpleRNNCell(8))(layers.Reshape((16, 48))(images))
    frames = layers.ConvLSTM2D(4, 3)(layers.Reshape((2, 8, 16, 3))(images))
    return keras.Model(images, layers.Dense(10)(layers.Concatenate()([rows, layers.Flatten()(frames)])))


@keras_model(BOTH, "attention, EinsumDense")
def _(keras):
    layers = keras.layers
    images = keras.Input((16, 16, 3))
    tokens = layers.Reshape((16, 16))(layers.Conv2D(16, 4, strides=4)(images))
    tokens = layers.Add()([tokens, layers.MultiHeadAttention(2, 8)(layers.LayerNormalization()(tokens), tokens)])
    tokens = layers.EinsumDense("btd,de->bte", output_shape=(None, 16), activation="gelu")(tokens)
    return keras.Model(images, layers.Dense(10)(layers.GlobalAveragePooling1D()(tokens)))


@keras_model(BOTH, "any image size")
def _(keras):
    return _small(keras, keras.layers.Conv2D(8, 3, padding="same", activation="swish"), shape=(None, None, 3))


@keras_model(BOTH, "convolutions of all kinds")
def _(keras):
    layers = keras.layers
    stack = [
        *(layers.SeparableConv2D(8, 3), layers.DepthwiseConv2D(3), layers.Conv2DTranspose(8, 3, strides=2)),
        *(layers.Conv2D(8, 3, dilation_rate=2, groups=2), layers.MaxPooling2D(), layers.AveragePooling2D(3, 1)),
        *(layers.PReLU(shared_axes=[1, 2]), layers.LeakyReLU(), layers.ELU(), layers.Activation("selu")),
    ]
    return _small(keras, *stack)


@keras_model("keras3", "normalisations")
def _(keras):
    layers = keras.layers
    return _small(
        keras,
        *(layers.Conv2D(8, 3), layers.GroupNormalization(2), layers.LayerNormalization(), layers.UnitNormalization()),
        *(layers.BatchNormalization(), layers.SpectralNormalization(layers.Conv2D(8, 3))),
    )


@keras_model(BOTH, "StringLookup of the classes")
def _(keras):
    layers = keras.layers
    images = keras.Input((16, 16, 3))
    logits = layers.Dense(3, name="logits")(layers.Flatten()(images))
    names = layers.StringLookup(vocabulary=["cat", "dog", "fox"], num_oov_indices=0, invert=True, name="names")
    index = _Argmax(keras)
    return keras.Model(images, {"logits": logits, "names": names(index(logits))})


@keras_model(BOTH, "IntegerLookup, Discretization, CategoryEncoding")
def _(keras):
    layers = keras.layers
    images = keras.Input((4, 4, 1))
    rows = layers.Flatten()(images)
    bins = layers.Discretization([0.2, 0.4, 0.6, 0.8])(rows)
    found = layers.IntegerLookup(vocabulary=[0, 1, 2, 3, 4])(bins)
    several = layers.CategoryEncoding(6, output_mode="multi_hot")(found)
    return keras.Model(images, layers.Dense(5)(layers.Concatenate()([rows, several])))


@keras_model("keras3", "int8 layers")
def _(keras):
    layers = keras.layers
    model = keras.Sequential([keras.Input((16, 16, 3)), layers.Flatten(), layers.Dense(32, "relu"), layers.Dense(10)])
    model.quantize("int8")
    return model


@keras_model("keras3", "slice_update of a mask")
def _(keras):
    class Mask(keras.layers.Layer):
        """As the window attention of Swin transformers makes its mask."""

        def call(self, x):
            mask = keras.ops.slice_update(keras.ops.ones((1, 16, 16, 1)), [0, 4, 20, 0], keras.ops.zeros((1, 3, 5, 1)))
            return x * mask

    return _small(keras, Mask(), keras.layers.Conv2D(8, 3))


@keras_model("keras3", "nested models, two outputs")
def _(keras):
    layers = keras.layers
    images = keras.Input((16, 16, 3))
    encoder = keras.Sequential([keras.Input((16, 16, 3)), layers.Conv2D(8, 3), layers.GlobalAveragePooling2D()])
    embedding = encoder(images)
    return keras.Model(images, {"embedding": embedding, "logits": layers.Dense(10)(embedding)})


def _Argmax(keras):  # noqa: N802
    class Argmax(keras.layers.Layer):
        def call(self, x):
            return tf.argmax(x, 1)

    return Argmax()


@export("keras3", "tf.saved_model.save of a Keras model")
def _(path: Path) -> None:
    model = _small(tf.keras, tf.keras.layers.Conv2D(8, 3), tf.keras.layers.BatchNormalization())
    tf.saved_model.save(model, str(path))


# --- tf.Module --------------------------------------------------------------------------------------------------------


def _module(path: Path, call: Callable, shape=(None, 8, 8, 1), signatures=(), **attributes) -> None:
    module = tf.Module()
    module.kernel = tf.Variable(np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32))
    for name, value in attributes.items():
        setattr(module, name, value)

    @tf.function(input_signature=[tf.TensorSpec(shape)])
    def serve(image):
        return {"logits": tf.reshape(call(image), [-1, 64]) @ module.kernel}

    tf.saved_model.save(module, str(path), signatures={"serve": serve, **dict(signatures)})


@tf.custom_gradient
def _doubled(x):
    return 2 * x, lambda upstream: 3 * upstream


@tf.custom_gradient
def _with_captured_tensor(x):
    y = tf.tanh(x)
    return y, lambda upstream: upstream * (1 - y * y)


@export("modules", "custom gradients")
def _(path: Path) -> None:
    _module(path, lambda x: _with_captured_tensor(_doubled(x)))


@export("modules", "loops and branches")
def _(path: Path) -> None:
    def call(images):
        for i in tf.range(3):
            if tf.reduce_sum(images) > 3:
                images = _doubled(images) / 3
            else:
                images = images + tf.cast(i, tf.float32)
        return tf.map_fn(lambda image: image * tf.reduce_max(image), images)

    _module(path, tf.function(call))


@export("modules", "a table of constants")
def _(path: Path) -> None:
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer([0, 1], [1.0, 2.0]), 0.0)
    _module(path, lambda x: x * table.lookup(tf.constant([1]))[0], table=table)


@export("modules", "a mutable table")
def _(path: Path) -> None:
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.float32, 0.0)
    table.insert(tf.constant(["a", "b"]), tf.constant([3.0, 4.0]))
    _module(path, lambda x: x * table.lookup(tf.constant(["b"]))[0], table=table)


@export("modules", "several signatures")
def _(path: Path) -> None:
    scale = tf.Variable(2.0)

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 1])])
    def embed(image):
        return {"embedding": tf.reshape(image * scale, [-1, 64])}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def serve_bytes(text):
        return {"length": tf.strings.length(tf.io.decode_base64(text))}

    _module(path, lambda x: x * scale, signatures={"embed": embed, "bytes": serve_bytes}, scale=scale)


@export("modules", "a counter that calls change")
def _(path: Path) -> None:
    counter = tf.Variable(0.0)

    def call(images):
        with tf.control_dependencies([counter.assign_add(1.0)]):
            return tf.identity(images)

    _module(path, call, counter=counter)


@export("modules", "a fixed batch")
def _(path: Path) -> None:
    _module(path, lambda x: tf.nn.relu(x - 0.1), shape=(4, 8, 8, 1))


@export("modules", "Fourier, SVD and sorting")
def _(path: Path) -> None:
    def call(x):
        plane = x[..., 0]
        spectrum = tf.abs(tf.signal.fft2d(tf.cast(plane, tf.complex64)))
        singular = tf.linalg.svd(plane, compute_uv=False)
        return spectrum + tf.sort(plane, axis=-1) + singular[:, None] + tf.math.top_k(plane, 8).values

    _module(path, call)


@export("modules", "fake quantisation")
def _(path: Path) -> None:
    _module(path, lambda x: tf.quantization.fake_quant_with_min_max_args(x, 0, 1))


@export("modules", "compiled by XLA")
def _(path: Path) -> None:
    _module(path, tf.function(lambda x: tf.nn.softplus(x) * 2, jit_compile=True))


# --- TensorFlow 1 -----------------------------------------------------------------------------------------------------


def _version_1(path: Path, logits_of: Callable, resource=True, **variable) -> None:
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        v1.set_random_seed(0)
        image = v1.placeholder(tf.float32, [None, 8, 8, 1], "image")
        with v1.variable_scope("net", use_resource=resource):
            kernel = v1.get_variable("kernel", [64, 3], **variable)
            logits = logits_of(tf.reshape(image, [-1, 64]), kernel)
        session.run([v1.global_variables_initializer(), tables := v1.tables_initializer()])
        builder = v1.saved_model.Builder(str(path))
        signature = v1.saved_model.build_signature_def(
            {"image": v1.saved_model.build_tensor_info(image)},
            {"logits": v1.saved_model.build_tensor_info(logits)},
            "tensorflow/serving/predict",
        )
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature}, main_op=tables)
        builder.save()


for _resource in (True, False):
    _kind = "resource" if _resource else "reference"
    EXPORTS.setdefault("tf1", {})[f"dense, {_kind} variables"] = functools.partial(
        _version_1, logits_of=lambda rows, kernel: tf.nn.relu(rows) @ kernel, resource=_resource
    )


@export("tf1", "partitioned variable, table")
def _(path: Path) -> None:
    def logits(rows, kernel):
        table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer([0, 1, 2], [1.0, 2.0, 3.0]), 0.0)
        return rows @ tf.convert_to_tensor(kernel) * table.lookup(tf.constant([0, 1, 2]))

    _version_1(path, logits, partitioner=tf.compat.v1.fixed_size_partitioner(2))


def _in_version_1_style(call: Callable) -> Callable:
    """Loops and branches as nodes of the graph, and not as functions."""

    def with_old_control_flow(rows, kernel):
        tf.compat.v1.disable_control_flow_v2()
        try:
            return call(rows, kernel)
        finally:
            tf.compat.v1.enable_control_flow_v2()

    return with_old_control_flow


@export("tf1", "while_loop")
def _(path: Path) -> None:
    @_in_version_1_style
    def logits(rows, kernel):
        return tf.compat.v1.while_loop(lambda i, _: i < 3, lambda i, x: (i + 1, tf.tanh(x @ kernel @ mix)), [0, rows])[
            1
        ]

    mix = np.random.default_rng(1).normal(size=(3, 64)).astype(np.float32)
    _version_1(path, lambda rows, kernel: logits(rows, kernel) @ kernel)


@export("tf1", "cond")
def _(path: Path) -> None:
    @_in_version_1_style
    def logits(rows, kernel):
        return tf.compat.v1.cond(tf.reduce_sum(rows) > 0, lambda: tf.sin(rows), lambda: rows * 2) @ kernel

    _version_1(path, logits)


@export("tf1", "cond within while_loop")
def _(path: Path) -> None:
    @_in_version_1_style
    def logits(rows, kernel):
        def body(i, x):
            return i + 1, tf.compat.v1.cond(i > 1, lambda: tf.sin(x), lambda: x * 2)

        return tf.compat.v1.while_loop(lambda i, _: i < 3, body, [0, rows])[1] @ kernel

    _version_1(path, logits)


@export("tf1", "dynamic_rnn")
def _(path: Path) -> None:
    if not hasattr(tf.compat.v1.nn.rnn_cell, "BasicLSTMCell"):
        raise NotImplementedError("needs Keras 2")

    @_in_version_1_style
    def logits(rows, kernel):
        cell = tf.compat.v1.nn.rnn_cell.BasicLSTMCell(8)
        outputs, _ = tf.compat.v1.nn.dynamic_rnn(cell, tf.reshape(rows, [-1, 8, 8]), dtype=tf.float32)
        return tf.reshape(outputs, [-1, 64]) @ kernel

    _version_1(path, logits)


@export("tf1", "batch normalisation with a placeholder of training")
def _(path: Path) -> None:
    def logits(rows, kernel):
        training = tf.compat.v1.placeholder_with_default(False, [], "training")  # noqa: FBT003
        scale = tf.compat.v1.get_variable("scale", [64], initializer=tf.ones_initializer())
        kept = tf.compat.v1.nn.dropout(rows, rate=tf.where(training, 0.5, 0.0))
        return (kept * scale) @ kernel

    _version_1(path, logits)


@export("tf1", "without variables")
def _(path: Path) -> None:
    frozen = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    _version_1(path, lambda rows, kernel: rows @ tf.constant(frozen))


# --- KerasHub ---------------------------------------------------------------------------------------------------------


def _hub(name: str, build: Callable) -> None:
    def write(path: Path) -> None:
        import keras
        import keras_hub

        keras.utils.set_random_seed(0)
        build(keras_hub.models, keras).export(str(path), verbose=False)

    EXPORTS.setdefault("kerashub", {})[name] = write


def _hub_classifier(backbone: Callable) -> Callable:
    def build(models, keras):
        inner = backbone(models)
        images = keras.Input((32, 32, 3))
        features = inner({name: images for name in inner.input} if isinstance(inner.input, dict) else images)
        flat = keras.layers.Flatten()(features)
        return keras.Model(images, keras.layers.Dense(10)(flat))

    return build


_hub(
    "ResNet",
    _hub_classifier(
        lambda models: models.ResNetBackbone(
            input_conv_filters=[64],
            input_conv_kernel_sizes=[3],
            stackwise_num_filters=[64, 32],
            stackwise_num_blocks=[2, 2],
            stackwise_num_strides=[1, 2],
            block_type="basic_block",
            image_shape=(32, 32, 3),
        )
    ),
)
_hub(
    "ViT",
    _hub_classifier(
        lambda models: models.ViTBackbone(
            image_shape=(32, 32, 3), patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64
        )
    ),
)
_hub(
    "DenseNet",
    _hub_classifier(
        lambda models: models.DenseNetBackbone(
            stackwise_num_repeats=[2, 2], image_shape=(32, 32, 3), compression_ratio=0.5, growth_rate=8
        )
    ),
)
_hub(
    "MiT",
    _hub_classifier(
        lambda models: models.MiTBackbone(
            layerwise_depths=[1, 1],
            image_shape=(32, 32, 3),
            hidden_dims=[16, 32],
            num_layers=2,
            layerwise_num_heads=[1, 2],
            layerwise_sr_ratios=[2, 1],
            max_drop_path_rate=0.1,
            layerwise_patch_sizes=[7, 3],
            layerwise_strides=[4, 2],
        )
    ),
)
_hub(
    "CSPNet",
    _hub_classifier(
        lambda models: models.CSPNetBackbone(
            stem_filters=16,
            stem_kernel_size=3,
            stem_strides=1,
            stackwise_depth=[1, 2],
            stackwise_strides=[1, 2],
            stackwise_num_filters=[16, 32],
            block_type="dark_block",
            stage_type="dark",
            image_shape=(32, 32, 3),
        )
    ),
)
_hub(
    "VGG",
    _hub_classifier(
        lambda models: models.VGGBackbone(
            stackwise_num_repeats=[1, 2], stackwise_num_filters=[8, 16], image_shape=(32, 32, 3)
        )
    ),
)
_hub(
    "Xception",
    _hub_classifier(
        lambda models: models.XceptionBackbone(
            stackwise_conv_filters=[[8, 16], [16, 32]], stackwise_pooling=[True, False], image_shape=(32, 32, 3)
        )
    ),
)
_hub(
    "SwinTransformer",
    _hub_classifier(
        lambda models: models.SwinTransformerBackbone(
            image_shape=(32, 32, 3), embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4
        )
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("families", nargs="+", choices=EXPORTS)
    arguments = parser.parse_args()
    failed = 0
    for family in arguments.families:
        for name, write in EXPORTS[family].items():
            path = arguments.folder / family / name
            if path.exists():
                continue
            try:
                write(path)
                print(path, flush=True)
            except NotImplementedError as error:
                print(f"{path} is left out: {error}")
            except Exception:
                failed += 1
                traceback.print_exc()
                print(f"{path} could not be written", file=sys.stderr)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
