"""The paper's explicit Euler scheme on a ReLU MLP with the output held, written out by hand."""

import time
from typing import Any

import torch

import torchsheaf as ts

CHECK_EVERY = 50


@torch.no_grad()
def euler_until(
    problem: ts.Problem, energy: float, *, cap: int, start: str = "forward", seed: int = 0
) -> dict[str, Any]:
    """Steps and seconds from a start until E ≤ 1.01 · `energy`, or `cap` steps.

    dt = 1.9 / λ_max at the forward pass (the largest over samples). Written out by hand for the
    path z_1, a_1, …, z_{k+1} so that no generality of the library slows it down.
    """
    sheaf = problem.sheaf
    weights = list(sheaf.network.parameters().values())
    w, b = weights[0::2], weights[1::2]
    first = problem.start(start, torch.Generator().manual_seed(seed))
    names = list(sheaf.edges)
    top = float(ts.spectrum(problem, which="largest", tol=1e-3).values.max())
    dt = 1.9 / top
    x = problem.values[sheaf.inputs[0]]
    z = [first[n].clone() for n in names[0::2]]
    a = [first[n].clone() for n in names[1::2]]
    begin, steps, now = time.perf_counter(), 0, float("inf")
    while steps < cap:
        below = [x, *a]
        rz = [z[i] - torch.addmm(b[i], below[i], w[i].mT) for i in range(len(z))]
        ra = [a[i] - z[i].clamp_min(0) for i in range(len(a))]
        if steps % CHECK_EVERY == 0:
            now = 0.5 * sum(float(r.square().sum()) for r in (*rz, *ra))
            if now <= 1.01 * energy:
                break
        for i in range(len(a)):
            z[i] -= dt * (rz[i] - (z[i] >= 0) * ra[i])
            a[i] -= dt * (ra[i] - rz[i + 1] @ w[i + 1])
        steps += 1
    return {
        "steps": steps,
        "seconds": round(time.perf_counter() - begin, 3),
        "energy": now,
        "arrived": now <= 1.01 * energy,
        "dt": dt,
    }
