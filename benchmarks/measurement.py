"""Timing, memory, environment and results, for the questions here and for reproduce/."""

import fcntl
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from torchsheaf.file import write_text

RESULTS = Path(__file__).resolve().parent / "results"


def environment() -> dict[str, Any]:
    """Where the numbers come from: versions, threads, machine, load and commit."""
    git = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=RESULTS.parent,
        capture_output=True,
        text=True,
    )
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "machine": f"{platform.system()} {platform.machine()}",
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "commit": git.stdout.strip() or "unknown",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def write_result(name: str, result: Mapping[str, Any]) -> Path:
    """results/<name>.json with the environment, written whole or not at all; also printed."""
    text = as_json({**result, "environment": environment()}) + "\n"
    sys.stdout.write(text)
    return write_text(RESULTS / f"{name}.json", text)


def update_result(name: str, part: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Replace one part of results/<name>.json, with its own environment; returns all parts."""
    measured = {**entry, "environment": environment()}
    return revise(RESULTS / f"{name}.json", lambda known: known | {part: measured})


def revise(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """Change what a JSON file holds ({} where there is none); returns what it holds then.

    Several processes may do so at once: reading and writing are one locked step.
    """
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = change(json.loads(path.read_text()) if path.exists() else {})
        write_text(path, as_json(known) + "\n")
    return known


def as_json(value: Any, indent: str = "") -> str:
    """JSON in which an object or a list without others inside takes one line."""
    inside = value.values() if isinstance(value, Mapping) else value
    nested = isinstance(value, Mapping | list | tuple)
    if not nested or not any(isinstance(v, Mapping | list | tuple) for v in inside):
        return json.dumps(value, ensure_ascii=False)
    deeper = indent + " "
    if isinstance(value, Mapping):
        lines = [f"{json.dumps(k)}: {as_json(v, deeper)}" for k, v in value.items()]
    else:
        lines = [as_json(v, deeper) for v in value]
    left, right = "{}" if isinstance(value, Mapping) else "[]"
    return f"{left}\n{deeper}" + f",\n{deeper}".join(lines) + f"\n{indent}{right}"


def seconds(function: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def interleaved(
    functions: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, dict[str, float]]:
    """Median and least time of each function; the functions take turns, so ratios are fair."""
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            times[name].append(seconds(function))
    return {n: {"median_s": statistics.median(t), "least_s": min(t)} for n, t in times.items()}


def peak_megabytes() -> float:
    """The most memory this process has ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
