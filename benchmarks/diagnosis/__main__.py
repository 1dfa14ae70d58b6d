"""All evidence for docs/diagnosis.md from one command.

    python -m benchmarks.diagnosis [noise] [faults] [shifts] [speed] [watch]

Without arguments everything, about four minutes on one core. Every part replaces its own entry of
benchmarks/results/diagnosis.json and prints its table.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.diagnosis import fault_location, label_noise, overhead, shifted_inputs
from benchmarks.diagnosis.tasks import TASKS
from benchmarks.measurement import update_result

SEEDS = (0, 1, 2)
Row = dict[str, Any]


def noise() -> list[Row]:
    rows = []
    for task in TASKS:
        for share in label_noise.NOISE:
            for seed in SEEDS:
                found = label_noise.study(task, share, seed)
                fitted = found["fitted"]
                rows += [
                    {"task": task, "noise": share, "seed": seed, "method": m, "auc": a, **fitted}
                    for m, a in found["auc"].items()
                ]
    return rows


def faults() -> list[Row]:
    return [r for n in fault_location.NETWORKS for s in SEEDS for r in fault_location.study(n, s)]


def shifts() -> list[Row]:
    return [r for n in shifted_inputs.NAMES for s in SEEDS for r in shifted_inputs.study(n, s)]


PARTS: dict[str, Callable[[], list[Row]]] = {
    "noise": noise, "faults": faults, "shifts": shifts, "speed": overhead.speed,
    "watch": overhead.watching,
}  # fmt: skip
# What rows are grouped by, and what is averaged over seeds.
GROUPS = {
    "noise": (("task", "noise", "method"), ("auc",)),
    "faults": (("network", "faults", "method"), ("exact", "auc")),
    "shifts": (("task", "shift", "method"), ("auc",)),
}


def summary(part: str, rows: list[Row]) -> list[Row]:
    """Mean and standard deviation over seeds."""
    if part not in GROUPS:
        return rows
    keys, measures = GROUPS[part]
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[k] for k in keys), []).append(row)
    found = []
    for key, members in groups.items():
        out: Row = dict(zip(keys, key, strict=True))
        for measure in measures:
            values = [m[measure] for m in members]
            out[measure] = round(statistics.mean(values), 4)
            out[f"{measure}_std"] = round(statistics.stdev(values), 4)
        found.append(out | {"seeds": len(members)})
    return found


def main(arguments: list[str]) -> int:
    if set(arguments) - PARTS.keys():
        print(__doc__)
        return 2
    torch.set_num_threads(1)
    for part in arguments or PARTS:
        began = time.process_time()
        rows = summary(part, PARTS[part]())
        taken = round(time.process_time() - began, 1)
        update_result("diagnosis", part, {"rows": rows, "cpu_seconds": taken})
        print(f"== {part}", *map(json.dumps, rows), sep="\n", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
