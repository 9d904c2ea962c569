"""Tables of README and docs/ that are made from the variants and from the committed records alone."""

import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from keras_rcl import config
from keras_rcl.errors import InvalidInputError, did_you_mean
from keras_rcl.methods import VARIANTS
from keras_rcl.papers import PAPERS
from keras_rcl.report.paper_tables import difference_cell, how_to_read, markdown_of, signed, table_data, verdict_text
from keras_rcl.report.records import Results, config_path, experiments
from keras_rcl.report.tables import comparison_table, markdown_table, percent, repeats_table, text_table, with_spread
from keras_rcl.report.verdicts import mean_and_spread
from keras_rcl.storage.atomic import read_json
from keras_rcl.storage.kinds import AUDIT, RECORD, STUDY, VERIFICATION
from keras_rcl.vocabulary.attacks import CORRUPTION_KINDS, AutoAttack
from keras_rcl.vocabulary.threat import format_epsilon, format_pixels


def _variants(results: Path) -> str:
    """One row per variant: what it is, its phases and their epochs."""
    rows = []
    for name, cls in VARIANTS.items():
        phases = cls().phases()
        parts = []
        for phase in phases:
            inner = "".join(f", before each epoch {r.epochs} of *{r.name}*" for r in phase.refresh)
            parts.append(f"*{phase.name}* {phase.epochs}{inner}")
        rows.append([f"`{name}`", _summary(cls.__doc__), "; ".join(parts)])
    return markdown_table(["variant", "what it is", "phases and epochs, as its paper has them"], rows, right=())


def _summary(docstring: str) -> str:
    """The first line of a docstring, with authors and year of its first reference if it names no year itself."""
    summary = docstring.splitlines()[0].rstrip(".")
    reference = re.search(r"References:\n\s+([^\n\"(;]*?\d{4})", docstring)
    return f"{summary} ({reference[1]})" if reference and not re.search(r"\d{4}", summary) else summary


def _records(folder: Path, data_set: str) -> dict[str, dict]:
    """The committed records of a data set by the name of their model, in the order of the variants."""
    read = []
    for path in folder.glob(f"{data_set}-*.json"):
        record = RECORD.read(path)
        if (variant := record["model"].get("variant")) not in [*VARIANTS]:
            raise InvalidInputError(
                f"{path}: model.variant {variant!r} is not a variant{did_you_mean(str(variant), VARIANTS)}; "
                f"hint: {RECORD.hint}"
            )
        read.append((list(VARIANTS).index(variant), record["model"]["name"], record))
    read.sort(key=lambda found: found[:2])
    return {name.removeprefix(f"{data_set}-"): record for _, name, record in read}


def _digits(results: Path) -> str:
    """The table that `python cli.py fit --variant clafs` prints."""
    found, experiment = _records(results, "digits"), config.load(variant="clafs")
    shown = {name: found[name] for name in (experiment.method.name, *experiment.compare) if name in found}
    return "```text\n" + text_table(*comparison_table(shown)) + "\n```"


def _cifar10(results: Path) -> str:
    """One row per model, the published numbers beside the measured ones, and the commands."""
    shown = _records(results, "cifar10")
    header, rows = comparison_table(shown)
    header, published = [*header, "published clean / PGD-10"], _published()
    rows = [[f"`{row[0]}`", *row[1:], published.get(row[0], "")] for row in rows]
    return f"{markdown_table(header, rows)}\n\n{_commands(shown)}"


def _published() -> dict[str, str]:
    """Variant -> clean and PGD-10 accuracy of CLAF's Table 1, of ResNet-18 in its code's own protocol."""
    rows = [row for row in PAPERS["claf"].table("Table 1").rows if row.published]
    found = {config.load(config_path(f"claf/{row.config}")).method.name: row.published for row in rows}
    return {variant: f"{clean} / {robust}" for variant, (clean, robust, *_) in found.items()}


def _autoattack(results: Path) -> str:
    """One row per model: robust accuracy after each member of AutoAttack, and the commands."""
    shown, rows = _records(results / "autoattack", "cifar10"), []
    for name, record in shown.items():
        (row,) = record["rows"]
        rows.append([f"`{name}`", *map(percent, (row["clean_accuracy"], *row["stages"].values()))])
    header = ["model", "clean", *(f"after {member.label}" for member in AutoAttack().members)]
    return f"{markdown_table(header, rows)}\n\n{_commands(shown)}"


def _contrast(results: Path) -> str:
    """Adversarial training with and without contrastive terms, over seeds."""
    data = _contrast_table(results, "Table 1", "cpu")
    return "\n\n".join([*how_to_read([data]), markdown_of(data)])


def _contrast_table(results: Path, table: str, scale: str) -> dict:
    """A table of `report --paper contrast` at a scale, as JSON values."""
    paper, found = PAPERS["contrast"], Results(results)
    rows = experiments(paper, scale)
    setups = {row: found.setup(experiment) for row, experiment in rows.items()}
    return table_data(paper.table(table), found.lookup(rows), setups, scale)


CONTRAST_SCALES = {
    "small": "half the passes",
    "cpu": "the passes of Table 1",
    "large": "three times the passes",
    "noise": "half the passes, 20 % wrong labels",
    "few": "half the passes, 10 % of the images",
}
"""Scale of the tuned rows -> what it is."""


def _contrast_tuned(results: Path) -> str:
    """One row per scale at which a tuned row is measured: AutoAttack on test images, and what contrast adds."""
    rows = []
    for scale, text in CONTRAST_SCALES.items():
        data = _contrast_table(results, "Table 2", scale)
        at, tuned, contrast = (row["measured"][-1][0] for row in data["rows"])
        if tuned is None and contrast is None:
            continue
        means = [with_spread(f"{one['mean']:.1f}", one["spread"]) if one else "" for one in (at, tuned, contrast)]
        seeds = str(min(len(one["seeds"]) if one else 0 for one in (tuned, contrast)))
        difference, claim = data["differences"][1]["measured"][-1][0], data["claims"][1]
        rows.append([text, *means, seeds, difference_cell(difference), verdict_text(claim["measured"][0])])
    header = ["budget", "`at`", "`at`, tuned", "`at_scl`, tuned", "seeds", "contrast adds"]
    return markdown_table([*header, "contrast makes the tuned `at` more robust"], rows, right=range(1, 6))


def _contrast_corrupted(results: Path) -> str:
    """What contrast adds to the tuned `at` at the passes of Table 1 under corruptions, over seeds."""

    def accuracies(name: str) -> list[float]:
        paths = (results / f"attacks/{name}{seed}-corruptions.json" for seed in ("", "-seed1", "-seed2"))
        return [100 * RECORD.read(path)["corruptions"]["mean_accuracy"] for path in paths]

    at, contrast = accuracies("contrast-robust"), accuracies("contrast-robust-scl")
    differences = [mine - theirs for mine, theirs in zip(contrast, at, strict=True)]
    (*means, (mean, spread)) = map(mean_and_spread, (at, contrast, differences))
    verdict = "not decided (within its spread)" if abs(mean) <= (spread or 0) else "yes" if mean > 0 else "no"
    cells = [with_spread(f"{one:.1f}", over) for one, over in means]
    row = [*cells, str(len(at)), with_spread(signed(mean), spread), verdict]
    header = ["`at`, tuned", "`at_scl`, tuned", "seeds", "contrast adds", "contrast helps"]
    return markdown_table(header, [row], right=range(4))


def _plain_loop(results: Path) -> str:
    """The row AT of Table 1 as `fit` trains it, and as a plain loop does, over the same seeds."""
    measured = read_json(results / "benchmarks/plain_robust.json")
    at = _contrast_table(results, "Table 1", "cpu")["rows"][0]["measured"]
    values = {"`fit`": [column[0]["values"] for column in at]}
    names = [name for name in measured["rows"][0] if name != "seed"]
    values["plain loop"] = [[100 * row[name] for row in measured["rows"]] for name in names]
    rows = []
    for training, columns in values.items():
        found = map(mean_and_spread, columns)
        rows.append([training, str(len(columns[0])), *(with_spread(f"{mean:.1f}", spread) for mean, spread in found)])
    header = ["training", "seeds", "clean", "PGD-10", f"AutoAttack, {measured['autoattack_limit']:,} images"]
    return f"{markdown_table(header, rows, right=range(1, 5))}\n\n```\n{measured['command']}\n```"


def _reference(results: Path) -> str:
    """One row per network and attack: our result and torchattacks' on the same weights and images."""
    rows = []
    for path in sorted((results / "benchmarks").glob("attack_reference-*.json")):
        measured = read_json(path)
        name = Path(measured["model"]).name.removeprefix("cifar10-")
        ball = f"{measured['norm']} {format_epsilon(measured['epsilon'], measured['norm'])}"
        for attack, row in measured["summary"].items():
            shares = (percent(row[key]) for key in ("ours", "torchattacks", "agreement"))
            rows.append([f"`{name}`", ball, attack, str(measured["images"]), *shares])
    header = ["network", "ball", "attack", "images", "ours", "torchattacks", "same outcome"]
    return markdown_table(header, rows, right=(3, 4, 5, 6))


def _protocols(results: Path) -> str:
    """One row per model, one column per protocol: robust accuracy, and the largest distance in pixels."""
    shown, strongest, rows = _records(results / "protocols", "cifar10"), _records(results / "autoattack", "cifar10"), []
    for name, record in shown.items():
        cells = [f"{percent(row['robust_accuracy'])} ({255 * row['largest_distance']:.1f})" for row in record["rows"]]
        worst = percent(strongest[name]["rows"][0]["robust_accuracy"]) if name in strongest else ""
        rows.append([f"`{name}`", percent(record["clean_accuracy"]), *cells, worst])
    names = list(dict.fromkeys(row["protocol"] for record in shown.values() for row in record["rows"]))
    header = ["model", "clean", *(f"PGD-10 {name}" for name in names), "AutoAttack pixel"]
    return f"{markdown_table(header, rows)}\n\n{_commands(shown)}"


FAMILIES = {
    "noise": CORRUPTION_KINDS[:3],
    "blur": CORRUPTION_KINDS[3:7],
    "weather": CORRUPTION_KINDS[7:11],
    "digital": CORRUPTION_KINDS[11:],
}
"""The kinds of corruption in the paper's four groups."""


def _corruptions(results: Path) -> str:
    """One row per published network."""
    return _corruption_table((results / "published").glob("*-corruptions.json"))


def _corruptions_of_methods(results: Path) -> str:
    """One row per network that was trained here."""
    return _corruption_table((results / "attacks").glob("*-corruptions.json"))


def _corruption_table(paths: Iterable[Path]) -> str:
    """One row per record: mean accuracy on corrupted images, of all kinds and of each group."""
    rows, commands, images = [], [], 0
    for path in sorted(paths):
        record = RECORD.read(path)
        summary, images = record["corruptions"], record["images"]
        groups = [statistics.fmean(summary["kinds"][kind] for kind in kinds) for kinds in FAMILIES.values()]
        shares = record["clean_accuracy"], summary["mean_accuracy"], *groups
        rows.append([f"`{record['model']['name'].removeprefix('cusin-')}`", *map(percent, shares)])
        commands.append(record["command"])
    table = markdown_table(["network", "clean", "corrupted", *FAMILIES], rows)
    shown = "\n".join(dict.fromkeys(commands))
    return f"{table}\n\nIn % of {images} images, each under 75 corruptions.\n\n```\n{shown}\n```"


def _verifications(results: Path) -> str:
    """One row per model and epsilon: clean, attacked and verified accuracy, and the commands."""
    shown, rows = [], []
    for path in sorted((results / "verifications").glob("*.json")):
        record = VERIFICATION.read(path)
        if record.get("count"):  # only part of the images was bounded, for a paper's table
            continue
        shown.append(record["command"])
        for row in record["rows"]:
            measured = [percent(row[f"{kind}_accuracy"]) for kind in ("clean", "attacked", "verified")]
            name, epsilon = f"`{record['model']['name']}`", format_pixels(row["epsilon"])
            rows.append([name, epsilon, str(record["images"]), *measured, f"{row['seconds'] / record['images']:.2f}"])
    header = ["model", "epsilon", "images", "clean", "attacked", "verified", "s/image"]
    commands = "\n".join(shown)
    return f"{markdown_table(header, rows)}\n\n```\n{commands}\n```"


def _audits(results: Path) -> str:
    """One block per committed audit: its command, the checks that it raised, and the verdict."""
    blocks = []
    for path in sorted((results / "audits").glob("*.json")):
        found = AUDIT.read(path)
        raised = [finding for finding in found["findings"] if finding["status"] == "raised"]
        lines = [
            f"$ {found['command']}",
            *(f"{finding['check']}: raised because {finding['because']}." for finding in raised),
        ]
        blocks.append("\n".join([*lines, f"The claim {found['verdict']}: {found['reason']}."]))
    return "```text\n" + "\n\n".join(blocks) + "\n```"


def _audited_models(results: Path) -> str:
    """One row per audited model: its accuracies, and the verdicts on a claim above and one below the truth."""
    found = read_json(results / "benchmarks/audits.json")
    rows = [
        [
            row["kind"],
            name.replace("_", " "),
            *(percent(row[key]) for key in ("clean_accuracy", "verifier", "audit", "truth")),
            row["above"],
            row["below"],
            ", ".join(row["raised"]),
        ]
        for name, row in found["rows"].items()
    ]
    header = ["", "model", "clean", "AutoAttack", "audit", "truth", "5 points above", "5 points below", "raised checks"]
    images = next(iter(found["rows"].values()))["images"]
    text = markdown_table(header, rows, right=range(2, 6))
    return f"{text}\n\nIn % of {images} images. Command:\n\n```\n{found['command']}\n```"


def _studies(results: Path) -> str:
    """One row per search: its trials by how they ended, the first one, which nobody tuned, and the best one."""
    rows, found = [], []
    for path in sorted((results / "studies").glob("*/study.json")):
        study = STUDY.read(path)
        if "search" not in study["question"] or study["best"] is None:  # a repetition is in `_repeats`
            continue
        trials = {trial["number"]: trial for trial in study["trials"]}
        ended = Counter(trial["state"] for trial in trials.values())
        first, best = trials[0], trials[study["best"]]
        method = study["question"]["method"]
        counts = (str(ended[state]) for state in ("done", "pruned", "failed"))
        measured = (percent(trial["objective"]) for trial in (first, best))
        facts = path.parent.name, f"`{method['name']}`", f"{method['passes']:g}", study["attack"].split()[0]
        rows.append([*facts, *counts, *measured, str(best["number"])])
        chosen = ", ".join(
            f"{name.removeprefix('method.')} {_short(value)}" for name, value in best["settings"].items()
        )
        found.append(f"- {path.parent.name}, trial {best['number']}: {chosen}")
    header = ["study", "variant", "passes", "attack", "done", "pruned", "failed"]
    header += ["first trial", "best trial", "its number"]
    return markdown_table(header, rows) + "\n\nThe settings of the best trials:\n\n" + "\n".join(found)


def _repeats(results: Path) -> str:
    """The table that `tune --repeat` prints, of each study that repeats trials."""
    studies = {path.parent.name: STUDY.read(path) for path in sorted((results / "studies").glob("*/study.json"))}
    return "\n\n".join(
        f"{name} (`{study['question']['method']['name']}`, {study['question']['method']['passes']:g} passes):\n\n"
        f"```text\n{repeats_table(study)}\n```"
        for name, study in studies.items()
        if "repeat" in study["question"]
    )


def _short(text: str) -> str:
    """The text of a setting, a number with at most three significant digits."""
    return f"{float(text):.3g}" if re.fullmatch(r"[\d.e-]+", text) else text


def _commands(shown: dict[str, dict]) -> str:
    return "```\n" + "\n".join(record["command"] for record in shown.values()) + "\n```"


TIMED = {
    "attack_throughput-resnet18": "PGD-10, ResNet-18",
    "attack_throughput-strided_cnn": "PGD-10, Cusin's CNN",
    "evaluation-pgd": "PGD-40 with 5 restarts, Cusin's CNN",
    "evaluation-autoattack": "AutoAttack, Cusin's CNN",
}
"""Committed benchmark -> the task that it times."""

PEERS = ("art", "foolbox", "cleverhans", "torchattacks", "plain tape", "plain torch")


def _speed(results: Path) -> str:
    """One row a task: how many times our time each peer takes, PyTorch in the faster of its two memory layouts."""
    rows = []
    for name, task in TIMED.items():
        measured = read_json(results / f"benchmarks/{name}.json")
        seconds = {contender: row["seconds"] for contender, row in measured["rows"].items()}
        best = (min((seconds[n] for n in (peer, f"{peer}, NHWC") if n in seconds), default=None) for peer in PEERS)
        ratios = (f"{peer / seconds['ours']:.2f}" if peer else "" for peer in best)
        ours = (f"{seconds[name]:.2f}" if name in seconds else "" for name in ("ours", "ours, bfloat16"))
        rows.append([task, str(measured["images"]), *ours, *ratios])
    return markdown_table(["attack", "images", "ours, s", "in bfloat16, s", *PEERS], rows)


TABLES = (
    *(_variants, _digits, _cifar10, _autoattack, _contrast, _reference, _protocols),
    *(_corruptions, _corruptions_of_methods, _verifications, _audits, _audited_models, _speed),
    *(_studies, _repeats, _contrast_tuned, _contrast_corrupted, _plain_loop),
)


def readme_tables(results: Path) -> dict[str, Callable[[], str]]:
    """Name of a generated block -> the function that makes its text from the records in `results`."""
    return {table.__name__.lstrip("_"): partial(table, results) for table in TABLES}
