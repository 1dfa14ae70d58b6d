"""Lab 12 of the web book, "Sheaf Trainer": its fast phase, its losses, its slowdown."""

import numpy as np
import torch

from .entry import Register, Shown
from .relu_path import Array, ReluPath

REGISTER = Register()


def lab_net(width: int = 30) -> tuple[Array, Array, Array, Array]:
    """W1, b1, W2, b2 of the lab: torch's own initialisation under seed 0."""
    torch.manual_seed(0)
    first, second = torch.nn.Linear(2, width), torch.nn.Linear(width, 1)
    tensors = (first.weight, first.bias, second.weight, second.bias)
    w1, b1, w2, b2 = (t.detach().double().numpy() for t in tensors)
    return w1, b1, w2, b2


def lab_data() -> tuple[Array, Array]:
    """500 points of the paraboloid, as the lab draws them."""
    x = np.random.default_rng(0).uniform(-2, 2, (500, 2))
    return x, x[:, :1] ** 2 + x[:, 1:] ** 2 - 2 / 3


def fast_phase(sign: float) -> tuple[Array, Array, Array]:
    """(z at the forward pass, z*, output error there) per sample; sign = +1 is the lab's y − b2.

    Rows of the lab's system: z = W1 x + b1 and −W2 Σ z = ±(y − b2); the right one is b2 − y.
    """
    w1, b1, w2, b2 = lab_net()
    x, y = lab_data()
    start = x @ w1.T + b1
    solved = []
    for z, target in zip(start, y, strict=True):
        row = -w2 * (z > 0)
        system = np.vstack([np.eye(30), row])
        solved.append(np.linalg.lstsq(system, np.append(z, sign * (target - b2)))[0])
    return start, np.array(solved), np.maximum(np.array(solved), 0) @ w2.T + b2 - y


@REGISTER("lab12.sign", "the fast phase pulls the output towards the target y")
def sign() -> Shown:
    """The right-hand side of the second block has the wrong sign."""
    w1, b1, w2, b2 = lab_net()
    x, y = lab_data()
    before = np.maximum(x @ w1.T + b1, 0) @ w2.T + b2 - y
    faulty, right = (np.median(np.abs(fast_phase(s)[2]) / np.abs(before)) for s in (1.0, -1.0))
    active = x @ w1.T + b1 > 0
    predicted = np.median(1 / (1 + (active * w2**2).sum(1)))
    return Shown(
        (
            f"median |error after| / |error before|: lab {faulty:.3f}, sign corrected {right:.3f}",
            f"closed form with the pattern fixed, 1/(1 + |W2 Σ|²): {predicted:.3f}",
        ),
        bool(faulty > 1 > right),
    )


@REGISTER("lab12.masks", "masks may be read off the forward pass and kept during the solve")
def masks() -> Shown:
    """The solution lies in another activation region than the one the system was built for."""
    counts = []
    for s in (1.0, -1.0):
        start, solved, _ = fast_phase(s)
        counts.append(int(((start > 0) != (solved > 0)).any(1).sum()))
    return Shown(
        (
            f"samples whose z* has another pattern: {counts[0]} of 500 with the lab's sign, "
            f"{counts[1]} of 500 with the right one",
        ),
        min(counts) > 0,
    )


def two_edge_minimum(w1: Array, b1: Array, w2: Array, b2: Array, x: Array, y: Array) -> float:
    """min over z of ½|z − W1x − b1|² + ½|W2Σz + b2 − y|², Σ kept; the lab's energy, right sign."""
    row = w2 * (lab_net()[0] @ x + lab_net()[1] > 0)
    system, target = np.vstack([np.eye(30), row]), np.concatenate([w1 @ x + b1, y - b2])
    z = np.linalg.lstsq(system, target)[0]
    return float(0.5 * np.sum((system @ z - target) ** 2))


@REGISTER("lab12.partial", "updating W1 requires the chain rule through the fast-phase solve")
def partial() -> Shown:
    """Envelope theorem: dE*/dW1 = (W1x + b1 − z*) xᵀ, from the first edge's two ends."""
    w1, b1, w2, b2 = lab_net()
    x, y = (values[0] for values in lab_data())
    row = w2 * (w1 @ x + b1 > 0)
    error = row @ (w1 @ x + b1) + b2 - y
    pull = row[0] * error / (1 + row[0] @ row[0])
    local, worst, h = np.outer(pull, x), 0.0, 1e-6
    for index in np.ndindex(w1.shape):
        step = np.zeros_like(w1)
        step[index] = h
        ahead, behind = (two_edge_minimum(w1 + s * step, b1, w2, b2, x, y) for s in (1, -1))
        worst = max(worst, abs((ahead - behind) / (2 * h) - float(local[index])))
    return Shown(
        (
            f"max |local derivative − finite difference| over W1: {worst:.1e} "
            f"(entries up to {np.abs(local).max():.2e})",
        ),
        worst < 1e-7 < np.abs(local).max(),
    )


@REGISTER("lab12.losses", "the two training curves show the same quantity")
def losses() -> Shown:
    """One is ½(error)² at the relaxed cochain, the other the MSE of the forward pass."""
    w1, b1, w2, b2 = lab_net()
    x, y = lab_data()
    forward = np.maximum(x @ w1.T + b1, 0) @ w2.T + b2 - y
    start, solved, relaxed = fast_phase(-1.0)
    shown = 0.5 * np.mean(relaxed**2)
    whole = shown + 0.5 * np.mean(((solved - start) ** 2).sum(1))
    return Shown(
        (
            f"same weights, sign corrected: curve 'Sheaf' {shown:.3f}, curve 'SGD' "
            f"{np.mean(forward**2):.3f}; energy with its missing first edge {whole:.3f}",
        ),
        bool(np.mean(forward**2) > 1.5 * shown),
    )


@REGISTER("lab12.rates", "both methods use the same step size 5e-3")
def rates() -> Shown:
    """The mean squared error carries a factor 2 that the sheaf step lacks."""
    w1, b1, w2, b2 = lab_net()
    x, y = lab_data()
    post = np.maximum(x @ w1.T + b1, 0)
    weight = torch.tensor(w2, requires_grad=True)
    loss = torch.nn.functional.mse_loss(
        torch.tensor(post) @ weight.T + torch.tensor(b2), torch.tensor(y)
    )
    loss.backward()
    local = (post @ w2.T + b2 - y).T @ post / len(x)
    ratio = float(torch.linalg.norm(weight.grad)) / float(np.linalg.norm(local))
    return Shown((f"|∇ of the SGD curve| / |∇ of ½ mean error²| at W2: {ratio:.3f}",), ratio > 1.9)


@REGISTER("lab12.gap", "1/λ_min(L_free) of the lab's matrix predicts the slowdown")
def gap() -> Shown:
    """I + (rank one) has λ_min = 1 for every net with more than one hidden unit."""
    lines, found = [], []
    for width in (10, 30, 100):
        w1, b1, w2, b2 = lab_net(width)
        x = lab_data()[0][0]
        row = w2 * (w1 @ x + b1 > 0)
        fused = np.linalg.eigvalsh(np.eye(width) + row.T @ row)[0]
        path = ReluPath([w1, w2], [b1, b2])
        delta = path.coboundary(path.forward(x))
        unfused = np.linalg.eigvalsh(delta.T @ delta)[0]
        inverse = np.linalg.inv(delta.T @ delta)
        found.append(fused)
        lines.append(
            f"width {width}: lab's λ_min {fused:.4f}; unfused L, output free {unfused:.4f}; "
            f"true slowdown S = 1 + K = {1 + inverse[-1, -1]:.2f}"
        )
    return Shown(tuple(lines), bool(np.allclose(found, 1.0)))


@REGISTER("lab12.triangular", "the fast phase is a single triangular back-substitution")
def triangular() -> Shown:
    """With the output held the system is tall; substitution leaves the whole error on one row."""
    start, solved, _ = fast_phase(-1.0)
    w1, b1, w2, b2 = lab_net()
    y = lab_data()[1]
    row = w2 * (start > 0)
    left = np.abs((row * start).sum(1, keepdims=True) + b2 - y)
    squares = ((solved - start) ** 2).sum(1) + ((row * solved).sum(1) + b2 - y[:, 0]) ** 2
    return Shown(
        (
            "system 31 x 30",
            f"median residual norm: substitution {np.median(left):.3f}, "
            f"least squares {np.median(np.sqrt(squares)):.3f}",
        ),
        bool(np.median(left) > np.median(np.sqrt(squares)) > 0.1),
    )


@REGISTER("lab12.protocol", "the baseline is SGD with the same batch size, on x² + y²")
def protocol() -> Shown:
    """Both runs use all 500 points per step, and the code's target is not the goal line's."""
    x, y = lab_data()
    shift = np.mean(y) - np.mean((x**2).sum(1))
    spread = np.std(y - (x**2).sum(1, keepdims=True))
    return Shown(
        (
            "by reading: 500 of 500 samples per update in both methods, so nothing is stochastic",
            f"code's target − goal line's target: {shift:.4f}, its noise {spread:.1e} "
            "(the paper: 300 points, noise 0.02)",
        ),
        bool(abs(shift) > 0.5),
    )


@REGISTER("lab12.seeding", "make_net() gives every caller the same initialisation")
def seeding() -> Shown:
    """The seed is set after the layers are built, so it serves the next caller."""

    def make_net() -> torch.Tensor:
        weight = torch.nn.Linear(2, 30).weight.detach()
        torch.manual_seed(0)
        return weight

    torch.manual_seed(0)
    torch.rand(1)  # anything that draws a number before the first call
    first, second, third = make_net(), make_net(), make_net()
    apart, same = (float((second - other).abs().max()) for other in (first, third))
    return Shown(
        (f"max |difference|: first and second call {apart:.3f}, second and third {same:.3f}",),
        apart > 0.1 and same == 0.0,
    )


@REGISTER("lab12.decay", "weight decay is built by changing the fast-phase right-hand side")
def decay() -> Shown:
    """½λ|θ|² does not depend on the cochain: it acts on the weights, in the slow phase."""
    w1, b1, w2, b2 = lab_net()
    x, y = lab_data()
    start, plain, _ = fast_phase(-1.0)
    moved = 0.0
    for z, target, solved in zip(start[:20], y[:20], plain[:20], strict=True):
        # A reluctance edge has no cochain column: rows of zeros with √λ·W2 on the right.
        system = np.vstack([np.eye(30), -w2 * (z > 0), np.zeros((30, 30))])
        side = np.concatenate([z, b2 - target, np.sqrt(0.1) * w2[0]])
        moved = max(moved, float(np.abs(np.linalg.lstsq(system, side)[0] - solved).max()))
    post, norms = np.maximum(x @ w1.T + b1, 0), []
    for strength in (0.0, 0.1):
        w, b = w2.copy(), b2.copy()
        for _ in range(200):
            error = (post @ w.T + b - y) / (1 + ((post > 0) * w**2).sum(1, keepdims=True))
            w -= 0.05 * (error.T @ post / len(x) + strength * w)
            b -= 0.05 * error.mean(0)
        norms.append(float(np.linalg.norm(w)))
    return Shown(
        (
            f"reluctance rows in the fast phase move z* by at most {moved:.0e}",
            f"|W2| after 200 slow steps: {norms[0]:.3f} without, {norms[1]:.3f} with decay there",
        ),
        norms[1] < norms[0] and moved < 1e-12,
    )
