"""The energy after elimination: value, forces, and the branch of it that is frozen for a step."""

from dataclasses import dataclass

import torch
from torch import Tensor

from torchsheaf.cochain import Cochain
from torchsheaf.harmonic.elimination import Eliminated, Held, Pull, Weight, eliminate
from torchsheaf.harmonic.kinks import Frozen
from torchsheaf.harmonic.reduction import Reduction


@dataclass(frozen=True)
class Forces:
    """Partial derivatives of E at (C, M), taking M as independent of C.

    `energy` (batch,); `on_variables` like C; `on_values` like M; `gates` what was eliminated.
    """

    energy: Tensor
    on_variables: Tensor
    on_values: Tensor
    gates: Eliminated | None

    def slope(self, dc: Tensor, dm: Tensor) -> Tensor:
        """Derivative of E along (dC, dM), per sample."""
        return _dot(self.on_variables, dc) + _dot(self.on_values, dm)

    def samples(self, keep: Tensor) -> "Forces":
        """The chosen samples."""
        gates = None if self.gates is None else self.gates.samples(keep)
        return Forces(self.energy[keep], self.on_variables[keep], self.on_values[keep], gates)


@dataclass(frozen=True)
class Branch:
    """Second-order model of E with every gate's state frozen, per column.

    Rows of the model: √κ (dc − S dm) for each free head, i.e. dc = D u + S dm in the scaled
    variables u; √ω dm for values that are pinned; √Γ dc for pulled variables. S, D and the
    identity are zero where the head is held.
    """

    slope: Tensor
    scale: Tensor
    omega: Tensor
    gamma: Tensor | None
    identity: Tensor | None
    ties: "Ties | None" = None


@dataclass(frozen=True)
class Ties:
    """Columns that move with another one, `leader` (like C); κ and S of the rows they leave."""

    leader: Tensor
    stiffness: Tensor
    slope: Tensor


def forces(reduction: Reduction, c: Tensor, m: Tensor) -> Forces:
    """Value and first derivatives. Cost: elementwise, no pass through the network."""
    layout, holds = reduction.layout, reduction.holds
    g, h = layout.gated, layout.heads
    on_c, on_m = torch.empty_like(c), torch.empty_like(m)
    # the squared residuals are summed here and weighted once per group of columns
    total = c.new_zeros(c.shape[0])
    gates = None
    if g:
        gates = _eliminate(reduction, c, m)
        below = torch.sub(m[:, :g], gates.z, out=on_m[:, :g])
        above = torch.sub(c[:, :g], gates.value, out=on_c[:, :g])
        total += _weigh(below, holds.w_in) + _weigh(above, holds.w_out)
        if holds.gate_pull is not None:
            miss = gates.z - holds.gate_pull.target
            total += _dot(holds.gate_pull.gamma * miss, miss)
    if h > g:
        residual = torch.sub(c[:, g:h], m[:, g:h], out=on_c[:, g:h])
        total += _weigh(residual, holds.w_plain)
        torch.neg(residual, out=on_m[:, g:h])
    if layout.leaves:
        miss = torch.sub(m[:, h:], holds.leaf_target, out=on_m[:, h:])
        total += _weigh(miss, holds.leaf_weight)
    if layout.sources:
        on_c[:, h:] = 0
    if holds.pull is not None:
        miss = c - holds.pull.target
        total += _dot(holds.pull.gamma * miss, miss)
        on_c.addcmul_(holds.pull.gamma.expand_as(miss), miss)
    return Forces(total.mul_(0.5), on_c, on_m, gates)


def _weigh(residual: Tensor, weight: Weight) -> Tensor:
    """w ‖r‖² per sample; the residual itself becomes the force w r."""
    if not isinstance(weight, Tensor):
        return _dot(residual, residual)  # of weight 1
    plain = residual.clone()
    return _dot(residual.mul_(weight), plain)


def _dot(u: Tensor, v: Tensor) -> Tensor:
    return torch.linalg.vecdot(u, v)


def _eliminate(reduction: Reduction, c: Tensor, m: Tensor) -> Eliminated:
    holds, layout = reduction.holds, reduction.layout
    parts = []
    for rows, pieces in layout.groups:
        w_in = holds.w_in[rows] if isinstance(holds.w_in, Tensor) else holds.w_in
        w_out = holds.w_out[rows] if isinstance(holds.w_out, Tensor) else holds.w_out
        pull, held = holds.gate_pull, holds.gate_held
        pulled = None if pull is None else Pull(pull.gamma[:, rows], pull.target[:, rows])
        stuck = None if held is None else Held(held.mask[:, rows], held.value[:, rows])
        parts.append(eliminate(pieces, m[:, rows], c[:, rows], w_in, w_out, pulled, stuck))
    if len(parts) == 1:
        return parts[0]
    return Eliminated(
        torch.cat([p.z for p in parts], 1),
        torch.cat([p.value for p in parts], 1),
        torch.cat([p.slope for p in parts], 1),
        torch.cat([p.stuck for p in parts], 1),
    )


def restored(reduction: Reduction, c: Tensor, m: Tensor) -> Cochain:
    """The whole cochain at (C, M), what was eliminated at its best."""
    gates = _eliminate(reduction, c, m) if reduction.layout.gated else None
    return reduction.restore(c, m, m if gates is None else gates.z)


def branch(
    reduction: Reduction, c: Tensor, gates: Eliminated | None, frozen: Frozen | None = None
) -> Branch:
    """Freeze the gates' states, and what `frozen` holds for this step. Cost: elementwise."""
    layout, holds = reduction.layout, reduction.holds
    g, h, n = layout.gated, layout.heads, c.shape[0]
    slope, scale = c.new_ones(n, h), c.new_ones(n, layout.variables)
    omega = c.new_zeros(n, layout.values)
    if gates is not None:
        pull = holds.gate_pull
        weight = holds.w_in if pull is None else holds.w_in + pull.gamma
        # κ = w̃ w_a / (w̃ + s² w_a), the stiffness left between m and a when z has gone
        scale[:, :g] = (1 / weight * gates.slope.square() + 1 / holds.w_out).sqrt()
        slope[:, :g] = gates.slope if pull is None else gates.slope * (holds.w_in / weight)
        loose = 0.0 if pull is None else holds.w_in * pull.gamma / weight
        omega[:, :g] = torch.where(
            gates.stuck, torch.as_tensor(holds.w_in, dtype=c.dtype, device=c.device),
            torch.as_tensor(loose, dtype=c.dtype, device=c.device),
        )  # fmt: skip
    if isinstance(holds.w_plain, Tensor):
        scale[:, g:h] = holds.w_plain.rsqrt()
    if layout.leaves:
        omega[:, h:] = holds.leaf_weight
    gamma, identity = None, None
    if holds.pull is not None:
        gamma = holds.pull.gamma
        pulled = gamma[:, h:] > 0
        tiny = torch.finfo(gamma.dtype).tiny
        scale[:, h:] = torch.where(pulled, gamma[:, h:].clamp_min(tiny).rsqrt(), 1.0)
        gamma = torch.cat([gamma[:, :h], torch.zeros_like(gamma[:, h:])], 1)
    keep = holds.keep
    if frozen is not None:
        keep = (~frozen.stuck).to(c.dtype) * (1.0 if keep is None else keep)
    if layout.sources or keep is not None:
        rows = 1 if holds.pull is None else len(holds.pull.gamma)
        identity = c.new_ones(rows, layout.variables)
        if layout.sources:
            pulls = holds.pull
            identity[:, h:] = 0 if pulls is None else (pulls.gamma[:, h:] > 0).to(c.dtype)
    if keep is None:
        return Branch(slope, scale, omega, gamma, identity)
    assert identity is not None
    identity = identity * keep
    # a held head leaves its row κ (S dm)² behind
    omega[:, :h] += (1 - keep[..., :h]) * (slope / scale[:, :h]).square()
    slope, scale = slope * keep[..., :h], scale * keep
    if frozen is None or not bool((follow := frozen.ties).any()):
        return Branch(slope, scale, omega, gamma, identity)
    heads = follow[:, :h]
    stiffness = torch.where(heads, scale[:, :h].square().reciprocal(), 0)
    ties = Ties(frozen.leader, stiffness, slope)
    slope, scale = slope.masked_fill(heads, 0), scale.masked_fill(follow, 0)
    return Branch(slope, scale, omega, gamma, identity.masked_fill(follow, 0), ties)
