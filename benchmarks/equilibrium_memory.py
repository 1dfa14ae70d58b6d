"""Peak memory of one solve with 10M parameters, in a process of its own, as a line of JSON."""

import ctypes
import gc
import json
import time
from pathlib import Path

import torch

import torchsheaf as ts
from tests.reference.networks import randn, relu_mlp

WIDTHS = [1200, 1400, 1400, 1400, 1400, 1400, 1400, 10]
BATCH = 128


def resident(which: str) -> int:
    """VmRSS (now) or VmHWM (the peak since the last `forget_peak`), bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which)) * 1024


def forget_peak() -> None:
    """Building the model needs more memory than the solve: give it back, start the peak anew."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    torch.set_num_threads(1)
    net = relu_mlp(WIDTHS, 0, dtype=torch.float32)
    weights = sum(p.numel() for p in net.parameters())
    activations = BATCH * (WIDTHS[0] + 2 * sum(WIDTHS[1:-1]) + WIDTHS[-1])
    x, y = randn(1, BATCH, WIDTHS[0], dtype=torch.float32), randn(2, BATCH, 10, dtype=torch.float32)
    problem = ts.hold(ts.encode(net, x), x).pin(ts.Pin("output", y))
    small = ts.hold(problem.sheaf, x[:1]).pin(ts.Pin("output", y[:1]))
    ts.harmonic_extension(small, tol=1.0, start="forward", throw=False, max_passes=10)
    forget_peak()
    before, begin = resident("VmRSS"), time.perf_counter()
    found = ts.harmonic_extension(problem, tol=1e-3, throw=False, max_passes=300)
    used = resident("VmHWM") - before
    unit = 4 * (weights + activations)
    print(
        json.dumps(
            {
                "parameters": weights,
                "batch": BATCH,
                "weights plus activations, MB": unit / 1e6,
                "growth of peak memory in the solve, MB": used / 1e6,
                "ratio (growth + weights) / (weights + activations)": (used + 4 * weights) / unit,
                "sweeps": found.passes,
                "outcome": found.outcome.value,
                "worst stationarity": float(found.stationarity.max()),
                "seconds": round(time.perf_counter() - begin, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
