"""Decides instances of VNN-COMP 2021 beside alpha-beta-CROWN: the same cores, time limits and instances, in turn.

    python -m venv crown && crown/bin/pip install ctrain onnxruntime   # and onnx2pytorch of alpha-beta-CROWN's authors
    taskset -c 1 python -m benchmarks.alpha_beta_crown ../shared/data/vnncomp2021 acasxu:24 mnistfc:20 eran:10 \\
        oval21:4 cifar10_resnet:4 --crown crown/bin/python --timeout 30 --json results/benchmarks/alpha_beta_crown.json

CATEGORY:NUMBER takes a seeded part of a category, the same as `benchmarks.vnncomp`. alpha-beta-CROWN is the copy in the
package `ctrain`, one process per instance, with its own configurations for this competition (`SETTINGS`). What differs:
it runs on the CPU, with batches that fit one; it uses neither Gurobi nor CPLEX, which need licences. Its time is the
one that it reports, without imports and without loading; ours counts from reading the files and includes tracing. The
file is written after every instance; the same command resumes it.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from benchmarks.command import command_line
from benchmarks.vnncomp import chosen, instances_file, published
from keras_rcl.errors import InvalidInputError
from keras_rcl.evaluation.record import versions
from keras_rcl.storage.atomic import write_json
from keras_rcl.workflows.verify_properties import verifier_of_properties

OURS, THEIRS = "keras_rcl", "alpha-beta-CROWN"

SETTINGS = {
    "acasxu": {
        "solver": {"batch_size": 2048, "bound_prop_method": "crown"},
        "bab": {
            "branching": {"method": "naive", "input_split": {"enable": True, "reorder_bab": True}},
            "clip_n_verify": {"clip_input_domain": {"enabled": True}},
        },
        "attack": {"pgd_order": "after", "pgd_restarts": 10000, "pgd_restart_when_stuck": True},
    },
    "mnistfc": {
        "solver": {"batch_size": 512, "beta-crown": {"iteration": 20, "lr_beta": 0.03}},
        "bab": {"branching": {"candidates": 5, "reduceop": "max"}},
    },
    "eran": {
        "model": {"onnx_optimization_flags": "remove_ineffective_layers, remove_relu_in_last_layer"},
        "solver": {"batch_size": 256, "beta-crown": {"iteration": 20}},
    },
    "oval21": {
        "general": {"conv_mode": "matrix"},
        "solver": {"batch_size": 64, "beta-crown": {"lr_beta": 0.01}},
        "bab": {"branching": {"reduceop": "max", "candidates": 10}},
        "attack": {"pgd_order": "middle"},
    },
    "cifar10_resnet": {
        "solver": {"batch_size": 64, "beta-crown": {"lr_beta": 0.01}},
        "attack": {"pgd_order": "skip"},
        "bab": {"branching": {"reduceop": "max"}},
    },
}
"""By category, the settings of alpha-beta-CROWN's own configurations, with smaller batches."""

SIGMOID = {
    "general": {"complete_verifier": "skip", "loss_reduction_func": "min"},
    "solver": {"alpha-crown": {"iteration": 1000, "lr_decay": 0.999}},
    "attack": {"pgd_order": "before"},
}
"""The same for the network of sigmoids."""

WORDS = {"safe": "unsat", "safe-incomplete": "unsat", "unsat": "unsat", "sat": "sat"}
WORDS |= dict.fromkeys(("unsafe", "unsafe-pgd", "unsafe-bab"), "sat")


def script_of(python: str) -> Path:
    """The program of alpha-beta-CROWN in the environment of a Python with `ctrain`."""
    found = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], capture_output=True, text=True
    )
    script = Path(found.stdout.strip()) / "CTRAIN/verification_systems/abCROWN/complete_verifier/abcrown.py"
    if not script.exists():
        sys.exit(f"{python} has no alpha-beta-CROWN: install ctrain there. {found.stderr.strip()}")
    return script


def versions_there(python: str) -> dict[str, str]:
    """The versions of what runs in the environment of alpha-beta-CROWN."""
    program = (
        "import auto_LiRPA, importlib.metadata as m, json; found = {n: m.version(n) for n in ('ctrain', 'torch')}; "
        "print(json.dumps(found | {'auto_LiRPA': auto_LiRPA.__version__}))"
    )
    return json.loads(subprocess.run([python, "-c", program], capture_output=True, text=True, check=True).stdout)


def crown(python: str, script: Path, category: str, onnx: Path, vnnlib: Path, limit: float) -> dict:
    """The answer of alpha-beta-CROWN, its word for it, and the seconds that it reports."""
    settings = SIGMOID if "SIGMOID" in onnx.name else SETTINGS[category]
    general = {"device": "cpu", "complete_verifier": "bab"} | settings.get("general", {})
    with tempfile.TemporaryDirectory() as folder:
        (config := Path(folder, "config.yaml")).write_text(yaml.safe_dump(settings | {"general": general}))
        words = ["--config", config, "--onnx_path", onnx, "--vnnlib_path", vnnlib, "--timeout", str(limit)]
        words += ["--results_file", Path(folder, "result.txt")]
        environment = os.environ | {"PYTHONPATH": os.environ.get("CROWN_PYTHONPATH", "")}
        try:
            done = subprocess.run(
                [python, script, *words], capture_output=True, text=True, timeout=2 * limit + 120, env=environment
            )
        except subprocess.TimeoutExpired:
            return {"answer": "timeout", "word": "killed", "seconds": 2 * limit + 120}
    said = re.findall(r"^Result: (\S+)", done.stdout, re.MULTILINE)
    seconds = re.findall(r"^Time: ([0-9.]+)", done.stdout, re.MULTILINE)
    if not said:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        return {"answer": "timeout", "word": f"failed: {' '.join(last)}", "seconds": 0.0}
    return {"answer": WORDS.get(said[-1], "timeout"), "word": said[-1], "seconds": round(float(seconds[-1]), 2)}


def ours(decide, onnx: Path, vnnlib: Path, limit: float) -> dict:
    """Our answer, what decided it and the seconds."""
    try:
        found = decide(onnx, vnnlib, limit)
    except InvalidInputError as error:
        return {"answer": "timeout", "word": f"failed: {str(error).rpartition('/')[2]}", "seconds": 0.0}
    return {"answer": found.answer, "word": found.decided_by, "seconds": round(found.seconds, 2)}


def decided(row: dict, tool: str) -> bool:
    return row[tool]["answer"] != "timeout" and row[tool]["seconds"] <= row["timeout"]


def summary(rows: list[dict]) -> dict[str, dict]:
    """By category and in all: what each decided, the time of what both decided, contradictions."""
    found = {}
    for category in [*dict.fromkeys(row["category"] for row in rows), "all"]:
        own = [row for row in rows if category in (row["category"], "all")]
        both = [row for row in own if decided(row, OURS) and decided(row, THEIRS)]
        found[category] = {"instances": len(own), "both": len(both)}
        for tool in (OURS, THEIRS):
            spent = sum(
                min(row[tool]["seconds"], row["timeout"]) if decided(row, tool) else row["timeout"] for row in own
            )
            found[category][tool] = {
                "decided": sum(decided(row, tool) for row in own),
                "seconds_of_both": round(sum(row[tool]["seconds"] for row in both), 1),
                "seconds": round(spent, 1),
            }
        found[category]["contradictions"] = sum(row[OURS]["answer"] != row[THEIRS]["answer"] for row in both)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("parts", nargs="+", metavar="CATEGORY:NUMBER")
    parser.add_argument("--crown", required=True, metavar="PYTHON", help="the Python of an environment with ctrain")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds per instance")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    script, answers = script_of(options.crown), published(options.folder)
    record = {"settings": {"timeout": options.timeout, "seed": options.seed}, "instances": []}
    if options.json.exists():
        record = json.loads(options.json.read_text(encoding="utf-8"))
    done = {(row["category"], row["network"], row["property"]) for row in record["instances"]}
    decide = verifier_of_properties(float64=False, seed=options.seed)
    for part in options.parts:
        category, _, number = part.partition(":")
        base = instances_file(options.folder, category).parent
        for onnx, vnnlib, _ in chosen(options.folder, category, int(number), options.seed):
            if (category, onnx, vnnlib) in done:
                continue
            row = {"category": category, "network": onnx, "property": vnnlib, "timeout": options.timeout}
            files = base / onnx, base / vnnlib
            runs = {
                OURS: lambda files=files: ours(decide, *files, options.timeout),
                THEIRS: lambda files=files, category=category: crown(
                    options.crown, script, category, *files, options.timeout
                ),
            }
            order = (OURS, THEIRS) if len(record["instances"]) % 2 else (THEIRS, OURS)
            row |= {tool: runs[tool]() for tool in order}
            row["published"] = answers.get((category, Path(onnx).name, Path(vnnlib).name), {})
            record["instances"].append(row)
            record |= {
                "command": command_line(),
                "cores": len(os.sched_getaffinity(0)),
                "versions": versions() | versions_there(options.crown),
                "categories": summary(record["instances"]),
            }
            write_json(options.json, record)
            print(json.dumps({name: row[name] for name in ("network", "property", OURS, THEIRS)}), flush=True)
    for category, row in record["categories"].items():
        print(category, row)


if __name__ == "__main__":
    main()
