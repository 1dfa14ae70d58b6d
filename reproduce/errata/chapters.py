"""Chapters 8 and 10 to 13 of the web book."""

import numpy as np
import torch

from .entry import Register, Shown
from .relu_path import Array, ReluPath

REGISTER = Register()


@REGISTER("ch08.homogeneous", "the forward pass solves δ c = 0")
def homogeneous() -> Shown:
    """δ_Ω is invertible, so δ_Ω c = 0 has the solution 0 only; the problem is δ_Ω c = b."""
    net, x = ReluPath.he([2, 8, 1], np.random.default_rng(0)), np.array([1.0, -1.0])
    forward = net.forward(x)
    delta = net.coboundary(forward)
    zero = np.linalg.solve(delta, np.zeros(len(forward)))
    right = np.linalg.solve(delta, net.offset(x))
    return Shown(
        (
            f"solution of δc = 0: norm {np.linalg.norm(zero):.1f}; forward pass: norm "
            f"{np.linalg.norm(forward):.3f}; "
            f"δc = b misses it by {np.abs(right - forward).max():.0e}",
        ),
        bool(np.linalg.norm(zero) == 0 < np.linalg.norm(forward)),
    )


@REGISTER("ch10.gradient", "J_φᵀ(φ(z) − y) is the gradient of binary cross-entropy")
def gradient() -> Shown:
    """It is the gradient of ½(φ(z) − y)²; cross-entropy gives φ(z) − y."""
    z = torch.linspace(-6, 6, 49, dtype=torch.float64, requires_grad=True)
    y = torch.ones_like(z)
    phi = torch.sigmoid(z)
    bce = torch.nn.functional.binary_cross_entropy(phi, y, reduction="sum")
    (by_bce,) = torch.autograd.grad(bce, z, retain_graph=True)
    (by_square,) = torch.autograd.grad(0.5 * (phi - y).square().sum(), z)
    claimed = (phi * (1 - phi) * (phi - y)).detach()
    to_bce, to_square = (float((claimed - g).abs().max()) for g in (by_bce, by_square))
    plain = float(((phi - y).detach() - by_bce).abs().max())
    return Shown(
        (
            f"J_φᵀ(φ − y): off by {to_bce:.3f} from the BCE gradient, {to_square:.0e} from that of "
            f"the squared error; φ − y: {plain:.0e} from BCE",
        ),
        to_bce > 0.5 and to_square < 1e-12 and plain < 1e-12,
    )


@REGISTER("ch11.fixed", "fixed points of the joint flow are exactly the exact fits")
def fixed() -> Shown:
    """Two samples, one input, two targets: the flow rests, the residual does not vanish."""
    weight, stalks, targets = 0.3, np.zeros(2), np.array([1.0, 3.0])
    for _ in range(4000):
        force = weight * 1.0 - stalks
        stalks, weight = stalks + 0.1 * (force + targets - stalks), weight - 0.1 * force.sum()
    force = weight - stalks
    motion = max(np.abs(force + targets - stalks).max(), abs(force.sum()))
    energy = 0.5 * np.sum(force**2) + 0.5 * np.sum((targets - stalks) ** 2)
    return Shown(
        (f"velocity {motion:.0e}, energy {energy:.3f}, weight {weight:.3f}",),
        motion < 1e-9 < 0.1 < energy,
    )


def joint_euler(x: Array, y: Array, net: ReluPath, steps: int) -> float:
    """The paper's joint dynamics (α = 1, β = 1/N, dt = 0.005, soft output); final forward MSE."""
    (w1, w2), (b1, b2) = (list(map(np.copy, t)) for t in (net.weights, net.biases))
    rng = np.random.default_rng(42)
    z, a, out = (rng.standard_normal((len(x), n)) for n in (30, 30, 1))
    beta, dt = 1 / len(x), 0.005
    for _ in range(steps):
        r1, r2, on = x @ w1.T + b1 - z, a @ w2.T + b2 - out, z >= 0
        moves = r1 - on * (z - a), on * z - a - r2 @ w2, r2 - (out - y)
        w1, b1 = w1 - beta * dt * r1.T @ x, b1 - beta * dt * r1.sum(0)
        w2, b2 = w2 - beta * dt * r2.T @ a, b2 - beta * dt * r2.sum(0)
        z, a, out = z + dt * moves[0], a + dt * moves[1], out + dt * moves[2]
    return float(np.mean((np.maximum(x @ w1.T + b1, 0) @ w2.T + b2 - y) ** 2))


def gradient_descent(x: Array, y: Array, net: ReluPath, steps: int) -> float:
    """Full-batch gradient descent on the MSE, rate 0.005; final MSE."""
    (w1, w2), (b1, b2) = (list(map(np.copy, t)) for t in (net.weights, net.biases))
    for _ in range(steps):
        z = x @ w1.T + b1
        a = np.maximum(z, 0)
        error = 2 * (a @ w2.T + b2 - y) / len(x)
        down = (error @ w2) * (z > 0)
        w1, b1 = w1 - 0.005 * down.T @ x, b1 - 0.005 * down.sum(0)
        w2, b2 = w2 - 0.005 * error.T @ a, b2 - 0.005 * error.sum(0)
    return float(np.mean((np.maximum(x @ w1.T + b1, 0) @ w2.T + b2 - y) ** 2))


@REGISTER(
    "ch12.comparable", "the final mean squared error is comparable to that of gradient descent"
)
def comparable() -> Shown:
    """[2, 30, 1] paraboloid, 300 points, noise 0.02, equal numbers of steps (paper: 100,000)."""
    rng = np.random.default_rng(42)
    x = rng.uniform(-2, 2, (300, 2))
    y = (x**2).sum(1, keepdims=True) - 2 / 3 + 0.02 * rng.standard_normal((300, 1))
    net, steps = ReluPath.he([2, 30, 1], rng), 10_000
    sheaf, plain = joint_euler(x, y, net, steps), gradient_descent(x, y, net, steps)
    return Shown(
        (
            f"after {steps} steps: sheaf {sheaf:.3f}, gradient descent {plain:.3f}, "
            f"ratio {sheaf / plain:.1f}",
        ),
        sheaf > 4 * plain,
    )


@REGISTER("ch13.dead", "a dead ReLU shows as zero discord on its ReLU edge")
def dead() -> Shown:
    """With the output held: zero on its incoming weight edge, (Wᵀr)_j on its ReLU edge."""
    rng = np.random.default_rng(0)
    net = ReluPath.he([2, 6, 1], rng)
    x, j = np.array([0.5, -0.3]), 2
    net.biases[0][j] = -50.0
    forward = net.forward(x)
    delta = net.coboundary(forward)
    free, y = delta[:, :-1], forward[-1] + 1.0
    c = np.append(np.linalg.lstsq(free, net.offset(x) - delta[:, -1] * y)[0], y)
    residual = net.residual(c, x)
    on_weight, on_gate, top = residual[j], residual[6 + j], residual[-1]
    return Shown(
        (
            f"neuron {j}: weight edge {abs(on_weight):.0e}, ReLU edge {on_gate:.4f}, "
            f"(W2ᵀ r)_j {net.weights[1][0, j] * top:.4f}",
        ),
        abs(on_weight) < 1e-12 and abs(on_gate) > 1e-3,
    )
