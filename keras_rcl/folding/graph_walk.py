"""Walks a functional Keras graph with a table of rules, one rule per layer type; submodels are walked through."""

from collections.abc import Callable, Mapping

import keras

from keras_rcl.errors import InvalidInputError

PROBABILITIES = ("softmax", "log_softmax")
"""Activations, and layers in lower case, that turn logits into probabilities; the order of the classes stays."""

ENDS_IN_LOGITS = "if it is the last one, leave it out: bounds are of logits, and the classes stay the same"
"""The hint where one of them has no bounds."""

LayerRule = Callable
"""`rule(layer, path, *values) -> value`: the value of a layer's output from the values of its inputs."""


def propagate(network: keras.Model, rules: Mapping[type, LayerRule], start: Callable, output: str = "logits"):
    """The value of one output of a functional or Sequential model, by the rules of the layers on the way to it.

    A call of a layer is visited once, however many layers read it; layers that the output does not depend on are not
    visited at all.

    Args:
        network: one input; one output, or a dict of them.
        rules: layer type, exactly (a subclass may compute something else) -> its rule.
        start: the network's symbolic input -> its value.
        output: which one of a dict.

    Raises:
        InvalidInputError: if a layer on the way has no rule, by its path, such as `encoder/stage1_block1_relu1`; if
            the model is not functional, has several inputs, or has no such output.
    """
    if not has_graph(network):
        raise InvalidInputError(
            f"model {network.name} ({type(network).__name__}) has no graph to walk; give a built functional or "
            "Sequential model"
        )
    if len(network.inputs) != 1:
        raise InvalidInputError(
            f"model {network.name} has {len(network.inputs)} inputs; give one that reads images alone"
        )
    image = network.inputs[0]
    return _value(_output(network, output), {id(image): start(image)}, rules, "")


def has_graph(layer) -> bool:
    """True for a built functional or Sequential model itself; a subclass may compute something else."""
    return type(layer).__name__ in ("Functional", "Sequential") and bool(getattr(layer, "outputs", None))


def _output(network: keras.Model, name: str):
    """The symbolic tensor of an output."""
    if len(network.outputs) == 1:
        return network.outputs[0]
    if not isinstance(network.output, dict) or name not in network.output:
        known = ", ".join(network.output) if isinstance(network.output, dict) else "several without names"
        raise InvalidInputError(f"model {network.name} has no output {name!r} but {known}; name one of a dict")
    return network.output[name]


def _value(tensor, known: dict, rules: Mapping[type, LayerRule], path: str):
    """The value of a symbolic tensor; `known` holds those found so far in this model, by the tensors' identity."""
    if id(tensor) in known:
        return known[id(tensor)]
    layer, call, index = tensor._keras_history
    here = path + layer.name
    values = [_value(operand, known, rules, path) for operand in layer._inbound_nodes[call].input_tensors]
    if type(layer) in rules:
        known[id(tensor)] = rules[type(layer)](layer, here, *values)
    elif has_graph(layer):
        inner = known.setdefault(
            (id(layer), call), {id(operand): value for operand, value in zip(layer.inputs, values, strict=True)}
        )
        known[id(tensor)] = _value(layer.outputs[index], inner, rules, f"{here}/")
    else:
        names = ", ".join(sorted(kind.__name__ for kind in rules))
        hint = ENDS_IN_LOGITS if type(layer).__name__.lower() in PROBABILITIES else f"replace it by one of: {names}"
        raise InvalidInputError(f"layer {here} ({type(layer).__name__}) has no bounds; {hint}")
    return known[id(tensor)]
