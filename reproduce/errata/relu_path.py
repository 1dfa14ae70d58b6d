"""The unfused sheaf of a ReLU MLP as dense numpy: just enough to check claims about it."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ReluPath:
    """Weights and biases; free coordinates in the order (z1, a1, ..., zk, ak, z_{k+1})."""

    weights: list[Array]
    biases: list[Array]

    @staticmethod
    def he(widths: list[int], rng: np.random.Generator) -> "ReluPath":
        """He initialisation, zero biases."""
        weights = [rng.standard_normal((n, m)) * np.sqrt(2 / m) for m, n in pairwise(widths)]
        return ReluPath(weights, [np.zeros(n) for n in widths[1:]])

    @property
    def sizes(self) -> list[int]:
        """Dimensions of the free blocks."""
        hidden = [w.shape[0] for w in self.weights[:-1]]
        return [n for width in hidden for n in (width, width)] + [self.weights[-1].shape[0]]

    @property
    def output(self) -> slice:
        """Coordinates of z_{k+1}."""
        return slice(sum(self.sizes) - self.sizes[-1], sum(self.sizes))

    def blocks(self, c: Array) -> list[Array]:
        """c cut into (z1, a1, ..., z_{k+1})."""
        return np.split(c, np.cumsum(self.sizes)[:-1])

    def forward(self, x: Array) -> Array:
        """The forward pass as a cochain."""
        parts, below = [], x
        for weight, bias in zip(self.weights, self.biases, strict=True):
            parts += [weight @ below + bias]
            below = np.maximum(parts[-1], 0)
            parts += [below]
        return np.concatenate(parts[:-1])

    def coboundary(self, at: Array) -> Array:
        """δ with the activation pattern of the cochain `at` (z = 0 counts as active)."""
        parts, starts = self.blocks(at), np.concatenate([[0], np.cumsum(self.sizes)])
        delta = np.eye(len(at))
        for layer in range(len(self.weights) - 1):
            z, a, up = (slice(starts[2 * layer + i], starts[2 * layer + i + 1]) for i in range(3))
            delta[a, z] = -np.diag((parts[2 * layer] >= 0).astype(float))
            delta[up, a] = -self.weights[layer + 1]
        return delta

    def offset(self, x: Array) -> Array:
        """b, so that the residual is δ c − b."""
        parts = [np.zeros(n) for n in self.sizes]
        for layer, bias in enumerate(self.biases):
            parts[2 * layer] = bias + (self.weights[0] @ x if layer == 0 else 0.0)
        return np.concatenate(parts)

    def residual(self, c: Array, x: Array) -> Array:
        """r(c), pattern of c itself."""
        return self.coboundary(c) @ c - self.offset(x)
