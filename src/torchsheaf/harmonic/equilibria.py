"""Several starts: the distinct equilibria of one held problem, with their energies."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from torchsheaf.boundary import Problem
from torchsheaf.cochain import Cochain, per_sample


@dataclass(frozen=True, eq=False, repr=False)
class Equilibria:
    """What several starts found.

    `energies` (starts, batch); `arrived` (starts, batch): whether that start met the tolerance;
    `label` (starts, batch): equal numbers mark one and the same equilibrium of a sample, numbered
    from 0 by energy; `starts` names the starts.
    """

    energies: Tensor
    arrived: Tensor
    label: Tensor
    cochains: tuple[Cochain, ...]
    starts: tuple[str, ...]

    def __repr__(self) -> str:
        least, most = (int(n) for n in self.count.aminmax())
        several = f"{least}" if least == most else f"{least} to {most}"
        return (
            f"Equilibria({len(self.starts)} starts, {self.label.shape[1]} samples; {several} "
            f"distinct per sample; {int(self.arrived.sum())} of {self.arrived.numel()} arrived)"
        )

    @property
    def count(self) -> Tensor:
        """Number of distinct equilibria per sample, `(batch,)`."""
        return self.label.max(0).values + 1

    def distinct(self, sample: int) -> list[tuple[float, Cochain]]:
        """The distinct equilibria of one sample, lowest energy first."""
        batch = self.label.shape[1]
        if not -batch <= sample < batch:
            raise IndexError(f"sample {sample} is out of range; there are {batch}")
        found, sample = {}, sample % batch
        for i, label in enumerate(self.label[:, sample].tolist()):
            if label >= 0 and label not in found:
                one = self.cochains[i].samples(slice(sample, sample + 1))
                found[label] = (float(self.energies[i, sample]), one)
        return [found[k] for k in sorted(found)]

    def best(self) -> Cochain:
        """Per sample the cochain of least energy among those that arrived (else of least)."""
        penal = torch.where(self.arrived, self.energies, torch.inf)
        none = ~self.arrived.any(0)
        pick = torch.where(none, self.energies, penal).argmin(0)
        chosen = self.cochains[0]
        for i, c in enumerate(self.cochains[1:], start=1):
            chosen = c.where(pick == i, chosen)
        return chosen


def starting_cochains(
    problem: Problem, first: tuple[str, Cochain], count: int, generator: torch.Generator | None
) -> list[tuple[str, Cochain]]:
    """`count` different starts: the given one, the forward pass, zeros, then random ones.

    Random starts are the forward pass plus normal noise of the size of each vertex's values.
    """
    generator = generator or torch.Generator().manual_seed(0)
    forward = problem.start("forward")
    others = [("forward", forward), ("zeros", problem.start("zeros"))]
    named = [first, *(o for o in others if o[0] != first[0])][:count]
    plain = len(named)
    while len(named) < count:
        noise = problem.free.random(problem.batch, problem.like, generator)
        scale = (1.0, 2.0, 0.5)[len(named) % 3]
        blocks = {}
        for name, value in forward.items():
            if name in noise:
                size = value.reshape(value.shape[0], -1).square().mean(1).sqrt() + 0.1
                value = value + scale * per_sample(size, value) * noise[name]
            blocks[name] = value
        named.append((f"random {len(named) - plain}", problem.clamp(blocks)))
    return named


def gather_equilibria(
    problem: Problem,
    starts: list[tuple[str, Cochain]],
    solve: Callable[[Problem, Cochain], tuple[Cochain, Tensor, Tensor]],
    same: float,
) -> Equilibria:
    """Solve from every start, all of them in one batch unless the network fixes its batch size.

    `solve` returns the cochain, its energy and whether it arrived, per sample. Ends whose relative
    distance is at most `same` count as one equilibrium.
    """
    n, batch = len(starts), problem.batch
    if problem.sheaf.network.fixed_batch is None:
        index = torch.arange(batch, device=problem.like.device).repeat(n)
        names = starts[0][1].names
        stacked = Cochain({k: torch.cat([c[k] for _, c in starts]) for k in names})
        cochain, energy, arrived = solve(problem.samples(index), stacked)
        parts = [cochain.samples(slice(i * batch, (i + 1) * batch)) for i in range(n)]
        energies, good = energy.reshape(n, batch), arrived.reshape(n, batch)
    else:
        solved = [solve(problem, c) for _, c in starts]
        parts = [s[0] for s in solved]
        energies = torch.stack([s[1] for s in solved])
        good = torch.stack([s[2] for s in solved])
    label = _labels(problem, parts, energies, good, same)
    return Equilibria(energies, good, label, tuple(parts), tuple(s for s, _ in starts))


def _labels(
    problem: Problem, parts: list[Cochain], energies: Tensor, arrived: Tensor, near: float
) -> Tensor:  # fmt: skip
    """−1 where a start did not arrive; otherwise the rank of its equilibrium by energy."""
    flat = torch.stack([problem.free.flatten(c) for c in parts])
    order = torch.where(arrived, energies, torch.inf).sort(stable=True, dim=0).indices
    label = torch.full_like(order, -1)
    count = torch.zeros_like(order[0])
    everyone = torch.arange(order.shape[1], device=order.device)
    for position in range(len(parts)):
        mine = order[position]
        here = flat[mine, everyone]
        given = torch.full_like(count, -1)
        for earlier in range(position):
            other = order[earlier]
            gap = (flat[other, everyone] - here).norm(dim=1)
            same = (gap <= near * (1 + here.norm(dim=1))) & (given < 0)
            given = torch.where(same, label[other, everyone], given)
        fresh = (given < 0) & arrived[mine, everyone]
        given = torch.where(fresh, count, given)
        count = count + fresh.to(count.dtype)
        label[mine, everyone] = torch.where(arrived[mine, everyone], given, -1)
    return label
