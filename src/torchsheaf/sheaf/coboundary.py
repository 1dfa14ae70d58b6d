"""The coboundary δ on the free coordinates, as a linear map that is never assembled."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from torchsheaf.cochain import Cochain, Space, coordinates
from torchsheaf.linalg import LinearMap
from torchsheaf.network import Composition


@final
@dataclass(frozen=True, eq=False, repr=False)
class Coboundary(LinearMap):
    """(δu)_e = u_head − Σ_p R_{e,p} u_p on the free coordinates, at a fixed pattern or state.

    `maps` are the tail restriction maps per edge in topological order; `taps` adds one edge per
    soft pin, with the coordinate projection (δu)_pin = u_v[index] as restriction map. With only
    the input held δ is square and unit lower triangular, det δ = 1 (docs/theory.md, T1), and
    `solve` and `solve_adjoint` cost one sweep each.

    Source: Bosca & Ghrist 2026, Lemma 1; any DAG: docs/theory.md, T1.
    """

    maps: Mapping[str, Composition]
    domain: Space
    codomain: Space
    sample: Tensor
    taps: Mapping[str, tuple[str, Tensor]]

    @property
    def like(self) -> Tensor:
        return self.sample

    @torch.no_grad()
    def apply(self, u: Cochain) -> Cochain:
        """δu. Cost: one forward sweep of restriction maps."""
        u = self.domain.project(u)
        out = {}
        for name, edge in self.maps.items():
            tangents = {p: u[p] for p in edge.parents if p in u}
            head = u[name] if name in u else None
            if not tangents:
                block = head if head is not None else self._zero(name)
            else:
                pushed = edge.push(tangents)
                block = -pushed if head is None else head - pushed
            out[name] = block
        for tap, (vertex, index) in self.taps.items():
            if vertex in u:
                out[tap] = coordinates(u[vertex])[:, index]
            else:
                out[tap] = self._zero(tap)
        return Cochain(out)

    @torch.no_grad()
    def adjoint(self, v: Cochain) -> Cochain:
        """δᵀv. Cost: one reverse sweep of local vector–Jacobian products."""
        total: dict[str, Tensor] = {n: v[n] for n in self.maps if n in self.domain.shapes}
        for name, edge in self.maps.items():
            if not any(p in self.domain.shapes for p in edge.parents):
                continue
            for parent, g in edge.pull(v[name]).items():
                if parent in self.domain.shapes:
                    total[parent] = total[parent] - g if parent in total else -g
        for tap, (vertex, index) in self.taps.items():
            if vertex in self.domain.shapes:
                shape = self.domain.shapes[vertex]
                base = total[vertex] if vertex in total else self._zeros(shape)
                flat = coordinates(base)
                total[vertex] = flat.index_add(1, index, v[tap]).reshape(base.shape)
        full = {
            n: total[n] if n in total else self._zeros(s) for n, s in self.domain.shapes.items()
        }
        return self.domain.project(full)

    @property
    def is_triangular(self) -> bool:
        """Whether δ is square and unit triangular: every computed vertex wholly free, no pins."""
        return not self.taps and not self.domain.where and set(self.domain.shapes) == set(self.maps)

    @torch.no_grad()
    def solve(self, b: Cochain) -> Cochain:
        """δ⁻¹b by forward substitution: a tangent forward pass with b injected on the edges."""
        self._require_triangular()
        u: dict[str, Tensor] = {}
        for name, edge in self.maps.items():
            tangents = {p: u[p] for p in edge.parents if p in u}
            u[name] = b[name] + edge.push(tangents) if tangents else b[name]
        return Cochain(u)

    @torch.no_grad()
    def solve_adjoint(self, b: Cochain) -> Cochain:
        """δ⁻ᵀb by one reverse sweep: λ_v = b_v + Σ_{children e} R_{e,v}ᵀ λ_e."""
        self._require_triangular()
        arriving = dict(b.items())
        for name in reversed(list(self.maps)):
            edge = self.maps[name]
            if not any(p in arriving for p in edge.parents):
                continue
            for parent, g in edge.pull(arriving[name]).items():
                if parent in arriving:
                    arriving[parent] = arriving[parent] + g
        return Cochain({n: arriving[n] for n in self.maps})

    @torch.no_grad()
    def solve_in_place(self, b: dict[str, Tensor]) -> None:
        """δ⁻¹b written over b, block by block: no second cochain is held."""
        self._require_triangular()
        for name, edge in self.maps.items():
            tangents = {p: b[p] for p in edge.parents if p in b}
            if tangents:
                b[name] += edge.push(tangents)

    @torch.no_grad()
    def solve_adjoint_in_place(self, b: dict[str, Tensor]) -> None:
        """δ⁻ᵀb written over b, block by block."""
        self._require_triangular()
        for name in reversed(list(self.maps)):
            edge = self.maps[name]
            if any(p in b for p in edge.parents):
                for parent, g in edge.pull(b[name]).items():
                    if parent in b:
                        b[parent] += g

    def _require_triangular(self) -> None:
        if not self.is_triangular:
            raise ValueError(
                "δ is triangular only with the input held and everything else free; this problem "
                "holds or frees other coordinates, so use laplacian(...).solve instead"
            )

    def _zero(self, name: str) -> Tensor:
        return self._zeros(self.codomain.shapes[name])

    def _zeros(self, shape: tuple[int, ...]) -> Tensor:
        return self.sample.new_zeros(self.sample.shape[0], *shape)
