"""Keeps what was asked for along a flow, so that memory is bounded by the request."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from torchsheaf.boundary import Problem
from torchsheaf.boundary.pin import Coordinates, read_coordinates
from torchsheaf.cochain import Cochain

Record = str | Sequence[str] | Mapping[str, Coordinates]
"""What to keep: "energy", "states", names of vertices, or vertex → coordinates."""


class Recorder:
    """Tables with one row per recorded time and one column per sample, filled in any order."""

    def __init__(self, problem: Problem, times: Tensor, record: Record) -> None:
        self.problem = problem
        self.times = times
        shape = (times.numel(), problem.batch)
        like = problem.like
        self.energy = like.new_full(shape, torch.nan)
        self.edge_energy = {n: like.new_full(shape, torch.nan) for n in problem.edge_space.shapes}
        self._where = _choose(problem, record)
        self.states = {
            name: like.new_full((*shape, *kept), torch.nan)
            for name, (index, kept) in self._where.items()
        }

    def write(self, rows: Tensor, samples: Tensor, c: Cochain, problem: Problem) -> None:
        """Record entry i of `c` at time `rows[i]` of sample `samples[i]`; `problem` is theirs."""
        residual = problem.residual(c)
        total = torch.zeros_like(self.energy[rows, samples])
        for name, part in problem.edge_energies(residual).items():
            self.edge_energy[name][rows, samples] = part.to(total)  # a cast inside the model
            total = total + part
        self.energy[rows, samples] = total
        for name, (index, _) in self._where.items():
            value = c[name] if index is None else c[name].reshape(c.batch, -1)[:, index]
            self.states[name][rows, samples] = value.to(total)

    def write_all(self, row: int, c: Cochain) -> None:
        """Record the whole batch at one time."""
        samples = torch.arange(self.problem.batch, device=self.energy.device)
        self.write(torch.full_like(samples, row), samples, c, self.problem)


def _choose(problem: Problem, record: Record) -> dict[str, tuple[Tensor | None, tuple[int, ...]]]:
    vertices = problem.sheaf.vertices
    if isinstance(record, str) and record == "energy":
        return {}
    if isinstance(record, str) and record == "states":
        return {n: (None, v.shape) for n, v in vertices.items()}
    if isinstance(record, str) or not isinstance(record, Sequence | Mapping):
        raise ValueError(
            f'record is {record!r}; write "energy", "states", a list of vertices, or a mapping '
            "from vertex to coordinates"
        )
    wanted: dict[str, Coordinates] = (
        dict(record) if isinstance(record, Mapping) else dict.fromkeys(record)
    )
    chosen: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {}
    for given, coordinates in wanted.items():
        name = problem.sheaf.vertex(given)
        if coordinates is None:
            chosen[name] = (None, vertices[name].shape)
        else:
            index = read_coordinates(f"record of {name!r}", coordinates, vertices[name].shape)
            chosen[name] = (index.to(problem.like.device), (index.numel(),))
    return chosen
