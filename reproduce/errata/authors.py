"""What the paper authors' public code and notebooks say about their own runs."""

import numpy as np

from .entry import Register, Shown
from .relu_path import Array, ReluPath

REGISTER = Register()


@REGISTER("authors.tolerance", "a pinned diffusion has converged when max |change| per step < tol")
def tolerance() -> Shown:
    """With the output held a gate may slide: Euler then hops across z = 0 for ever."""
    dt, z, a, y = 0.01, 1.0, 1.0, -3.0  # W = 1, x = 1: the equilibrium is z = 0, a = −1.5
    flips, smallest = 0, np.inf
    for step in range(20_000):
        on = z >= 0
        move = dt * ((1 - z) - on * (z - a)), dt * (on * z - a - (a - y))
        z, a = z + move[0], a + move[1]
        if step >= 10_000:
            flips += (z >= 0) != on
            smallest = min(smallest, max(map(abs, move)))
    # At (0, −1.5): the force is +1 from below and 1 − 1.5 < 0 from above, so 0 ∈ ∂E.
    return Shown(
        (
            f"steps 10,000 to 20,000: {flips} sign flips of z, "
            f"smallest max |change| {smallest:.1e}",
            f"end point ({z:.4f}, {a:.4f}); equilibrium (0, −1.5)",
        ),
        flips > 1000 and smallest > 1e-4 and abs(a + 1.5) < 0.01,
    )


def held_discord(net: ReluPath, x: Array, y: float, gamma: float) -> float:
    """|r|² on the inner edges, output held by a pin of weight γ, pattern of the forward pass."""
    delta = net.coboundary(net.forward(x))
    pin = np.sqrt(gamma) * np.eye(len(delta))[-1:]
    side = np.append(net.offset(x), np.sqrt(gamma) * y)
    c = np.linalg.lstsq(np.vstack([delta, pin]), side)[0]
    return float(np.sum((delta @ c - net.offset(x)) ** 2))


@REGISTER("authors.clamp", "pinned discord (z_out clamped) is the discord that training lowers")
def clamp() -> Shown:
    """Training uses the soft output edge: for one output they differ by ((1+K)/K)²."""
    lines, good, rng = [], True, np.random.default_rng(0)
    for scale in (0.1, 1.0, 5.0):
        net = ReluPath.he([2, 30, 1], rng)
        net.weights[1] *= scale
        x = np.array([0.5, -0.3])
        delta = net.coboundary(net.forward(x))
        k = np.linalg.inv(delta.T @ delta)[-1, -1]
        hard, soft = (held_discord(net, x, 1.0, gamma) for gamma in (1e10, 1.0))
        ratio, formula = hard / soft, ((1 + k) / k) ** 2
        good = good and abs(ratio - formula) < 1e-3 * formula and formula > 1.02
        lines.append(
            f"W2 x {scale}: K = {k:.2f}, clamped / soft = {ratio:.3f}, ((1+K)/K)² = {formula:.3f}"
        )
    return Shown(tuple(lines), bool(good))


@REGISTER("authors.widest", "the Fiedler vector sits on the pre-activation of the widest layer")
def widest() -> Shown:
    """[2, 30, 1] trained on the paraboloid: it sits on z2, the narrowest stalk."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-2, 2, (300, 2))
    y = (x**2).sum(1, keepdims=True) - 2 / 3
    net = ReluPath.he([2, 30, 1], rng)
    (w1, w2), (b1, b2) = net.weights, net.biases
    for _ in range(3000):
        z = x @ w1.T + b1
        error = 2 * (np.maximum(z, 0) @ w2.T + b2 - y) / len(x)
        down = (error @ w2) * (z > 0)
        w1, b1 = w1 - 0.02 * down.T @ x, b1 - 0.02 * down.sum(0)
        w2, b2 = w2 - 0.02 * error.T @ np.maximum(z, 0), b2 - 0.02 * error.sum(0)
    trained, shares = ReluPath([w1, w2], [b1, b2]), []
    for point in x[:50]:
        delta = trained.coboundary(trained.forward(point))
        slowest = np.linalg.eigh(delta.T @ delta)[1][:, 0]
        shares.append([float(part @ part) for part in trained.blocks(slowest)])
    z1, a1, z2 = np.median(shares, axis=0)
    return Shown(
        (f"share of the Fiedler vector: z1 (30 wide) {z1:.3f}, a1 (30) {a1:.3f}, z2 (1) {z2:.3f}",),
        bool(z2 > 0.5),
    )
