"""Decides instances of VNN-COMP 2021 and compares the answers with what the tools of that year published.

    taskset -c 0 python -m benchmarks.vnncomp ../shared/data/vnncomp2021 eran --most 24 \\
        --json results/benchmarks/vnncomp-eran.json

FOLDER holds one folder per category with its `*_instances.csv`, and in `results/` one file per tool. Of each category a
seeded part is taken; a larger part holds a smaller one. An answer after the time limit counts as undecided. A
contradiction is a `sat` where at least half of the tools that decided say `unsat`, or the reverse. Our `sat` has
a witness, which float64 and onnxruntime confirm. The file is written after every instance; the same command resumes it.
"""

import argparse
import csv
import json
import os
import sys
from pathlib import Path

import numpy as np

from benchmarks.command import command_line
from keras_rcl.runtime.tensorflow import start_tensorflow

start_tensorflow()

from keras_rcl.errors import InvalidInputError  # noqa: E402
from keras_rcl.evaluation.record import versions  # noqa: E402
from keras_rcl.storage.atomic import write_json  # noqa: E402
from keras_rcl.workflows.verify_properties import read_instances, verifier_of_properties  # noqa: E402

WORDS = {"holds": "unsat", "unsat": "unsat", "violated": "sat", "sat": "sat"}
"""The tools' words for decided answers; all others are undecided."""


def instances_file(folder: Path, category: str) -> Path:
    (path,) = (folder / category).glob("*_instances.csv")
    return path


def published(folder: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    """(category, network, property) -> the answer of each tool that decided it; of files the last name."""
    found: dict = {}
    for path in sorted((folder / "results").glob("*.csv")):
        for category, onnx, vnnlib, _, said, _ in csv.reader(path.read_text(encoding="utf-8").splitlines()):
            if answer := WORDS.get(said.lower()):
                found.setdefault((category, Path(onnx).name, Path(vnnlib).name), {})[path.stem] = answer
    return found


def chosen(folder: Path, category: str, most: int | None, seed: int) -> list[tuple[str, str, float]]:
    """A seeded part of a category's instances, in their order."""
    instances = read_instances(instances_file(folder, category))
    if most is None or most >= len(instances):
        return instances
    order = np.random.default_rng(seed).permutation(len(instances))[:most]
    return [instances[index] for index in sorted(order)]


def contradicted(row: dict) -> bool:
    """Whether at least half of the tools that decided an instance say otherwise."""
    others = sum(answer != row["answer"] for answer in row["published"].values())
    return others > 0 and 2 * others >= len(row["published"])


def summary(rows: list[dict], tools: list[str]) -> dict[str, dict]:
    """By category: the number of instances, those that we and each tool decided, and contradictions."""
    found = {}
    for category in dict.fromkeys(row["category"] for row in rows):
        own = [row for row in rows if row["category"] == category]
        answered = [row for row in own if row["answer"] != "timeout"]
        decided = [row for row in answered if row["seconds"] <= row["timeout"]]
        found[category] = {
            "instances": len(own),
            "sat": sum(row["answer"] == "sat" for row in decided),
            "unsat": sum(row["answer"] == "unsat" for row in decided),
            "late": len(answered) - len(decided),
            "contradictions": sum(contradicted(row) for row in answered),
            "median_seconds": round(float(np.median([row["seconds"] for row in decided] or [0.0])), 2),
            "tools": {tool: sum(tool in row["published"] for row in own) for tool in tools},
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("categories", nargs="+")
    parser.add_argument("--most", type=int, help="instances per category; all by default")
    parser.add_argument("--share", type=float, default=0.5, help="of the competition's time-outs")
    parser.add_argument("--timeout", type=float, help="the largest number of seconds per instance")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    settings = {"share": options.share, "timeout": options.timeout, "seed": options.seed}
    answers = published(options.folder)
    tools = sorted(path.stem for path in (options.folder / "results").glob("*.csv"))
    record = {"settings": settings, "instances": []}
    if options.json.exists():
        record = json.loads(options.json.read_text(encoding="utf-8"))
        if record["settings"] != settings:
            sys.exit(f"{options.json} has other settings: {record['settings']}")
    done = {(row["category"], row["network"], row["property"]) for row in record["instances"]}
    command = command_line()
    decide = verifier_of_properties(float64=False, seed=options.seed)
    for category in options.categories:
        base = instances_file(options.folder, category).parent
        for onnx, vnnlib, seconds in chosen(options.folder, category, options.most, options.seed):
            if (category, onnx, vnnlib) in done:
                continue
            limit = min(seconds * options.share, options.timeout or seconds)
            row = {"category": category, "network": onnx, "property": vnnlib, "timeout": limit}
            try:
                found = decide(base / onnx, base / vnnlib, row["timeout"])
                row |= {"answer": found.answer, "decided_by": found.decided_by, "seconds": round(found.seconds, 2)}
            except InvalidInputError as error:
                row |= {"answer": "timeout", "decided_by": "", "seconds": 0.0, "error": str(error).rpartition("/")[2]}
            row["published"] = answers.get((category, Path(onnx).name, Path(vnnlib).name), {})
            record["instances"].append(row)
            record |= {
                "commands": list(dict.fromkeys([*record.get("commands", []), command])),
                "cores": len(os.sched_getaffinity(0)),
                "versions": versions(),
                "categories": summary(record["instances"], tools),
            }
            write_json(options.json, record)
            print(json.dumps({**row, "published": sorted(set(row["published"].values()))}), flush=True)
    for category, row in record["categories"].items():
        print(category, row)


if __name__ == "__main__":
    main()
