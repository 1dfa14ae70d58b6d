"""Timing, memory, environment and atomic results, shared by the questions in this folder."""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

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
        "commit": git.stdout.strip() or "unknown",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def write_result(name: str, result: Mapping[str, Any]) -> Path:
    """results/<name>.json with the environment, written whole or not at all; also printed."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({**result, "environment": environment()}, indent=2) + "\n"
    path = RESULTS / f"{name}.json"
    with tempfile.NamedTemporaryFile("w", dir=RESULTS, delete=False, suffix=".tmp") as file:
        file.write(text)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)
    sys.stdout.write(text)
    return path


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
