"""Lab 14 of the web book, "Residual-Block Sheaf": a chord is not a sum."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .entry import Register, Shown
from .relu_path import Array

REGISTER = Register()
N = 3


def block() -> tuple[Array, Array, Array, Array]:
    """W1, b1, W2, b2 of the lab's block: torch's initialisation under seed 42."""
    torch.manual_seed(42)
    layers = torch.nn.Linear(N, N), torch.nn.Linear(N, N)
    tensors = (t for layer in layers for t in (layer.weight, layer.bias))
    w1, b1, w2, b2 = (t.detach().double().numpy() for t in tensors)
    return w1, b1, w2, b2


def lab_inputs() -> list[Array]:
    """The lab's 50 inputs (one more is drawn before them)."""
    rng = np.random.default_rng(0)
    rng.standard_normal(N)
    return [rng.standard_normal(N) for _ in range(50)]


def parts(x: Array) -> tuple[Array, Array, Array, Array]:
    """z1, a1, z2 of the forward pass and the text's output ReLU(z2) + x."""
    w1, b1, w2, b2 = block()
    z1 = w1 @ x + b1
    a1 = np.maximum(z1, 0)
    z2 = w2 @ a1 + b2
    return z1, a1, z2, np.maximum(z2, 0) + x


def lab_system(x: Array, sign: float = 1.0) -> tuple[Array, Array]:
    """The lab's δ (columns z1 and 'z2') and right-hand side; sign −1 puts b2 − z3 in row e3."""
    w1, b1, w2, b2 = block()
    z1, _, _, out = parts(x)
    eye, zero = np.eye(N), np.zeros((N, N))
    delta = np.block([[eye, zero], [-np.diag((z1 > 0) * 1.0), eye], [zero, -w2], [zero, zero]])
    return delta, np.concatenate([w1 @ x + b1, np.zeros(N), sign * (out - b2), out - x])


def path_matrix(r1: NDArray[Any], w2: Array, r2: NDArray[Any]) -> Array:
    """δ on (z1, a1, z2, out) for the masks r1, r2: one row per node."""
    eye, zero = np.eye(N), np.zeros((N, N))
    return np.block(
        [
            [eye, zero, zero, zero],
            [-np.diag(r1 * 1.0), eye, zero, zero],
            [zero, -w2, eye, zero],
            [zero, zero, -np.diag(r2 * 1.0), eye],
        ]
    )


def quantiles(values: list[float]) -> str:
    """Median and maximum."""
    return f"median {np.median(values):.3f}, max {np.max(values):.3f}"


@REGISTER("lab14.shape", "the coboundary is 7 x 6")
def shape() -> Shown:
    """Four edges and two free vertices of width 3."""
    rows, columns = lab_system(lab_inputs()[0])[0].shape
    return Shown((f"the lab's own code builds {rows} x {columns}",), (rows, columns) != (7, 6))


@REGISTER("lab14.module", "the torch module computes the block of the text")
def module() -> Shown:
    """Text: ReLU(W2 a1 + b2) + x. Module: ReLU(W2 a1 + b2 + x)."""
    gaps = [float(np.abs(parts(x)[3] - np.maximum(parts(x)[2] + x, 0)).max()) for x in lab_inputs()]
    return Shown(
        (f"max-norm difference over 50 inputs: {quantiles(gaps)}",), bool(np.median(gaps) > 0.1)
    )


def plotted_error(x: Array, scramble: bool) -> tuple[float, NDArray[Any]]:
    """(the lab's plotted number, the cochain its solve returned); scramble replaces δ by noise."""
    delta, side = lab_system(x)
    if scramble:
        delta = np.random.default_rng(3).standard_normal(delta.shape)
    cochain = np.linalg.lstsq(delta, side)[0]
    _, _, z2, out = parts(x)
    return float(np.abs(out - np.maximum(z2 + x, 0)).max()), cochain


@REGISTER("lab14.unsolved", "the plotted error compares the sheaf solution with torch")
def unsolved() -> Shown:
    """z3 is put in, not solved for: noise in place of δ gives the same plot."""
    pairs = [(plotted_error(x, False), plotted_error(x, True)) for x in lab_inputs()]
    plot = max(abs(right[0] - noise[0]) for right, noise in pairs)
    cochain = min(np.abs(right[1] - noise[1]).max() for right, noise in pairs)
    return Shown(
        (f"δ replaced by noise: plot changes by {plot:.1f}, solution by at least {cochain:.2f}",),
        plot == 0.0 and cochain > 0.1,
    )


@REGISTER("lab14.outer", "the sheaf contains every step of the block")
def outer() -> Shown:
    """No edge carries the outer ReLU: e3 asks for z3 = W2 a1 + b2 itself."""
    gaps = [float(np.linalg.norm(parts(x)[3] - parts(x)[2])) for x in lab_inputs()]
    return Shown((f"|z3 − (W2 a1 + b2)| at the forward pass: {quantiles(gaps)}",), min(gaps) > 1e-3)


@REGISTER("lab14.sign", "row e3, −W2, goes with the right-hand side z3 − b2")
def sign() -> Shown:
    """−W2 a1 = b2 − z3; checked at a cochain that satisfies the edge."""
    _, b1, w2, b2 = block()
    a1 = np.abs(b1)
    head = w2 @ a1 + b2
    wrong, right = (float(np.abs(-w2 @ a1 - s * (head - b2)).max()) for s in (1.0, -1.0))
    return Shown(
        (f"residual of a consistent pair: lab {wrong:.3f}, b2 − z3 {right:.1e}",),
        wrong > 0.1 > right,
    )


@REGISTER("lab14.constant", "the least-squares residual should be about 0")
def constant() -> Shown:
    """Row e4 has no unknown: its residual ReLU(z2) stays whatever the cochain is."""
    row = np.abs(lab_system(lab_inputs()[0])[0][3 * N :]).max()
    floor = [float(np.linalg.norm(np.maximum(parts(x)[2], 0))) for x in lab_inputs()]
    return Shown(
        (f"largest entry of row e4: {row:.1f}; residual it leaves: {quantiles(floor)}",),
        row == 0.0 and max(floor) > 0.1,
    )


@REGISTER("lab14.recovers", "least squares still recovers the forward pass")
def recovers() -> Shown:
    """Neither with the lab's sign nor with the right one."""
    lines, bad = [], True
    for label, s in (("lab's sign", 1.0), ("right sign", -1.0)):
        residuals, errors = [], []
        for x in lab_inputs():
            delta, side = lab_system(x, s)
            c = np.linalg.lstsq(delta, side)[0]
            residuals.append(float(np.linalg.norm(delta @ c - side)))
            errors.append(float(np.abs(c[N:] - parts(x)[1]).max()))
        bad = bad and bool(np.median(residuals) > 0.1)
        lines.append(f"{label}: residual {quantiles(residuals)}; error of a1 {quantiles(errors)}")
    return Shown(tuple(lines), bad)


@REGISTER("lab14.chord", "a chord with identity maps on both ends is the skip connection")
def chord() -> Shown:
    """It is a soft pin of the output at x: E* = ½ dᵀ(I + K)⁻¹d with d = x − ReLU(z2)."""
    w1, b1, w2, b2 = block()
    rows = np.eye(4 * N)[3 * N :]
    residuals, apart, gap = [], [], 0.0
    for x in lab_inputs():
        z1, _, z2, out = parts(x)
        delta = path_matrix(z1 > 0, w2, z2 > 0)
        stacked = np.vstack([delta, rows])
        side = np.concatenate([w1 @ x + b1, np.zeros(N), b2, np.zeros(N), x])
        c = np.linalg.lstsq(stacked, side)[0]
        k = np.linalg.inv(delta.T @ delta)[3 * N :, 3 * N :]
        d = x - np.maximum(z2, 0)
        left = float(np.sum((stacked @ c - side) ** 2))
        gap = max(gap, abs(left - float(d @ np.linalg.solve(np.eye(N) + k, d))))
        residuals.append(np.sqrt(left))
        apart.append(float(np.abs(rows @ c - out).max()))
    return Shown(
        (
            f"residual norm {quantiles(residuals)}; closed form differs by {gap:.0e}",
            f"|output − (ReLU(z2) + x)|: {quantiles(apart)}",
        ),
        bool(min(apart) > 1e-3 and gap < 1e-12),
    )


@REGISTER("lab14.join", "det = 1 and back-substitution are lost with a skip connection")
def join() -> Shown:
    """One row per node, incident to all its parents: out − ReLU(z2) − x = 0."""
    w1, b1, w2, b2 = block()
    worst, determinants = 0.0, []
    for x in lab_inputs():
        z1, _, z2, out = parts(x)
        delta = path_matrix(z1 > 0, w2, z2 > 0)
        c = np.linalg.solve(delta, np.concatenate([w1 @ x + b1, np.zeros(N), b2, x]))
        worst = max(worst, float(np.abs(c[-N:] - out).max()))
        determinants.append(np.linalg.det(delta))
    return Shown(
        (
            f"12 x 12, det {min(determinants):.12f} to {max(determinants):.12f}, "
            f"max error {worst:.1e}",
        ),
        worst < 1e-12,
    )


@REGISTER(
    "lab14.counts", "two stacked blocks, two path triples and two chords: 6 vertices, 7 edges"
)
def counts() -> Shown:
    """The triples share one vertex; with joins there is one edge per non-input vertex anyway."""
    one_block = [(0, 1), (1, 2), (2, 3), (0, 3)]
    chords = [(u + shift, v + shift) for shift in (0, 3) for u, v in one_block]
    vertices = {vertex for edge in chords for vertex in edge}
    heads = {head for _, head in chords}
    return Shown(
        (
            f"chord graph: {len(vertices)} vertices, {len(chords)} edges, "
            f"{len(chords) - len(heads)} edges too many",
            f"one edge per non-input vertex: {len(heads)} edges, {len(vertices) - 1} free stalks",
        ),
        (len(vertices), len(chords)) != (6, 7) and len(heads) == len(vertices) - 1,
    )


@REGISTER("lab14.positive", "positive definiteness needs a separate argument with a chord")
def positive() -> Shown:
    """The path rows alone are invertible; more rows only raise the spectrum."""
    rng, least = np.random.default_rng(1), []
    for scale in (0.1, 1.0, 10.0):
        pairs = []
        for _ in range(50):
            w2, (r1, r2) = scale * rng.standard_normal((N, N)), rng.integers(0, 2, (2, N)) * 1.0
            path = path_matrix(r1, w2, r2)
            chord = np.vstack([path, np.eye(4 * N)[3 * N :]])
            pairs.append([np.linalg.svd(m, compute_uv=False)[-1] ** 2 for m in (path, chord)])
        least.append(np.array(pairs))
    lines = [
        f"weight scale {s}: min λ_min path {p[:, 0].min():.2e}, chord {p[:, 1].min():.2e}"
        for s, p in zip((0.1, 1.0, 10.0), least, strict=True)
    ]
    return Shown(
        tuple(lines), all(np.all(p[:, 1] >= p[:, 0] * (1 - 1e-9)) and p.min() > 0 for p in least)
    )


@REGISTER("lab14.forcing", "the heat equation is ċ = −L(σ) c")
def forcing() -> Shown:
    """Without + δᵀb it forgets the input and runs to 0."""
    w1, b1, w2, b2 = block()
    x = lab_inputs()[0]
    goal, side = np.concatenate(parts(x)), np.concatenate([w1 @ x + b1, np.zeros(N), b2, x])
    lines, ends = [], []
    for label, force in (("without δᵀb", 0.0), ("with δᵀb", 1.0)):
        c = np.random.default_rng(2).standard_normal(4 * N)
        energies = []
        for _ in range(4000):
            delta = path_matrix(c[:N] > 0, w2, c[2 * N : 3 * N] > 0)
            energies.append(0.5 * np.sum((delta @ c - side) ** 2))
            c = c - 0.1 * delta.T @ (delta @ c - force * side)
        ends.append(float(np.abs(c - goal).max()))
        rises = int(np.sum(np.diff(energies) > 1e-12))
        lines.append(
            f"{label}: |c| → {np.linalg.norm(c):.1e}, max error {ends[-1]:.1e}, "
            f"energy rises {rises}"
        )
    return Shown(tuple(lines), ends[0] > 0.1 > 1e-6 > ends[1])
