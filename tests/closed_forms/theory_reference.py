"""Slow, dense, obvious numpy models of docs/theory.md, for the tests beside this file.

Nothing here imports the library: these are the second opinion it is later compared with.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
OFF, ON, SLIDING = 0, 1, 2


@dataclass(frozen=True)
class ReluPath:
    """A ReLU MLP as its path sheaf; free coordinates in the order (z1, a1, ..., zk, ak, out)."""

    weights: tuple[Array, ...]
    biases: tuple[Array, ...]
    slope: float = 0.0

    @staticmethod
    def random(widths: list[int], rng: np.random.Generator, slope: float = 0.0) -> "ReluPath":
        pairs = list(itertools.pairwise(widths))
        return ReluPath(
            tuple(rng.standard_normal((n, m)) * np.sqrt(2 / m) for m, n in pairs),
            tuple(0.5 * rng.standard_normal(n) for _, n in pairs),
            slope,
        )

    @property
    def hidden(self) -> int:
        """Number of hidden layers k."""
        return len(self.weights) - 1

    @property
    def n_out(self) -> int:
        return self.weights[-1].shape[0]

    @property
    def gates(self) -> int:
        return sum(w.shape[0] for w in self.weights[:-1])

    @property
    def dimension(self) -> int:
        return 2 * self.gates + self.n_out

    def block(self, kind: str, layer: int) -> slice:
        """Coordinates of z_layer or a_layer, layers counted from 1."""
        before = sum(2 * w.shape[0] for w in self.weights[: layer - 1])
        width = self.weights[layer - 1].shape[0]
        return (
            slice(before, before + width)
            if kind == "z"
            else slice(before + width, before + 2 * width)
        )

    def coboundary(self, mask: Array) -> Array:
        """δ for gate slopes `mask`, one per gate, first layer first; rows ordered as columns."""
        delta = np.eye(self.dimension)
        start = 0
        for layer in range(1, self.hidden + 1):
            z, a = self.block("z", layer), self.block("a", layer)
            width = z.stop - z.start
            delta[a, z] = -np.diag(mask[start : start + width])
            delta[self.block("z", layer + 1), a] = -self.weights[layer]
            start += width
        return delta

    def offset(self, x: Array) -> Array:
        """b, so that the discrepancy is δ c − b."""
        out = np.zeros(self.dimension)
        for layer, bias in enumerate(self.biases, start=1):
            out[self.block("z", layer)] = bias
        out[self.block("z", 1)] += self.weights[0] @ x
        return out

    def gate(self, z: Array) -> Array:
        return np.where(z >= 0, z, self.slope * z)

    def split(self, c: Array) -> tuple[list[Array], list[Array]]:
        zs = [c[self.block("z", layer)] for layer in range(1, self.hidden + 2)]
        return zs, [c[self.block("a", layer)] for layer in range(1, self.hidden + 1)]

    def mask_of(self, c: Array) -> Array:
        zs, _ = self.split(c)
        joined = np.concatenate([*zs[:-1], np.zeros(0)])
        return np.where(joined >= 0, 1.0, self.slope)

    def residual(self, c: Array, x: Array) -> Array:
        """r(c): every edge's own disagreement, with the pattern of c itself."""
        return self.coboundary(self.mask_of(c)) @ c - self.offset(x)

    def energy(self, c: Array, x: Array) -> float:
        return 0.5 * float(np.sum(self.residual(c, x) ** 2))

    def substitute(self, x: Array, injected: Array | None = None) -> Array:
        """The one c with r(c) = injected; with nothing injected it is the forward pass."""
        rho = np.zeros(self.dimension) if injected is None else injected
        c = np.zeros(self.dimension)
        below = x
        for layer in range(1, self.hidden + 2):
            z = self.block("z", layer)
            c[z] = self.weights[layer - 1] @ below + self.biases[layer - 1] + rho[z]
            if layer <= self.hidden:
                a = self.block("a", layer)
                c[a] = self.gate(c[z]) + rho[a]
                below = c[a]
        return c

    def incoming(self, c: Array, x: Array) -> Array:
        """The affine value that reaches every gate, W a + b, first layer first."""
        _, posts = self.split(c)
        below = [x, *posts]
        return np.concatenate(
            [self.weights[i] @ below[i] + self.biases[i] for i in range(self.hidden)]
        )

    def outgoing(self, c: Array) -> Array:
        return np.concatenate(self.split(c)[1])

    def pre(self, c: Array) -> Array:
        return np.concatenate(self.split(c)[0][:-1])

    def gate_columns(self) -> Array:
        return np.concatenate(
            [np.arange(self.dimension)[self.block("z", i)] for i in range(1, self.hidden + 1)]
        )

    def output_rows(self) -> Array:
        """P_out: picks z_{k+1} out of a cochain."""
        return np.eye(self.dimension)[self.block("z", self.hidden + 1)]


def patterns(count: int) -> Iterator[Array]:
    """All 2^count binary masks."""
    for bits in itertools.product((0.0, 1.0), repeat=count):
        yield np.array(bits)


def pinned_minimum(delta: Array, offset: Array, rows: Array, target: Array, weight: float) -> Array:
    """argmin ½|δc−b|² + ½·weight·|rows c − target|², by the normal equations; inf: a hard pin."""
    laplacian = delta.T @ delta
    if np.isinf(weight):
        m = rows.shape[0]
        system = np.block([[laplacian, rows.T], [rows, np.zeros((m, m))]])
        return np.linalg.solve(system, np.concatenate([delta.T @ offset, target]))[: delta.shape[1]]
    return np.linalg.solve(
        laplacian + weight * rows.T @ rows, delta.T @ offset + weight * rows.T @ target
    )


@dataclass(frozen=True)
class Equilibrium:
    """One three-state stationary point of a held ReLU path."""

    cochain: Array
    states: tuple[int, ...]
    energy: float


def equilibria(
    net: ReluPath, x: Array, y: Array, weight: float = np.inf, margin: float = 1e-9
) -> list[Equilibrium]:
    """Every equilibrium with the output held at y, by trying all 3^gates states.

    Inside one state the problem is a linear least-squares problem; its solution counts if the gates
    really are in that state (T4), ties left out by `margin`.
    """
    tried = (
        equilibrium_in(net, x, y, states, weight, margin)
        for states in itertools.product((OFF, ON, SLIDING), repeat=net.gates)
    )
    return sorted((e for e in tried if e is not None), key=lambda e: e.energy)


def equilibrium_in(
    net: ReluPath,
    x: Array,
    y: Array,
    states: tuple[int, ...],
    weight: float = np.inf,
    margin: float = 1e-9,
) -> Equilibrium | None:
    """The equilibrium whose gates are in these states, or None."""
    columns, rows, state = net.gate_columns(), net.output_rows(), np.array(states)
    delta = net.coboundary((state == ON) * 1.0)
    kept = np.setdiff1d(np.arange(net.dimension), columns[state == SLIDING])
    c = np.zeros(net.dimension)
    c[kept] = pinned_minimum(delta[:, kept], net.offset(x), rows[:, kept], y, weight)
    if not consistent(net, c, x, state, margin):
        return None
    energy = net.energy(c, x)
    if np.isfinite(weight):
        energy += 0.5 * weight * float(np.sum((rows @ c - y) ** 2))
    return Equilibrium(c, states, energy)


def consistent(net: ReluPath, c: Array, x: Array, state: NDArray[np.int64], margin: float) -> bool:
    z, a, incoming = net.pre(c), net.outgoing(c), net.incoming(c, x)
    good = np.where(
        state == OFF,
        z < -margin,
        np.where(state == ON, z > margin, (incoming > margin) & (incoming + a < -margin)),
    )
    return bool(np.all(good))


def smallest_in_hull(points: Array) -> float:
    """Norm of the shortest vector in the convex hull of the rows of `points`, after Gilbert."""
    best = points[np.argmin(np.sum(points**2, axis=1))].copy()
    for _ in range(20_000):
        corner = points[np.argmin(points @ best)]
        gap = best - corner
        if best @ gap <= 1e-12 * max(1.0, best @ best):
            break
        best = best - min(1.0, best @ gap / (gap @ gap)) * gap
    return float(np.linalg.norm(best))
