"""How long does a GPT-2-small take to encode, to substitute, to give its gap, in what memory?

124M parameters, random weights, sequence 64, batch 4, float32. Each phase runs in a process of
its own, so that its peak of resident memory is its own. Writes results/architectures.json.

    python -m benchmarks.architectures            # about two minutes on two cores
    python -m benchmarks.architectures --phase gap
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import torchsheaf as ts
from benchmarks.measurement import peak_megabytes, seconds, write_result

SEQUENCE, BATCH = 64, 4


class Logits(nn.Module):
    """The language model, returning its logits only."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids, return_dict=False)[0]


def gpt2_small() -> tuple[nn.Module, Tensor]:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = Logits(GPT2LMHeadModel(GPT2Config(use_cache=False))).eval()
    return model, torch.randint(50257, (BATCH, SEQUENCE))


def resident() -> float:
    """Resident memory now, MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def median_time(action: Callable[[], object], repeats: int = 3) -> float:
    return statistics.median(seconds(action) for _ in range(repeats))


def forward() -> dict[str, Any]:
    """One forward pass whose activations are kept for a backward pass."""
    model, ids = gpt2_small()
    start = resident()
    with torch.no_grad():
        plain = median_time(lambda: model(ids))
    before = resident()
    logits = model(ids)
    kept = resident() - before
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "parameters": parameters,
        "seconds_without_gradients": plain,
        "model_mib": start,
        "kept_activations_mib": kept,
        "peak_mib": peak_megabytes(),
        "finite": bool(logits.isfinite().all()),
    }


def encode() -> dict[str, Any]:
    model, ids = gpt2_small()
    before = resident()
    begin = time.perf_counter()
    sheaf = ts.encode(model, ids)
    taken = time.perf_counter() - begin
    return {
        "seconds": taken,
        "vertices": len(sheaf.vertices),
        "free_coordinates_per_sample": sheaf.edge_space.dim,
        "added_peak_mib": peak_megabytes() - before,
    }


def substitution() -> dict[str, Any]:
    model, ids = gpt2_small()
    sheaf = ts.encode(model, ids)
    problem = ts.hold(sheaf, ids)
    with torch.no_grad():
        plain = median_time(lambda: model(ids))
        expected = model(ids)
    taken = median_time(lambda: problem.start("forward"))
    extension = ts.harmonic_extension(problem)
    error = (extension.output - expected).abs().max() / expected.abs().max()
    return {
        "seconds": taken,
        "model_seconds": plain,
        "forward_passes": taken / plain,
        "relative_error": float(error),
        "energy": float(extension.energy.max()),
    }


def gap() -> dict[str, Any]:
    model, ids = gpt2_small()
    before = resident()
    problem = ts.hold(ts.encode(model, ids), ids)
    begin = time.perf_counter()
    spectrum = ts.spectrum(problem, vectors=False)
    taken = time.perf_counter() - begin
    return {
        "seconds": taken,
        "sweeps": spectrum.passes,
        "gap": spectrum.values[:, 0].tolist(),
        "relative_residual": float(spectrum.residual.max()),
        "added_peak_mib": peak_megabytes() - before,
        "peak_mib": peak_megabytes(),
    }


PHASES: dict[str, Callable[[], dict[str, Any]]] = {
    "forward": forward,
    "encode": encode,
    "substitution": substitution,
    "gap": gap,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--phase", choices=PHASES)
    arguments = parser.parse_args()
    if arguments.phase:
        print(json.dumps(PHASES[arguments.phase]()))
        return
    found: dict[str, Any] = {"sequence": SEQUENCE, "batch": BATCH}
    for phase in PHASES:
        command = [sys.executable, "-m", "benchmarks.architectures", "--phase", phase]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found[phase] = json.loads(lines.strip().splitlines()[-1])
        print(phase, json.dumps(found[phase]), flush=True)
    base = found["forward"]
    found["memory"] = {
        "peak_over_forward_with_kept_activations": found["gap"]["peak_mib"] / base["peak_mib"],
        "added_over_kept_activations": found["gap"]["added_peak_mib"]
        / base["kept_activations_mib"],
    }
    write_result("architectures", found)


if __name__ == "__main__":
    main()
