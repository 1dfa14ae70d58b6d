"""Labs 04, 05 and 09 of the web book: a kernel, a determinant, a rate."""

import numpy as np

from .entry import Register, Shown
from .relu_path import Array, ReluPath

REGISTER = Register()


@REGISTER("lab04.injective", "δ of the three-agent discourse sheaf is injective")
def injective() -> Shown:
    """Opinions R², two edges R¹: δ is 2 x 6."""
    rng, dimensions = np.random.default_rng(0), set()
    for _ in range(100):
        maps = rng.standard_normal((4, 2))
        delta = np.zeros((2, 6))
        delta[0, 0:2], delta[0, 2:4] = -maps[0], maps[1]
        delta[1, 2:4], delta[1, 4:6] = -maps[2], maps[3]
        dimensions.add(6 - int(np.linalg.matrix_rank(delta)))
    return Shown(
        (f"kernel dimension in 100 random draws: {sorted(dimensions)}",), min(dimensions) >= 4
    )


@REGISTER("lab05.determinant", "with input and output eliminated, det = 1")
def determinant() -> Shown:
    """det L = 1 needs the output free; held, it is det K, which is at least 1."""
    rng, free, held, formula = np.random.default_rng(0), [], [], []
    for _ in range(20):
        net = ReluPath.he([2, 4, 1], rng)
        delta = net.coboundary(net.forward(rng.standard_normal(2)))
        laplacian = delta.T @ delta
        inner = laplacian[: net.output.start, : net.output.start]
        free.append(np.linalg.det(laplacian))
        held.append(np.linalg.det(inner))
        formula.append(np.linalg.inv(laplacian)[-1, -1])
    return Shown(
        (
            f"output free: det L in [{min(free):.6f}, {max(free):.6f}]",
            f"output held: δ is 9 x 8, det δᵀδ in [{min(held):.2f}, {max(held):.2f}], "
            f"= det K to {np.abs(np.array(held) - formula).max():.0e}",
        ),
        bool(np.allclose(free, 1) and min(held) > 1.05),
    )


def fused_run(seed: int, dt: float = 1e-3, steps: int = 6000) -> tuple[Array, Array, list[int]]:
    """(E, λ_min of the current pattern, steps at which the pattern switched) of a [2, 4, 1] run."""
    rng = np.random.default_rng(seed)
    net = ReluPath.he([2, 4, 1], rng)
    w1, w2 = net.weights
    x, c = rng.standard_normal(2), 2 * rng.standard_normal(5)
    side = np.append(w1 @ x, 0.0)
    energies, gaps, switches, old, gap = [], [], [], None, 0.0
    for step in range(steps):
        mask = c[:4] > 0
        delta = np.eye(5)
        delta[4, :4] = -w2[0] * mask
        residual = delta @ c - side
        energies.append(0.5 * residual @ residual)
        if old is None or np.any(mask != old):
            gap = np.linalg.eigvalsh(delta.T @ delta)[0]
            switches += [step] if step else []
        gaps.append(gap)
        old, c = mask, c - dt * delta.T @ residual
    return np.array(energies), np.array(gaps), switches


@REGISTER("lab09.rate", "within a region the energy decays as e^(−2 λ_min t)")
def rate() -> Shown:
    """That is an upper bound; the measured slope is steeper until the slowest mode is alone."""
    ratios = []
    for seed in range(20):
        energies, gaps, _ = fused_run(seed, steps=1500)
        alive = energies[1:] > 1e-12
        slope = -np.diff(np.log(energies))[alive] / 1e-3
        ratios.append(np.median(slope / (2 * gaps[1:][alive])))
    return Shown(
        (
            f"measured decay / (2 λ_min), 20 runs to t = 1.5: smallest {min(ratios):.2f}, "
            f"median {np.median(ratios):.2f}, largest {max(ratios):.2f}",
        ),
        bool(min(ratios) > 0.99 and np.median(ratios) > 1.2),
    )


@REGISTER("lab09.slope", "the energy decays faster after every switch")
def slope() -> Shown:
    """Slopes of log E just before and just after each switch that stands alone (no sliding)."""
    faster = slower = 0
    for seed in range(20):
        energies, _, switches = fused_run(seed, steps=3000)
        logs = np.log(energies)
        near = [np.sum(np.abs(np.array(switches) - step) <= 20) for step in switches]
        for step, count in zip(switches, near, strict=True):
            if count == 1 and 5 <= step < len(logs) - 6:
                before, after = logs[step - 1] - logs[step - 5], logs[step + 5] - logs[step + 1]
                faster, slower = faster + (after < before), slower + (after >= before)
    return Shown(
        (f"switches in 20 runs: {faster} faster after, {slower} slower after",), slower > 0
    )


@REGISTER("lab09.forcing", "the heat equation is ẋ = −L x")
def forcing() -> Shown:
    """The goal line leaves out + δᵀb, which the lab's code has."""
    net = ReluPath.he([2, 4, 1], np.random.default_rng(0))
    x = np.array([0.5, -0.3])
    goal, ends = net.forward(x), []
    for force in (0.0, 1.0):
        c = np.random.default_rng(1).standard_normal(len(goal))
        for _ in range(8000):
            delta = net.coboundary(c)
            c = c - 0.05 * delta.T @ (delta @ c - force * net.offset(x))
        ends.append(float(np.abs(c - goal).max()))
    return Shown(
        (f"distance to the forward pass: without δᵀb {ends[0]:.3f}, with it {ends[1]:.0e}",),
        ends[0] > 0.1 > 1e-9 > ends[1],
    )
