"""What does the harmonic extension of the input cost beside the forward pass it equals?

[784, 1024 × 10, 10], batch 128, float32. The promise: at most three forward passes.

    python -m benchmarks.substitution_cost
"""

from itertools import pairwise

import torch
from torch import nn

import torchsheaf as ts
from benchmarks.measurement import interleaved, write_result

WIDTHS, BATCH, REPEATS, PROMISE = [784, *[1024] * 10, 10], 128, 15, 3.0


def network() -> nn.Sequential:
    layers = [m for a, b in pairwise(WIDTHS) for m in (nn.Linear(a, b), nn.ReLU())][:-1]
    return nn.Sequential(*layers).eval()


def main() -> None:
    torch.manual_seed(0)
    model, x = network(), torch.randn(BATCH, WIDTHS[0])
    sheaf = ts.encode(model, x)
    problem = ts.hold(sheaf, x)

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return model(x)

    extension = ts.harmonic_extension(problem)
    error = (extension.output - forward()).abs().max() / forward().abs().max()
    times = interleaved(
        {
            "forward": forward,
            "extension": lambda: ts.harmonic_extension(problem),
            "hold and extension": lambda: ts.harmonic_extension(ts.hold(sheaf, x)),
        },
        REPEATS,
    )
    base = times["forward"]["median_s"]
    ratio = times["extension"]["median_s"] / base
    write_result(
        "substitution_cost",
        {
            "question": "extension of the input, in forward passes",
            "widths": WIDTHS,
            "batch": BATCH,
            "times": times,
            "ratio": ratio,
            "ratio_with_hold": times["hold and extension"]["median_s"] / base,
            "promise": PROMISE,
            "kept": ratio <= PROMISE,
            "relative_error": float(error),
            "energy": float(extension.energy.max()),
        },
    )


if __name__ == "__main__":
    main()
