"""The Newton system of one branch: two triangular sweeps per product, never assembled."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from torchsheaf.cochain import coordinates
from torchsheaf.harmonic.curvature import Curvature
from torchsheaf.harmonic.reduced_energy import Branch
from torchsheaf.harmonic.reduction import Layout
from torchsheaf.network import Composition

Maps = Mapping[str, Composition]
"""Differentials by node name."""


@dataclass(frozen=True)
class FrozenSystem:
    """H = I + GᵀG in the variables u, with dc = D u + S dm and dm = J dc solved forward.

    The identity covers free heads (and pulled sources); G reads the pinned rows. All eigenvalues
    are ≥ 1 unless sources are free. `curvature` adds the second derivatives of smooth edges, with
    which H may be indefinite. Source: docs/notes/solver.md §2 and §3.
    """

    layout: Layout
    maps: Maps
    branch: Branch
    curvature: Curvature | None = None

    def forward(self, u: Tensor, out: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """(dc, dm) of u, written to `out` if given: forward substitution. Cost: one sweep."""
        layout, branch = self.layout, self.branch
        dc, dm = out or (torch.empty_like(u), u.new_empty(u.shape[0], layout.values))
        torch.mul(branch.scale, u, out=dc)
        if layout.sources:
            self._follow(dc, slice(layout.heads, layout.variables))
        blocks, values = layout.of_variables(dc), layout.of_values(dm)
        slopes, tangents = layout.of_heads(branch.slope), layout.shaped(blocks)
        for step in layout.steps:
            value = values[step.place]
            if step.parents:
                pushed = self.maps[step.name].push({p: tangents[p] for p in step.parents})
                value.copy_(coordinates(pushed))
                if step.head:
                    blocks[step.place].addcmul_(slopes[step.place], value)
            else:
                value.zero_()
            if step.head:
                self._follow(dc, step.rows)
        return dc, dm

    def _follow(self, dc: Tensor, rows: slice) -> None:
        """Tied columns take their leader's value; both lie in the same block."""
        if self.branch.ties is not None:
            dc[:, rows] = dc.gather(1, self.branch.ties.leader[:, rows])

    def fold(self, total: Tensor, rows: slice | None = None) -> Tensor:
        """Derivatives with respect to leaders, in place: what their followers feel is theirs."""
        ties = self.branch.ties
        if ties is None:
            return total
        rows = slice(0, total.shape[1]) if rows is None else rows
        leader, part = ties.leader[:, rows] - rows.start, total[:, rows]
        follows = leader != torch.arange(part.shape[1], device=leader.device)
        moved = torch.where(follows, part, 0)
        part.sub_(moved).scatter_add_(1, leader, moved)
        return total

    def reverse(
        self, on_c: Tensor, on_m: Tensor, *, substitute: bool = True, scaled: bool = True,
        overwrite: bool = False,
    ) -> Tensor:  # fmt: skip
        """Total derivative with respect to u of a function with partials (on_c, on_m).

        With `substitute=False`, `scaled=False` the derivative with respect to C alone, M a
        function of C: one local vector–Jacobian product per map. With `overwrite` both partials
        serve as work space. Cost: one reverse sweep.
        """
        layout, branch = self.layout, self.branch
        total = on_c if overwrite else on_c.clone()
        blocks, values = layout.of_variables(total), layout.of_values(on_m)
        slopes = layout.of_heads(branch.slope)
        for step in reversed(layout.steps):
            through = substitute and step.head
            if through:
                self.fold(total, step.rows)
            if not step.parents:
                continue
            cotangent = values[step.place]
            if through:
                add = cotangent.addcmul_ if overwrite else cotangent.addcmul
                cotangent = add(slopes[step.place], blocks[step.place])
            if len(step.shape) != 1:
                cotangent = cotangent.reshape(-1, *step.shape)
            for parent, g in self.maps[step.name].pull(cotangent).items():
                if parent in layout.places:
                    blocks[layout.places[parent]].add_(coordinates(g))
        if substitute and layout.sources:
            self.fold(total, slice(layout.heads, layout.variables))
        if not scaled:
            return total
        return torch.mul(branch.scale, total, out=total) if overwrite else branch.scale * total

    def product(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(H u, dc, dm). Cost: two sweeps, and one local one with curvature."""
        dc, dm = self.forward(u)
        pinned = self.reverse(*self.pinned(dc, dm))
        return pinned + self.identity(u), dc, dm

    def identity(self, u: Tensor) -> Tensor:
        """The rows of u itself: none where a head is held or a source is free."""
        return u if self.branch.identity is None else self.branch.identity * u

    def pinned(
        self, dc: Tensor, dm: Tensor, out: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Partials of ½‖G u‖², the rows that are left, in dc and dm. Cost: elementwise."""
        branch = self.branch
        on_c, on_m = out or (torch.empty_like(dc), torch.empty_like(dm))
        if branch.gamma is None:
            on_c.zero_()
        else:
            torch.mul(branch.gamma, dc, out=on_c)
        torch.mul(branch.omega, dm, out=on_m)
        if branch.ties is not None:  # followers keep their rows √κ (dc − S dm)
            heads = branch.ties.slope.shape[1]
            row = dc[:, :heads] - branch.ties.slope * dm[:, :heads]
            row = branch.ties.stiffness * row
            on_c[:, :heads] += row
            on_m[:, :heads] -= branch.ties.slope * row
        if self.curvature is not None:
            on_c = self.curvature.add(on_c, dc)
        return on_c, on_m


@dataclass(frozen=True)
class Direction:
    """A step: du, and the (dc, dm) that it causes; `steps` conjugate gradient steps were taken.

    `model` (batch,) is what the frozen model changes by along it, g·u + ½ u·Hu; `edge` says which
    samples were stopped by the trust region; `norm` is ‖u‖.
    """

    u: Tensor
    dc: Tensor
    dm: Tensor
    steps: int
    model: Tensor
    edge: Tensor
    norm: Tensor


def newton_direction(
    system: FrozenSystem, gradient: Tensor, forcing: Tensor, *, radius: Tensor | None = None,
    max_steps: int = 400,
) -> Direction:  # fmt: skip
    """Conjugate gradients on H u = −g per sample, until ‖residual‖ ≤ forcing · ‖g‖.

    Truncated from 0, so u is a descent direction of the true energy at every step count. A sample
    that is done takes steps of length 0; (dc, dm) accumulate with u at no further sweep. With a
    `radius` (batch,) a sample ends where it leaves ‖u‖ ≤ radius, and a direction without curvature
    is followed up to there (Steihaug 1983); without one, such a direction stops its sample.
    """
    u = torch.zeros_like(gradient)
    dc, dm = torch.zeros_like(gradient), gradient.new_zeros(gradient.shape[0], system.layout.values)
    r = -gradient
    p = r
    rr = torch.linalg.vecdot(r, r)
    goal = forcing.square() * rr
    active = rr > goal
    model, edge, squared = torch.zeros_like(rr), torch.zeros_like(active), torch.zeros_like(rr)
    tiny, step = torch.finfo(rr.dtype).tiny, 0
    while step < max_steps and bool(active.any()):
        q, pc, pm = system.product(p)
        curvature, pp = torch.linalg.vecdot(p, q), torch.linalg.vecdot(p, p)
        convex = curvature > 1e-14 * pp
        alpha = torch.where(convex, rr / torch.where(convex, curvature, 1), torch.inf)
        if radius is None:
            active = active & convex
        else:  # the root of ‖u + αp‖ = radius
            along = torch.linalg.vecdot(u, p)
            room = (radius.square() - squared).clamp_min(0)
            farthest = ((along.square() + pp * room).sqrt() - along) / pp
            beyond = active & (alpha >= farthest)
            alpha, edge = torch.where(beyond, farthest, alpha), edge | beyond
        alpha = torch.where(active, alpha, 0)
        model = model + alpha * (0.5 * alpha * curvature - rr)
        by = alpha[:, None]
        u, dc, dm = u + by * p, dc + by * pc, dm + by * pm
        r = r - by * q
        squared = torch.linalg.vecdot(u, u)
        fresh = torch.linalg.vecdot(r, r)
        beta = torch.where(active, fresh / rr.clamp_min(tiny), 0)[:, None]
        p = r + beta * p
        rr = torch.where(active, fresh, rr)
        active = active & (rr > goal) & ~edge
        step += 1
    return Direction(u, dc, dm, step, model, edge, squared.sqrt())
