"""Peak memory of one solve with 10M parameters, in a process of its own, as a line of JSON."""

import json
import resource
import time

import torch

import torchsheaf as ts
from tests.reference.networks import randn, relu_mlp

WIDTHS = [1200, 1400, 1400, 1400, 1400, 1400, 1400, 10]
BATCH = 128


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    torch.set_num_threads(1)
    net = relu_mlp(WIDTHS, 0, dtype=torch.float32)
    weights = sum(p.numel() for p in net.parameters())
    activations = BATCH * (WIDTHS[0] + 2 * sum(WIDTHS[1:-1]) + WIDTHS[-1])
    x, y = randn(1, BATCH, WIDTHS[0], dtype=torch.float32), randn(2, BATCH, 10, dtype=torch.float32)
    problem = ts.hold(ts.encode(net, x), x).pin(ts.Pin("output", y))
    small = ts.hold(problem.sheaf, x[:1]).pin(ts.Pin("output", y[:1]))
    ts.harmonic_extension(small, tol=1.0, start="forward", throw=False, max_passes=10)
    before, begin = peak(), time.perf_counter()
    found = ts.harmonic_extension(problem, tol=1e-3, throw=False, max_passes=300)
    used = peak() - before
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
