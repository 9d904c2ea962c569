"""Random networks for bounds: small, of every layer that has them, with weights at which bounds are not trivial."""

import keras
import numpy as np

L = keras.layers


def conv(rng, x):
    kernel, dilation = int(rng.integers(1, 4)), int(rng.integers(1, 3))
    stride = 1 if dilation > 1 else tuple(int(s) for s in rng.integers(1, 4, 2))
    settings = dict(padding=str(rng.choice(["same", "valid"])), use_bias=bool(rng.integers(2)))
    activation = rng.choice([None, "relu"])
    if settings["padding"] == "valid" and min(x.shape[1:3]) <= (kernel - 1) * dilation:
        settings["padding"] = "same"
    return L.Conv2D(3, kernel, strides=stride, dilation_rate=dilation, activation=activation, **settings)(x)


def pool(layer):
    def made(rng, x):
        size = tuple(int(min(s, n)) for s, n in zip(rng.integers(1, 4, 2), x.shape[1:3], strict=True))
        stride = int(rng.integers(1, 3))
        return layer(size, strides=stride, padding=str(rng.choice(["same", "valid"])))(x)

    return made


def residual(rng, x):
    branch = L.Conv2D(x.shape[-1], 3, padding="same")(L.ReLU()(x))
    branch = L.Conv2D(x.shape[-1], 3, padding="same", activation="relu")(L.BatchNormalization()(branch))
    return L.Add()([x, branch])


def submodel(rng, x):
    inner = keras.Input(x.shape[1:])
    return keras.Model(inner, L.Activation("relu")(L.BatchNormalization()(inner)))(x)


IMAGE_BLOCKS = {
    "conv": conv,
    "batch_norm": lambda rng, x: L.BatchNormalization(scale=bool(rng.integers(2)), center=bool(rng.integers(2)))(x),
    "relu": lambda rng, x: L.ReLU()(x),
    "activation": lambda rng, x: L.Activation(str(rng.choice(["relu", "linear"])))(x),
    "s_shaped": lambda rng, x: L.Conv2D(3, 2, activation="tanh", padding="same")(L.Activation("sigmoid")(x)),
    "add": residual,
    "padding": lambda rng, x: L.ZeroPadding2D(((1, 0), (0, 2)))(x),
    "average_pooling": pool(L.AveragePooling2D),
    "max_pooling": pool(L.MaxPooling2D),
    "dense": lambda rng, x: L.Dense(3, activation="relu")(x),
    "dropout": lambda rng, x: L.Identity()(L.SpatialDropout2D(0.5)(L.GaussianNoise(1.0)(L.Dropout(0.5)(x)))),
    "submodel": submodel,
    "rescaling": lambda rng, x: L.Rescaling(-1.5, offset=0.5)(x),
}
"""Name -> what it appends to an image."""

TAILS = {
    "flatten": lambda x: L.Flatten()(x),
    "reshape": lambda x: L.Reshape((-1,))(L.Reshape((x.shape[2], x.shape[1] * x.shape[3]))(x)),
    "average": lambda x: L.GlobalAveragePooling2D()(x),
    "kept_average": lambda x: L.Flatten()(L.ReLU()(L.GlobalAveragePooling2D(keepdims=True)(x))),
}
"""Name -> what makes a vector of an image."""


def random_network(blocks, tail="flatten", seed=0, classes=3, shape=(6, 5, 2), dtype="float32"):
    """Normalisation, the blocks, the tail, two dense layers; random weights and moving statistics."""
    rng = np.random.default_rng(seed)
    image = keras.Input(shape)
    x = L.Normalization(mean=[0.4, 0.6], variance=[0.1, 0.2])(image)
    for block in blocks:
        x = IMAGE_BLOCKS[block](rng, x)
    x = L.BatchNormalization()(L.Dense(5)(TAILS[tail](x)))
    network = keras.Model(image, L.Dense(classes)(L.ReLU()(x)))
    randomize(network, rng)
    return network


def randomize(network, rng):
    """Kernels of about unit gain; everything else away from what it starts as."""
    for variable in network.weights:
        if variable.name == "kernel":
            fan_in = np.prod(variable.shape[:-1])
            variable.assign(rng.normal(size=variable.shape) * np.sqrt(2 / fan_in))
        elif variable.dtype == "float32":
            low = 0.3 if "variance" in variable.name else -0.7
            variable.assign(rng.uniform(low, 1.3, variable.shape))


def random_images(count, seed=0, shape=(6, 5, 2)):
    """Half of the pixels near or on the border of the box."""
    rng = np.random.default_rng(seed)
    return np.clip(rng.uniform(-0.5, 1.5, (count, *shape)), 0, 1).astype("float32")
