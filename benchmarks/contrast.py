"""Contrastive losses by blocks of rows beside their plain forms: time, difference and peak memory.

    python -m benchmarks.contrast --json results/benchmarks/contrast.json

For each number of anchors M, value and gradient are computed by both forms in turn, and the medians are compared. The
largest batch is computed by blocks only, in a process of its own, whose peak resident memory is the kernel's figure.
`seconds_at_that_rate` is the time that its counted multiplications take at the rate of one large matrix multiplication,
measured in the same run.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.command import command_line

CLASSES = 10


def steps(form: str) -> dict:
    """A compiled step per objective, which returns values and gradient by the plain form or by blocks."""
    import tensorflow as tf

    from keras_rcl.objectives import contrastive, margin_contrastive, supervised_contrastive

    def compiled(objective):
        @tf.function
        def step(labels, projection):
            contrastive.TILED_FROM = 0 if form == "blocks" else sys.maxsize  # read while the step is traced
            with tf.GradientTape() as tape:
                tape.watch(projection)
                values = objective(labels, projection)
            return values, tape.gradient(values, projection)

        return step

    return {
        "supcon": compiled(lambda labels, z: supervised_contrastive(labels, z, temperature=0.1)),
        "margin": compiled(margin_contrastive),
    }


def batch(num_anchors: int, dimension: int):
    """Labels of ten classes and unit projections."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    projection = rng.normal(size=(num_anchors, dimension)).astype("float32")
    projection /= np.linalg.norm(projection, axis=1, keepdims=True)
    return tf.constant(rng.integers(0, CLASSES, num_anchors)), tf.constant(projection)


def seconds_of(step, arrays) -> tuple[float, tuple]:
    started = time.perf_counter()
    found = [array.numpy() for array in step(*arrays)]
    return time.perf_counter() - started, found


def compared(num_anchors: int, dimension: int, repeats: int) -> list[dict]:
    """Both forms in turn: median seconds, their ratio, and the largest difference of values and gradients."""
    arrays, rows = batch(num_anchors, dimension), []
    forms = {form: steps(form) for form in ("plain", "blocks")}
    for objective in forms["plain"]:
        found = {form: seconds_of(forms[form][objective], arrays)[1] for form in forms}  # traces, and is not counted
        times = {form: [] for form in forms}
        for _ in range(repeats):
            for form in forms:
                times[form].append(seconds_of(forms[form][objective], arrays)[0])
        medians = {form: statistics.median(each) for form, each in times.items()}
        difference = [float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(*found.values(), strict=True)]
        rows.append(
            {
                "anchors": num_anchors,
                "objective": objective,
                **{f"{form}_seconds": round(median, 5) for form, median in medians.items()},
                "ratio": round(medians["blocks"] / medians["plain"], 3),
                "relative_difference": dict(zip(("values", "gradient"), difference, strict=True)),
            }
        )
    return rows


def largest(num_anchors: int, dimension: int) -> list[dict]:
    """Values and gradients by blocks; run in a process of its own, for its peak memory."""
    from keras_rcl.runtime.tensorflow import start_tensorflow

    start_tensorflow()
    arrays, rows = batch(num_anchors, dimension), []
    for objective, step in steps("blocks").items():
        seconds, (values, gradient) = seconds_of(step, arrays)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        finite = bool(np.isfinite(values).all() and np.isfinite(gradient).all())
        rows.append(
            {"objective": objective, "seconds": round(seconds, 2), "peak_gib": round(peak, 2), "finite": finite}
        )
    return rows


def multiplication_rate() -> float:
    """Floating-point operations per second of a matrix multiplication, the best of five."""
    import tensorflow as tf

    size = 2048
    matrix = tf.random.stateless_normal((size, size), (0, 0))
    multiply = tf.function(tf.matmul)
    return 2 * size**3 / min(seconds_of(lambda a: [multiply(a, a)], (matrix,))[0] for _ in range(6))


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--anchors", type=int, nargs="*", default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--largest", type=int, default=65536, help="Anchors of the batch computed by blocks only.")
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        alone = pool.apply(largest, (options.largest, options.dimension))
    from keras_rcl.runtime.tensorflow import start_tensorflow

    start_tensorflow()
    rate = multiplication_rate()
    # Three products of M x M similarities with D dimensions: the value, the same again, and the gradient.
    operations = 3 * 2 * options.largest**2 * options.dimension
    result = {
        "command": command_line(),
        "processor": processor(),
        "dimension": options.dimension,
        "repeats": options.repeats,
        "rows": [row for count in options.anchors for row in compared(count, options.dimension, options.repeats)],
        "largest": {
            "anchors": options.largest,
            "rows": alone,
            "operations": operations,
            "operations_per_second": round(rate),
            "seconds_at_that_rate": round(operations / rate, 1),
        },
    }
    text = json.dumps(result, indent=1)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
