"""The sheaf Laplacian L = δᵀWδ on the free coordinates."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from torchsheaf.cochain import Cochain, Space
from torchsheaf.linalg import LinearMap
from torchsheaf.linalg.conjugate_gradient import conjugate_gradient
from torchsheaf.sheaf.coboundary import Coboundary


@final
@dataclass(frozen=True, eq=False, repr=False)
class Laplacian(LinearMap):
    """L = δᵀWδ, symmetric positive definite whenever the input is held (docs/theory.md, T1).

    `weights` holds the inner product w_e of edges and the weight γ of soft pins, one number or
    `(1 or batch, coordinates)` (absent = 1).
    `unpinned` is the coboundary of the same state with only the input held: its triangular solves
    precondition `solve`.
    """

    coboundary: Coboundary
    weights: Mapping[str, float | Tensor]
    unpinned: Coboundary

    @property
    def domain(self) -> Space:  # type: ignore[override]
        """The free coordinates."""
        return self.coboundary.domain

    @property
    def codomain(self) -> Space:  # type: ignore[override]
        """The free coordinates."""
        return self.coboundary.domain

    @property
    def like(self) -> Tensor:
        return self.coboundary.like

    def apply(self, u: Cochain) -> Cochain:
        """L u. Cost: two sweeps."""
        return self.coboundary.adjoint(self._weigh(self.coboundary.apply(u)))

    def adjoint(self, v: Cochain) -> Cochain:
        """Lᵀ = L."""
        return self.apply(v)

    def solve(self, b: Cochain, *, tol: float | None = None) -> tuple[Cochain, int]:
        """L⁻¹b and the number of sweeps it took.

        With only the input held: δ⁻¹W⁻¹δ⁻ᵀb, two sweeps, at any depth. Otherwise conjugate
        gradients preconditioned by that same product; L then differs from the unpinned one by a
        term of rank #pinned, so at most #pinned + 1 steps (4 sweeps each) in exact arithmetic.

        Raises `ConvergenceError` when L is singular: more input coordinates are free than pins
        hold downstream of them.
        """
        if self.coboundary.is_triangular:
            return self._unpinned_inverse(b), 2
        free = set(self.domain.shapes)
        extra = free - set(self.unpinned.domain.shapes)
        if extra:  # a free input has no row of its own: it is preconditioned by the identity

            def precondition(v: Cochain) -> Cochain:
                return self._restricted_inverse(v, extra)
        else:

            def precondition(v: Cochain) -> Cochain:
                return self._restricted_inverse(v, set())

        tol = tol if tol is not None else 100 * torch.finfo(self.like.dtype).eps
        solution, steps = conjugate_gradient(
            self.apply, b, precondition, tol=tol, max_steps=4 * self._defect(extra) + 100
        )
        return solution, 4 * steps

    def _defect(self, extra: set[str]) -> int:
        """Rank of what sets L apart from the preconditioner's inverse, at most."""
        free = self.domain.dims
        missing = self.unpinned.domain.dim - sum(d for n, d in free.items() if n not in extra)
        taps = self.coboundary.codomain.dim - self.unpinned.codomain.dim
        return missing + taps + 2 * sum(d for n, d in free.items() if n in extra)

    def inverse_flat(self, v: Tensor) -> Tensor:
        """L⁻¹v for flat vectors with only the input held; allocates nothing but the result."""
        flat = v.clone()
        blocks = dict(self.domain.unflatten(flat).items())  # views: what follows writes into flat
        self.coboundary.solve_adjoint_in_place(blocks)
        for name, w in self.weights.items():
            blocks[name] /= w
        self.coboundary.solve_in_place(blocks)
        return flat

    def _restricted_inverse(self, v: Cochain, extra: set[str]) -> Cochain:
        space = self.unpinned.domain
        full = Cochain(
            {
                n: v[n] if n in v else self.like.new_zeros(self.like.shape[0], *s)
                for n, s in space.shapes.items()
            }
        )
        inverse = self._unpinned_inverse(full)
        return self.domain.project(
            {n: v[n] if n in extra else inverse[n] for n in self.domain.shapes}
        )

    def _unpinned_inverse(self, b: Cochain) -> Cochain:
        swept = self.unpinned.solve_adjoint(b)
        return self.unpinned.solve(self._weigh(swept, inverse=True))

    def _weigh(self, r: Cochain, *, inverse: bool = False) -> Cochain:
        if not self.weights:
            return r
        factor = {n: 1 / w if inverse else w for n, w in self.weights.items()}
        return Cochain({n: t * factor[n] if n in factor else t for n, t in r.items()})
