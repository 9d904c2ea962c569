"""Tables of the committed benchmarks."""

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

from keras_rcl.report.tables import markdown_table, percent
from keras_rcl.storage.atomic import read_json

BENCHMARKS = {
    "pgd_resnet18": "attack_throughput-resnet18",
    "pgd_strided_cnn": "attack_throughput-strided_cnn",
    "pgd_resnet18_amd": "attack_throughput-resnet18-amd",
    "pgd_strided_cnn_amd": "attack_throughput-strided_cnn-amd",
    "evaluation_pgd_amd": "evaluation-pgd-amd",
    "evaluation_pgd": "evaluation-pgd",
    "evaluation_autoattack": "evaluation-autoattack",
    "autoattack_original": "autoattack-original",
    "autoattack_original_l2": "autoattack-original-l2",
    "step_resnet18": "train_step-resnet18",
    "step_strided_cnn": "train_step-strided_cnn",
    "claf_epoch": "train_step-claf-strided_cnn",
    "pipeline": "pipeline",
}
"""Name of a generated block -> the committed benchmark."""


def _benchmark(results: Path, name: str) -> str:
    """One row per contender of a committed benchmark, then its facts and its command."""
    measured = read_json(results / f"benchmarks/{name}.json")
    rows, first = [], next(iter(measured["rows"].values()))
    for contender, row in measured["rows"].items():
        compared = row["images_per_second"] > 0
        rows.append(
            [
                contender,
                f"{row['seconds']:.2f}",
                f"{row['fastest']:.2f} - {row['slowest']:.2f}",
                f"{row['seconds'] / first['seconds']:.2f}" if compared else "",
                f"{row['fastest'] / first['fastest']:.2f}" if compared else "",
                f"{row['images_per_second']:.1f}" if compared else "",
                f"{row['share_of_matrix_rate']:.0%}" if row["operations"] else "",
                percent(row["robust_accuracy"]) if "robust_accuracy" in row else "",
            ]
        )
    header = ["contender", "median s", "fastest - slowest", "medians' ratio", "fastest runs' ratio", "images/s"]
    table = [list(column) for column in zip([*header, "of matrix rate", "robust"], *rows, strict=True)]
    header, *rows = zip(*(column for column in table if any(column[1:])), strict=True)
    facts = {
        key.replace("_", " "): value
        for key, value in measured.items()
        if key not in ("command", "versions", "rows", "model_hash", "protocol", "attacks", "network", "cores")
    }
    listed = "; ".join(f"{key} {value:.4g}" for key, value in facts.items())
    return f"{markdown_table(header, rows)}\n\n{listed}\n\n```\n{measured['command']}\n```"


def _claf_options(results: Path) -> str:
    """Clean and robust accuracy under each of CLAF's faster options, by seed."""
    measured, rows = read_json(results / "benchmarks/claf_options.json"), []
    for name, runs in measured["runs"].items():
        clean, robust = ([run[f"{kind}_accuracy"] for run in runs] for kind in ("clean", "robust"))
        by_seed = (" / ".join(map(percent, values)) for values in (clean, robust))
        rows.append([name, *by_seed, percent(sum(robust) / len(robust))])
    header = ["second stage", "clean, by seed", "robust, by seed", "robust, mean"]
    return f"{markdown_table(header, rows)}\n\n```\n{measured['command']}\n```"


def _cusin_normal(results: Path) -> str:
    """Clean and robust accuracy of the normal network by the setting that is changed."""
    measured = read_json(results / "benchmarks/cusin_normal.json")
    rows = [[name, *map(percent, values.values())] for name, values in measured["rows"].items()]
    header = ["changed setting", "clean", "PGD-10 at 1/255 of cusin-repo"]
    return f"{markdown_table(header, rows)}\n\n```\n{measured['command']}\n```"


def _robust_model(results: Path) -> str:
    """Seconds per epoch and robust accuracy of `RobustModel` and of a plain loop, and the overhead."""
    measured, rows = read_json(results / "benchmarks/robust_model.json"), []
    for name, seconds in measured["seconds"].items():
        accuracy = measured["robust_accuracy"][name]
        spread = f"{min(seconds):.2f} - {max(seconds):.2f}"
        by_seed = " / ".join(map(percent, accuracy))
        rows.append([name, f"{statistics.median(seconds):.2f}", spread, by_seed, percent(statistics.mean(accuracy))])
    header = ["training", "median s per epoch", "fastest - slowest", "robust, by seed", "robust, mean"]
    facts = f"overhead {measured['overhead']:.1%}; median ratio of epochs in turn {measured['median_of_ratios']:.3f}"
    return f"{markdown_table(header, rows)}\n\n{facts}\n\n```\n{measured['command']}\n```"


def _robust_model_peers(results: Path) -> str:
    """Lines, seconds and robust accuracy of one training and evaluation, written with several libraries."""
    measured = read_json(results / "benchmarks/robust_model_peers.json")
    rows = [
        [name, str(row["lines"]), f"{row['seconds']:.0f}", percent(row["robust_accuracy"])]
        + [percent(row["robust_accuracy_by_our_evaluator"])]
        for name, row in measured["programs"].items()
    ]
    header = ["program", "lines", "seconds", "robust, by itself", "robust, by our evaluator"]
    facts = (
        f"{measured['images']:,} training images, {measured['epochs']} epochs, {measured['test_images']} test images"
    )
    return f"{markdown_table(header, rows)}\n\n{facts}\n\n```\n{measured['command']}\n```"


def _bounds_cost(results: Path) -> str:
    """One row per training step, in units of a plain step; one row per bound, ours beside auto_LiRPA's."""
    measured = read_json(results / "benchmarks/bounds.json")
    plain, rows = measured["rows"]["plain step"]["seconds"], []
    for contender, row in measured["rows"].items():
        spread = f"{row['fastest']:.3f} - {row['slowest']:.3f}"
        steps = f"{row['seconds'] / plain:.2f}" if contender.endswith("step") else ""
        rows.append([contender, f"{row['seconds']:.3f}", spread, steps, f"{row['images_per_second']:.1f}"])
    header = ["contender", "median s", "fastest - slowest", "plain steps", "images/s"]
    return f"{markdown_table(header, rows[:-1])}\n\n```\n{measured['command']}\n```"


def _bounds_reference(results: Path) -> str:
    """One row per network and method: our mean lower bound of a margin, auto_LiRPA's, and their difference."""
    rows, commands = [], []
    for path in sorted((results / "benchmarks").glob("bounds_reference-*.json")):
        measured = read_json(path)
        commands.append(measured["command"])
        for method, row in measured["methods"].items():
            apart = f"{row['largest_relative_difference']:.1e}"
            means = (f"{row[key]:.4g}" for key in ("mean", "auto_LiRPA_mean"))
            rows.append([f"`{Path(measured['model']).name}`", method, str(measured["images"]), *means, apart])
    header = ["network", "bound", "images", "ours", "auto_LiRPA", "largest relative difference"]
    listed = "\n".join(commands)
    return f"{markdown_table(header, rows, right=(2, 3, 4, 5))}\n\n```\n{listed}\n```"


def _bounds_norms(results: Path) -> str:
    """One row per network, norm and bound: our mean lower bound of a margin, auto_LiRPA's, and their difference."""
    measured, rows = read_json(results / "benchmarks/bounds_norms.json"), []
    for row in measured["rows"]:
        means = (f"{row[key]:.4g}" for key in ("ours", "auto_LiRPA"))
        apart = (f"{row[f'{which}_relative_difference']:.1e}" for which in ("lowest", "largest"))
        rows.append([row["network"], row["images"], row["norm"], f"{row['epsilon']:g}", row["bound"], *means, *apart])
    header = ["network", "images", "norm", "epsilon", "bound", "ours", "auto_LiRPA", "lowest", "largest"]
    verified = [list(map(str, row.values())) for row in measured["verified"]]
    attacked = markdown_table(list(measured["verified"][0]), verified, right=range(1, 8))
    return f"{markdown_table(header, rows, right=(3, 5, 6, 7, 8))}\n\n{attacked}\n\n```\n{measured['command']}\n```"


def _smoothing(results: Path) -> str:
    """One row per smoothed network: certified accuracy by radius, and what AutoAttack broke of what was certified."""
    measured, rows = read_json(results / "benchmarks/smoothing.json")["models"], []
    for name, row in measured.items():
        accuracy = [percent(share) for share in row["certified_accuracy"].values()]
        before, after = (f"{share:.3f}" for share in row["median_probability"])
        attacked = f"{row['attacked']} at {row['median_epsilon']:.2f}"
        cells = [f"{row['average_radius']:.3f}", attacked, before, after, str(row["abstained_under_attack"])]
        rows.append([f"`{name}`", str(row["images"]), *accuracy, *cells, f"**{row['broken']}**"])
    first = next(iter(measured.values()))
    radii = (f"at {radius}" for radius in first["certified_accuracy"])
    header = ["network", "images", *radii, "mean radius", "attacked, median radius", "votes", "under attack"]
    facts = (
        f"sigma {first['sigma']:g}, n = {first['n']:,}, alpha = {first['alpha']:g}; {', '.join(first['attacks'])} on "
        f"the mean softmax over {first['draws']} draws."
    )
    table = markdown_table([*header, "abstains", "broken"], rows, right=range(1, 11))
    commands = "\n".join(dict.fromkeys(row["command"] for row in measured.values()))
    return f"{facts}\n\n{table}\n\n```\n{commands}\n```"


def _vnncomp(results: Path) -> str:
    """One row per category of VNN-COMP 2021: how many instances we and each tool decided, and contradictions."""
    files = sorted((results / "benchmarks").glob("vnncomp-*.json"))
    measured, rows = [read_json(file) for file in files], []
    (settings,) = {tuple(of["settings"].items()): of["settings"] for of in measured}.values()
    categories = {category: row for of in measured for category, row in of["categories"].items()}
    tools = list(next(iter(categories.values()))["tools"])
    for category, row in categories.items():
        ours = [f"**{row['sat'] + row['unsat']}**", str(row["contradictions"]), f"{row['median_seconds']:.1f}"]
        rows.append([category, str(row["instances"]), *ours, *(str(row["tools"][tool]) for tool in tools)])
    header = ["category", "instances", "ours", "contradictions", "median s", *tools]
    limit = "" if settings["timeout"] is None else f", and at most {settings['timeout']:g} s"
    cores = max(of["cores"] for of in measured)
    text = (
        f"Parts of categories are drawn with seed {settings['seed']}. Time-outs are {settings['share']:g} of the "
        f"competition's{limit}, on {cores} CPU core{'s' if cores > 1 else ''}. The tools had the whole time and larger "
        "machines."
    )
    commands = "\n".join(command for of in measured for command in of["commands"])
    return f"{text}\n\n{markdown_table(header, rows)}\n\n```\n{commands}\n```"


def _beside_crown(results: Path) -> str:
    """One row per category: instances that we and alpha-beta-CROWN decided, and the time that they took."""
    measured, rows = read_json(results / "benchmarks/alpha_beta_crown.json"), []
    for category, row in measured["categories"].items():
        both = [row[tool] for tool in ("keras_rcl", "alpha-beta-CROWN")]
        counts = [str(row["instances"]), *(str(tool["decided"]) for tool in both), str(row["both"])]
        times = [f"{tool[key]:.0f}" for key in ("seconds_of_both", "seconds") for tool in both]
        rows.append([category, *counts, *times, str(row["contradictions"])])
    header = ["category", "instances", "ours", "a-b-CROWN", "both", "ours, s, of both", "a-b-CROWN, s, of both"]
    header += ["ours, s", "a-b-CROWN, s", "contradictions"]
    settings, cores = measured["settings"], measured["cores"]
    text = (
        f"{settings['timeout']:g} s per instance, on {cores} CPU core{'s' if cores > 1 else ''}. *Both* are the "
        "instances that both decided. Undecided instances count with the whole time."
    )
    return f"{text}\n\n{markdown_table(header, rows, right=range(1, 10))}\n\n```\n{measured['command']}\n```"


def _contrast_by_blocks(results: Path) -> str:
    """One row per objective and number of anchors: both forms, their ratio and differences; then the largest batch."""
    measured, rows = read_json(results / "benchmarks/contrast.json"), []
    for row in measured["rows"]:
        apart = (f"{row['relative_difference'][key]:.0e}" for key in ("values", "gradient"))
        seconds = (f"{1000 * row[f'{form}_seconds']:.1f}" for form in ("plain", "blocks"))
        rows.append([f"{row['anchors']:,}", row["objective"], *seconds, f"{row['ratio']:.2f}", *apart])
    header = ["anchors", "objective", "plain, ms", "by blocks, ms", "ratio", "difference of values", "of gradients"]
    largest = measured["largest"]
    peaks = ", ".join(
        f"{row['objective']} {row['seconds']:.0f} s, {row['peak_gib']:.2f} GiB" for row in largest["rows"]
    )
    at_that_rate = largest["seconds_at_that_rate"]
    facts = (
        f"D = {measured['dimension']}; {measured['processor']}. M = {largest['anchors']:,} by blocks, with the peak "
        f"memory of the process: {peaks}. Its matrix products alone take {at_that_rate:.0f} s at the rate of one large "
        "product."
    )
    return f"{markdown_table(header, rows, right=(0, 2, 3, 4, 5, 6))}\n\n{facts}\n\n```\n{measured['command']}\n```"


def _commands(results: Path) -> str:
    """One row per stage of `attack` and of `fit`: wall and CPU seconds; then what is not the work itself."""
    measured, blocks = read_json(results / "benchmarks/commands.json"), []
    for name, row in measured["commands"].items():
        stages = [
            [stage, f"{seconds['wall']:.2f}", f"{seconds['cpu']:.2f}"] for stage, seconds in row["stages"].items()
        ]
        table = markdown_table([f"stage of `{name}`", "wall s", "CPU s"], stages)
        work = "the training steps" if name == "fit" else "the attack itself"
        rest = (
            f"Apart from the import of TensorFlow and {work}: {row['rest_wall']:.1f} s, {row['rest_cpu']:.1f} s of CPU"
        )
        share = f", {row['rest_per_work']:.0%} of the time of {work}" if name == "fit" else ""
        blocks.append(f"{table}\n\n{rest}{share}.")
    blocks.append(f"{measured['processor']}, {measured['cores']} cores.\n\n```\n{measured['command']}\n```")
    return "\n\n".join(blocks)


def _sound_models(results: Path) -> str:
    """One row per family of SavedModels: largest differences from TensorFlow's loader, and times as long to load."""
    measured, families = read_json(results / "robustness/sound_models.json"), {}
    for row in measured["rows"]:
        families.setdefault(row["model"].partition(": ")[0], []).append(row)
    rows = []
    for family, members in families.items():
        loaded = [row for row in members if "times" in row]
        times = [row["times"] for row in loaded]
        gradients = [row["gradient"] for row in loaded if not isinstance(row["gradient"], str)]
        apart = (f"{value:.1e}" if value else "0" for value in (max(row["outputs"] for row in loaded), max(gradients)))
        counts = (len(members), len(members) - len(loaded))
        cells = (*apart, str(len(loaded) - len(gradients)), f"{statistics.median(times):.2f}", f"{max(times):.2f}")
        rows.append([family, *map(str, counts), *cells])
    header = ["family", "models", "refused", "outputs", "gradient", "without gradient", "times, median", "largest"]
    commands = "\n".join(measured["commands"])
    return f"{markdown_table(header, rows)}\n\n```\n{commands}\n```"


def _sound_bounds(results: Path) -> str:
    """One row per way to verify: images, verdicts, those that `--sound` changed, and seconds."""
    measured, rows = read_json(results / "benchmarks/sound_bounds.json"), []
    for name, row in measured["rows"].items():
        counts = (str(row[key]) for key in ("images", "verified", "unsafe", "changed"))
        rows.append([name, *counts, f"{row['seconds']:.2f}", f"{row['times_plain']:.2f}"])
    header = ["bounds", "images", "verified", "unsafe", "changed verdicts", "median s", "times without"]
    return f"{markdown_table(header, rows)}\n\n```\n{measured['command']}\n```"


def _minimal_attacks(results: Path) -> str:
    """One row per attack and contender: median distance and seconds, each also as a multiple of ours."""
    files = [read_json(path) for path in sorted((results / "benchmarks").glob("minimal_attacks*.json"))]
    measured = {name: row for file in files for name, row in file["rows"].items()}
    ours = {name.partition(", ")[2]: row for name, row in measured.items() if name.startswith("ours, ")}
    rows = []
    for name, row in measured.items():
        contender, _, attack = name.partition(", ")
        first = ours[attack]
        cells = [f"{row['median_distance']:.4g}", f"{row['median_distance'] / first['median_distance']:.3f}"]
        cells += [f"{row['seconds']:.2f}", f"{row['seconds'] / first['seconds']:.2f}"]
        cells += [f"{row['fastest'] / first['fastest']:.2f}"]
        rows.append([attack, contender, f"{row['budget']:,}", f"{row['broken']} of {row['images']}", *cells])
    header = ["attack", "contender", "steps or queries", "broken", "median distance", "of ours", "median s"]
    header += ["medians' ratio", "fastest runs' ratio"]
    commands = "\n".join(file["command"] for file in files)
    return f"{markdown_table(header, rows, right=range(2, len(header)))}\n\n```\n{commands}\n```"


def _autoattack_l1(results: Path) -> str:
    """One row per network: robust accuracy under AutoAttack in L1, ours and its authors', and agreement."""
    rows, commands = [], []
    for path in sorted((results / "benchmarks").glob("autoattack_l1-*.json")):
        measured = read_json(path)
        commands.append(measured["command"])
        shares = map(percent, (measured["clean"], *measured["summary"].values()))
        seconds = (f"{value:.0f}" for value in measured["seconds"].values())
        network = f"`{measured.get('model', 'digits')}`"
        rows.append([network, str(measured["images"]), f"{measured['epsilon']:g}", *shares, *seconds])
    header = ["network", "images", "epsilon", "clean", "robust, ours", "robust, pyautoattack", "outcomes equal"]
    header += ["ours, s", "pyautoattack, s"]
    listed = "\n".join(commands)
    return f"{markdown_table(header, rows)}\n\n```\n{listed}\n```"


def _early_audits(results: Path) -> str:
    """One row per claim: the verdicts of an audit of all images and of an early one, and what the latter attacks."""
    measured = read_json(results / "benchmarks/early_audits.json")
    rows = [
        [
            row["model"],
            percent(row["robust_accuracy"]),
            f"{row['points']:+d}",
            row["all"]["verdict"],
            row["early"]["verdict"],
            str(row["early"]["attacked"]),
            *(percent(row[f"share_of_{of}"]) for of in ("seconds", "passes")),
        ]
        for row in measured["rows"]
    ]
    header = ["model", "robust", "claim, points", "of all images", "early", "attacked", "attacks' time", "passes"]
    facts = (
        f"The verdict is the same for {measured['same_verdicts']} of {len(rows)} claims. The median of the attacks' "
        f"time is {percent(measured['median_share_of_seconds'])} % of that of {measured['images']:,} images, and the "
        f"median of the passes of single images through the network {percent(measured['median_share_of_passes'])} %."
    )
    return f"{markdown_table(header, rows, right=(1, 2, 5, 6, 7))}\n\n{facts}\n\n```\n{measured['command']}\n```"


def _certified_training(results: Path) -> str:
    """One row per method and library: accuracies over the seeds, and seconds per epoch, also in units of CTRAIN's."""
    measured, rows = read_json(results / "benchmarks/certified_training.json"), []

    def seconds(runs, name: str) -> float:
        """The median of all epochs but the first of each training, in which graphs are traced."""
        return statistics.median(second for run in runs for second in run[name][1:])

    def accuracy(runs, name: str) -> str:
        found = [run[name] for run in runs]
        return f"{percent(statistics.mean(found))} ({percent(min(found))} - {percent(max(found))})"

    for method in dict.fromkeys(row["method"] for row in measured["rows"]):
        of_method = [row for row in measured["rows"] if row["method"] == method]
        by_library = {name: [row for row in of_method if row["library"] == name] for name in ("keras_rcl", "CTRAIN")}
        for library, runs in by_library.items():
            accuracies = [accuracy(runs, name) for name in ("natural", "verified_by_ibp", "verified_by_crown")]
            times = []
            for name in ("seconds", "cpu_seconds"):
                own = seconds(runs, name)
                times += [f"{own:.2f}", f"{own / seconds(by_library['CTRAIN'], name):.2f}"]
            rows.append([method, library, *accuracies, *times])
    header = ["method", "library", "natural", "verified by IBP", "by CROWN", "s per epoch", "ratio", "CPU s", "ratio"]
    loads = [row["load"] for row in measured["rows"]]
    peers = ", ".join(f"{name} {measured['versions'][name]}" for name in ("ctrain", "auto_LiRPA", "torch"))
    facts = (
        f"{measured['images']:,} training and {measured['test']:,} test images, epsilon {measured['epsilon']:g}, "
        f"{measured['epochs']} epochs, of which {measured['ramp_epochs']} are the ramp; {peers}; load average of the "
        f"machine's two cores {min(loads):.1f} to {max(loads):.1f}."
    )
    return f"{markdown_table(header, rows, right=range(2, 9))}\n\n{facts}\n\n```\n{measured['command']}\n```"


def benchmark_tables(results: Path) -> dict[str, Callable[[], str]]:
    """Name of a generated block -> the function that makes its text from the records in `results`."""
    return {
        **{name: partial(_benchmark, results, file) for name, file in BENCHMARKS.items()},
        "claf_options": partial(_claf_options, results),
        "cusin_normal": partial(_cusin_normal, results),
        "early_audits": partial(_early_audits, results),
        "contrast_by_blocks": partial(_contrast_by_blocks, results),
        "commands": partial(_commands, results),
        "robust_model": partial(_robust_model, results),
        "robust_model_peers": partial(_robust_model_peers, results),
        "bounds": partial(_bounds_cost, results),
        "bounds_reference": partial(_bounds_reference, results),
        "bounds_norms": partial(_bounds_norms, results),
        "smoothing": partial(_smoothing, results),
        "sound_bounds": partial(_sound_bounds, results),
        "minimal_attacks": partial(_minimal_attacks, results),
        "autoattack_l1": partial(_autoattack_l1, results),
        "vnncomp": partial(_vnncomp, results),
        "beside-crown": partial(_beside_crown, results),
        "sound_models": partial(_sound_models, results),
        "certified_training": partial(_certified_training, results),
    }
