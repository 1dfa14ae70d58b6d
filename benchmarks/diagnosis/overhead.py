"""Speed of the full diagnosis, and what watching costs a training loop; CPU seconds, one thread."""

import time
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.diagnosis.tasks import load, mlp
from benchmarks.training import enlarged
from torchsheaf.boundary import hold
from torchsheaf.diagnose import label_energy, nudged_discord, pathologies, spectra
from torchsheaf.sheaf import encode

WIDTHS = ((64, 40, 24, 10), (64, 128, 64, 10), (64, 256, 128, 10))
LARGER = ((784, 256, 256, 10), (*[64] * 21, 10))


def speed() -> list[dict[str, Any]]:
    """All 1,797 digits: everything in batches, against one dense eigenproblem per sample."""
    task = load("digits")
    rows = []
    for widths in (*WIDTHS, *LARGER):
        x = task.x if widths[0] == 64 else enlarged(task.x)
        problem = hold(encode(mlp(widths), x[:2]), x)
        began = time.process_time()
        found = spectra(problem)
        spectral = time.process_time() - began
        began = time.process_time()
        nudged_discord(problem, task.y)
        label_energy(problem, task.y)
        pathologies(problem, task.y)
        rest = time.process_time() - began
        began = time.process_time()
        looped = 12 if problem.free.dim < 2000 else 3
        for i in range(looped):
            one = problem.samples(torch.tensor([i]))
            dense = torch.linalg.eigh(one.laplacian(one.start("forward")).to_dense())
            assert abs(float(dense.eigenvalues[0, 0] / found.gap[i]) - 1) < 1e-4
        loop = (time.process_time() - began) / looped
        rows.append(
            {"widths": widths, "free": problem.free.dim, "samples": problem.batch}
            | {"spectra_seconds": spectral, "rest_seconds": rest, "dense_per_sample": loop}
            | {"ratio": loop * problem.batch / spectral}
        )
    return rows


def epoch(net: nn.Module, x: Tensor, y: Tensor, step: torch.optim.Optimizer) -> None:
    for index in torch.arange(len(x)).split(32):
        step.zero_grad()
        nn.functional.cross_entropy(net(x[index]), y[index]).backward()
        step.step()


def watching() -> list[dict[str, Any]]:
    """Ten epochs of ordinary training on digits, without and with `watch` after every epoch."""
    from torchsheaf.diagnose import watch

    task = load("digits")
    rows = []
    for widths in WIDTHS:
        plain, first, each = 0.0, 0.0, 0.0
        net = mlp(widths)
        step = torch.optim.Adam(net.parameters())
        began = time.process_time()
        monitor = watch(net, (task.x, task.y))
        first = time.process_time() - began
        for _ in range(10):
            began = time.process_time()
            epoch(net, task.x, task.y, step)
            middle = time.process_time()
            monitor()
            plain, each = plain + middle - began, each + time.process_time() - middle
        rows.append(
            {"widths": widths, "epoch_seconds": plain / 10, "watch_seconds": each / 10}
            | {"overhead": each / plain, "start_seconds": first}
        )
    return rows
