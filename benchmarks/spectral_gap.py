"""What does the spectral gap of a large network cost, and is it the right number?

[784, 2048 × 40, 10], 165 million parameters, 163,850 free coordinates, float32, one sample.
Nothing is assembled: Lanczos on L⁻¹, two sweeps per product. The promise: at most 60 sweeps.
Small networks are compared with SciPy on the assembled matrix.

    python -m benchmarks.spectral_gap
"""

from itertools import pairwise
from typing import Any

import scipy.linalg
import torch
from torch import Tensor, nn

import torchsheaf as ts
from benchmarks.measurement import peak_megabytes, seconds, write_result

LARGE, PROMISE = [784, *[2048] * 40, 10], 60
SMALL = [[2, 30, 1], [10, *[40] * 4, 5], [20, *[50] * 10, 10]]


def network(widths: list[int], dtype: torch.dtype) -> nn.Sequential:
    """He-initialised; drawn in place, so that the peak memory is that of the model."""
    layers = [m for a, b in pairwise(widths) for m in (nn.Linear(a, b, dtype=dtype), nn.ReLU())]
    for layer in layers[::2]:
        assert isinstance(layer, nn.Linear)
        nn.init.normal_(layer.weight, std=(2 / layer.in_features) ** 0.5)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers[:-1]).eval().requires_grad_(False)


def large() -> dict[str, Any]:
    model, x = network(LARGE, torch.float32), torch.randn(1, LARGE[0])
    built = peak_megabytes()
    model(x)
    forward = min(seconds(lambda: model(x)) for _ in range(5))
    after_forward = peak_megabytes()
    sheaf: list[ts.Sheaf] = []
    encoding = seconds(lambda: sheaf.append(ts.encode(model, x)))
    after_encoding = peak_megabytes()
    problem = ts.hold(sheaf[0], x)
    found: list[ts.Spectrum] = []
    gap = seconds(lambda: found.append(ts.spectrum(problem, vectors=False)))
    (spectrum,) = found
    return {
        "widths": "784, 2048 × 40, 10",
        "parameters": sum(p.numel() for p in model.parameters()),
        "free_coordinates": problem.free.dim,
        "gap": float(spectrum.values[0, 0]),
        "residual": float(spectrum.residual.max()),
        "sweeps": spectrum.passes,
        "promise": PROMISE,
        "kept": spectrum.passes <= PROMISE,
        "seconds": {"forward": forward, "encode": encoding, "gap": gap},
        "gap_in_forward_passes": gap / forward,
        "peak_megabytes": {
            "model built": built,
            "after a forward pass": after_forward,
            "after encoding": after_encoding,
            "after the gap": peak_megabytes(),
        },
    }


def small(widths: list[int]) -> dict[str, Any]:
    model, x = network(widths, torch.float64), torch.randn(3, widths[0], dtype=torch.float64)
    problem = ts.hold(ts.encode(model, x), x)
    spectrum = ts.spectrum(problem)
    laplacian = problem.laplacian(problem.start("forward"))

    def exact(m: int) -> Tensor:
        values = scipy.linalg.eigvalsh(laplacian.to_scipy(m).toarray(), subset_by_index=[0, 0])
        return torch.from_numpy(values)

    expected = torch.stack([exact(m) for m in range(3)])
    error = ((spectrum.values - expected) / expected).abs().max()
    return {
        "widths": widths,
        "free_coordinates": problem.free.dim,
        "sweeps": spectrum.passes,
        "relative_error": float(error),
    }


def main() -> None:
    torch.manual_seed(0)
    result = {"question": "spectral gap without assembling", "large": large()}
    write_result("spectral_gap", result | {"small": [small(widths) for widths in SMALL]})


if __name__ == "__main__":
    main()
