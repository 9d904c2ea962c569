"""Tables as text, for a terminal and for Markdown."""

import math
import statistics
from collections.abc import Mapping, Sequence

from keras_rcl.measures.wilson import wilson_interval
from keras_rcl.report.verdicts import mean_and_spread
from keras_rcl.vocabulary.phase import Phase, View
from keras_rcl.vocabulary.threat import format_epsilon, format_pixels

ATTACK_COLUMNS = {
    "attack": "attack",
    "clean": "clean_accuracy",
    "adversarial": "adversarial_accuracy",
    "ASR": "attack_success_rate",
    "AFR": "attack_failure_rate",
    "robust": "robust_accuracy",
}


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] | None = None) -> str:
    """Aligned columns; `right` are the columns that are aligned to the right, by default all except the first."""
    columns = range(len(header))
    right = columns[1:] if right is None else right
    widths = [max(len(line[column]) for line in [header, *rows]) for column in columns]

    def line(cells):
        aligned = (cells[c].rjust(widths[c]) if c in right else cells[c].ljust(widths[c]) for c in columns)
        return "  ".join(aligned).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, rows)])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] | None = None) -> str:
    """A Markdown table; `right` are the columns that are aligned to the right, by default all except the first."""
    columns = range(len(header))
    right = columns[1:] if right is None else right
    rule = ["---:" if column in right else "---" for column in columns]
    escaped = [[cell.replace("|", r"\|") for cell in cells] for cells in [header, rule, *rows]]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in escaped)


def percent(value: float) -> str:
    """A share in percent, with one decimal; a dash for a share of no images."""
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def attack_table(record: Mapping) -> str:
    """The table that `attack` prints: one row per attack and epsilon, in percent; corruptions are left out.

    The median distance to the nearest adversarial images is a column if an attack looks for them.
    """
    rows, measured = [], [row for row in record["rows"] if "kind" not in row]
    medians = any("median_distance" in row for row in measured)
    for row in measured:
        name = row["attack"] if row["attack"] != "worst case" else _worst_case(row)
        limits = interval_text(row["robust_accuracy"], record["images"])
        rows.append([name, *(percent(row[key]) for key in list(ATTACK_COLUMNS.values())[1:]), limits])
        if medians:
            median = row.get("median_distance")
            unknown = "infinite" if "median_distance" in row else ""
            rows[-1].append(unknown if median is None else _distance(median, row["norm"]))
    return text_table([*ATTACK_COLUMNS, "95% interval", *(["median distance"] if medians else [])], rows)


def has_attacks(record: Mapping) -> bool:
    """Whether a record has rows of other attacks than corruptions, or no rows at all."""
    return not record["rows"] or any("kind" not in row for row in record["rows"])


def corruption_table(record: Mapping) -> str:
    """The accuracies on corrupted images, in percent: one row per kind, one column per severity, and the means."""
    summary = record["corruptions"]
    found = {(row["kind"], row["severity"]): row["adversarial_accuracy"] for row in record["rows"] if "kind" in row}
    severities = sorted({severity for _, severity in found})
    rows = [
        [kind, *(percent(found.get((kind, severity), math.nan)) for severity in severities), percent(mean)]
        for kind, mean in summary["kinds"].items()
    ]
    columns = [[share for (_, number), share in found.items() if number == severity] for severity in severities]
    means = [percent(math.fsum(shares) / len(shares)) for shares in columns]
    header = ["corruption", *(f"severity {severity}" for severity in severities), "mean"]
    return text_table(header, [*rows, ["mean", *means, percent(summary["mean_accuracy"])]])


def interval_text(share: float, images: int) -> str:
    """The Wilson interval of a share of images, in percent: `85.1-93.4`."""
    return "-".join(map(percent, wilson_interval(share, images)))


def verification_table(record: Mapping) -> str:
    """The table that `verify` prints: one row per epsilon; accuracies in percent, then images of each status."""
    statuses = [name for name in record["rows"][0]["counts"] if any(row["counts"][name] for row in record["rows"])]
    rows = [
        [
            format_epsilon(row["epsilon"], row["norm"]),
            *(percent(row[f"{kind}_accuracy"]) for kind in ("clean", "attacked", "verified")),
            *(str(row["counts"][name]) for name in statuses),
            f"{row['seconds'] / record['images']:.2f}",
        ]
        for row in record["rows"]
    ]
    return text_table(["epsilon", "clean", "attacked", "verified", *statuses, "s/image"], rows)


def audit_summary(found: Mapping) -> list[tuple[str, str]]:
    """Accuracies of an audit, as name and text: clean, after each member of the verifier, and after all checks."""
    images, (row, *_) = found["images"], found["measured"]
    attacked = found.get("attacked", images)  # audits were written without it

    def share(value: float, of: int = attacked) -> str:
        return f"{value:.1%} ({round(value * of)} of {of})"

    low, high = found["interval"]
    interval = f"{found['budget']['confidence']:.0%} interval {low:.1%} to {high:.1%}"
    if attacked < images:
        confidence = 100 * found["budget"]["verdict_confidence"]
        interval = f"of all {images} {low:.1%} to {high:.1%} with {confidence:.6g}% confidence"
    members = [(f"after {name}", share(left)) for name, left in row.get("stages", {}).items()]
    measured = [(f"after {row['attack']}", share(row["robust_accuracy"]))]
    return [
        ("clean accuracy", share(found["clean_accuracy"], images)),
        *members,
        *(measured if not members else []),
        ("after the checks' attacks as well", f"{share(found['robust_accuracy'])}, {interval}"),
    ]


def audit_text(found: Mapping, written: object) -> str:
    """The text that `audit` prints: one line per check, meanings and remedies, accuracies and the verdict."""
    rows = [[finding["check"], finding["status"], finding["because"]] for finding in found["findings"]]
    lines = [text_table(["check", "result", "found"], rows, right=()), ""]
    for finding in found["findings"]:
        if finding["status"] == "raised":
            lines += [
                f"{finding['check']}: raised because {finding['because']}.",
                f"  It means: {finding['meaning']}",
                f"  What to do: {finding['remedy']}",
                "",
            ]
    summary = audit_summary(found)
    width = max(len(name) for name, _ in summary)
    lines += [*(f"{name:{width}}  {value}" for name, value in summary), ""]
    verdict = {"not shown": "The claim is not shown"}.get(found["verdict"], f"The claim {found['verdict']}")
    return "\n".join([*lines, f"{verdict}: {found['reason']}.", f"written to {written}"])


def protocol_table(record: Mapping) -> str:
    """The table that `attack` prints under other protocols: one row per attack, epsilon and protocol.

    Epsilon is in the protocol's own units; the distances between images and adversarial images are in pixels.
    """
    rows = []
    for row in record["rows"]:
        if "kind" in row:
            continue
        epsilon = "" if row["norm"] is None else format_epsilon(row["epsilon"], row["norm"])
        name = row["attack"].removesuffix(f" {row['protocol']}").removesuffix(f" {epsilon}")
        distances = [_distance(row.get(key), row["norm"]) for key in ("largest_distance", "median_distance_fallen")]
        measured = [percent(row[key]) for key in ("clean_accuracy", "robust_accuracy", "attack_success_rate")]
        name = f"{name} {row['norm']}" if name == "worst case" else name
        rows.append([name, row["protocol"], epsilon, *measured, *distances])
    header = ["attack", "protocol", "epsilon", "clean", "robust", "ASR", "largest distance", "median of the broken"]
    return text_table(header, rows, right=range(2, len(header)))


def verifier_results_table(found: Sequence[Mapping]) -> str:
    """What `read-verifier-results` prints: one row per model and epsilon, with the number of images of each status."""
    rows = []
    for exported in found:
        for row in exported["rows"]:
            counts = map(str, (sum(row["counts"].values()), *row["counts"].values(), row["left_out"]))
            rows.append([exported["model"]["name"], format_pixels(row["epsilon"]), *counts, f"{row['seconds']:.1f}"])
    statuses = found[0]["rows"][0]["counts"]
    return text_table(["model", "epsilon", "images", *statuses, "left out", "seconds"], rows)


def repeats_table(study: Mapping) -> str:
    """The table that `tune --repeat` prints: one line per repeated trial, the best first, as `best.yaml` chooses it.

    Trials with more seeds come before others, then the highest mean. A mean stands with its standard deviation over
    seeds, in percentage points. Seeds that failed are named. Settings that all trials share are left out.
    """
    repeated = study["question"]["repeat"]
    settings = [name for name in repeated[0]["settings"] if len({trial["settings"][name] for trial in repeated}) > 1]
    rows = []
    for trial in repeated:
        made = [one for one in study["trials"] if one["repeats"] == trial["number"]]
        done = [one for one in made if one["state"] == "done"]
        values = [_short(trial["settings"][setting]) for setting in settings]
        reached = [_over_seeds([one[name] for one in done]) for name in ("clean_accuracy", "robust_accuracy")]
        objective = [one["objective"] for one in done]
        failed = ", ".join(f"seed {one['settings']['seed']} {one['state']}" for one in made if one not in done)
        rank = (len(done), statistics.fmean(objective) if done else 0.0)
        rows.append((rank, [str(trial["number"]), *values, str(len(done)), *reached, _over_seeds(objective), failed]))
    names = [setting.removeprefix("method.") for setting in settings]
    header = ["trial", *names, "seeds", "clean", "robust", study["objective"], ""]
    rows.sort(key=lambda ranked: ranked[0], reverse=True)
    return text_table(header, [row for _, row in rows], right=range(len(header) - 1))


def _over_seeds(values: Sequence[float]) -> str:
    """The mean and the standard deviation over seeds, in percent."""
    if not values:
        return ""
    mean, spread = mean_and_spread([100 * value for value in values])
    return with_spread(f"{mean:.1f}", spread)


def with_spread(mean: str, spread: float | None) -> str:
    """A mean, as it is written, and its standard deviation over seeds, which a single seed does not have."""
    return mean if spread is None else f"{mean} ± {spread:.1f}"


def trials_table(study: Mapping) -> str:
    """The table that `tune` prints: one line per trial, the best first, then failed trials with the reason."""
    settings = list(study["question"]["search"])
    trials = sorted(study["trials"], key=lambda trial: (-trial.get("objective", -1.0), trial["number"]))
    rows = []
    for trial in trials:
        values = [_short(trial["settings"].get(setting, "")) for setting in settings]
        reached = [percent(trial[name]) if name in trial else "" for name in ("clean_accuracy", "robust_accuracy")]
        ended = percent(trial["objective"]) if trial["state"] == "done" else trial.get("reason", trial["state"])[:60]
        rows.append([str(trial["number"]), *values, *reached, ended])
    header = ["trial", *(setting.removeprefix("method.") for setting in settings), "clean", "robust"]
    return text_table([*header, study["objective"]], rows, right=range(len(header)))


def _short(text: str) -> str:
    """A number with four digits; any other text as it is."""
    try:
        return f"{float(text):.4g}"
    except ValueError:
        return text


def smoothing_table(record: Mapping) -> str:
    """The table that `certify` prints: one row per L2 radius, with the certified accuracy in percent."""
    rows = [[f"{row['radius']:.4g}", percent(row["certified_accuracy"])] for row in record["rows"]]
    return (
        f"{text_table(['L2 radius', 'certified'], rows, right=(0, 1))}\n\n"
        f"in % of {record['images']} images of {record['data']['name']} ({record['data']['part']}), smoothed by noise "
        f"of sigma {record['sigma']:g}, {record['n']} copies per image, alpha {record['alpha']:g}; abstained on "
        f"{percent(record['abstained'])}%, which counts as wrong; average radius {record['average_radius']:.3f}"
    )


def _distance(value: float | None, norm: str) -> str:
    """A distance in pixels: `7.94/255` for linf, `0.502` for l2 and l1; an empty text if it was not measured."""
    if value is None:
        return ""
    return f"{255 * value:.2f}/255" if norm == "linf" else f"{value:.3f}"


def comparison_table(records: Mapping[str, Mapping]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: one row per variant, with clean accuracy and robust accuracy under each attack, in percent.

    Of corruptions, the mean accuracy is one column.
    """
    attacks = list(dict.fromkeys(_column(row) for record in records.values() for row in record["rows"]))
    rows = []
    for name, record in records.items():
        robust = {_column(row): percent(row["robust_accuracy"]) for row in record["rows"] if "kind" not in row}
        if "corruptions" in record:
            robust[CORRUPTIONS] = percent(record["corruptions"]["mean_accuracy"])
        rows.append([name, percent(record["clean_accuracy"]), *(robust.get(attack, "") for attack in attacks)])
    return ["variant", "clean", *attacks], rows


def _worst_case(row: Mapping) -> str:
    protocol = row.get("protocol", "pixel")
    return f"worst case {row['norm']} {format_epsilon(row['epsilon'], row['norm'])}" + (
        f" {protocol}" if protocol != "pixel" else ""
    )


CORRUPTIONS = "corruptions"
"""The column of the mean accuracy on corrupted images."""


def _column(row: Mapping) -> str:
    if "kind" in row:
        return CORRUPTIONS
    return _worst_case(row) if row["attack"] == "worst case" else row["attack"]


def phase_table(phases: Sequence[Phase], indent: str) -> str:
    """One line per phase: epochs, trained parts, views, terms; a refresh stands below the phase that it belongs to."""
    lines = []

    def add(phase: Phase, depth: int):
        name = "  " * depth + phase.name + (" (before each epoch)" if depth else "")
        views = ", ".join(map(_view, phase.views)) + (f" with noise {phase.noise:g}" if phase.noise else "")
        terms = " + ".join(f"{term.weight:g} {term.term}" for term in phase.terms)
        lines.append([name, str(phase.epochs), " ".join(phase.trains), views, terms])
        for inner in phase.refresh:
            add(inner, depth + 1)

    for phase in phases:
        add(phase, 0)
    header = ["phase", "epochs", "trains", "views", "terms"]
    return "\n".join(indent + line for line in text_table(header, lines, right=(1,)).splitlines())


def _view(view: View) -> str:
    """The kind of a view with its policy, its protocol if that is not `pixel`, or its bound and epsilon."""
    if view.kind == "worst_case":
        outputs = "" if view.outputs == "margins" else " " + view.outputs.replace("_", " ")
        share = f"{view.share:g} of " if view.share < 1 else ""
        return f"worst case ({view.bound}{outputs}, {share}epsilon {view.epsilon:g})"
    if view.kind == "adversarial" and view.attack.protocol != "pixel":
        return f"{view.kind} ({view.attack.protocol})"
    return view.policy.name if view.kind == "augmented" else view.kind
