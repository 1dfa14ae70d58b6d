"""Discord: how much each edge of each sample disagrees, in the paper's normalisation."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchsheaf.arguments import whole_number
from torchsheaf.boundary import Problem, require_problem
from torchsheaf.cochain import Cochain, coordinates
from torchsheaf.harmonic import Extension
from torchsheaf.sheaf import Sheaf

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class DiscordEdge:
    """One row of the table: an edge (or a soft pin) and where it belongs.

    `layer` groups an operation with the parametrised edge that it follows, as the paper groups a
    weight edge with its activation; `module` is the module's own path.
    """

    name: str
    kind: str
    op: str
    module: str
    layer: str
    dim: int


@dataclass(frozen=True, eq=False, repr=False)
class Discord:
    """‖r_e‖² per edge and sample: no ½, no division by the edge's dimension, no edge weight.

    `values` is `(batch, edges)`, its columns in the order of `edges`. Averages are over samples.
    """

    edges: tuple[DiscordEdge, ...]
    values: Tensor

    def __repr__(self) -> str:
        worst = max(
            zip(self.mean.tolist(), (e.name for e in self.edges), strict=True), default=None
        )
        most = "" if worst is None else f"; most at {worst[1]!r}: {worst[0]:.4g}"
        return f"Discord({len(self.values)} samples, {len(self.edges)} edges{most})"

    @property
    def mean(self) -> Tensor:
        """d_e = mean over samples of ‖r_e‖², `(edges,)`."""
        return self.values.mean(0)

    @property
    def total(self) -> Tensor:
        """Σ_e ‖r_e‖² per sample, `(batch,)`: twice the energy where all weights are 1."""
        return self.values.sum(1)

    @property
    def share(self) -> Tensor:
        """d_e / Σ d_e, `(edges,)`; zero where nothing disagrees."""
        mean = self.mean
        total = mean.sum()
        return mean / total if float(total) > 0 else torch.zeros_like(mean)

    @property
    def per_coordinate(self) -> Tensor:
        """d_e / n_e, `(edges,)`: comparable between edges of different width."""
        return self.mean / torch.tensor([e.dim for e in self.edges]).to(self.mean)

    def column(self, edge: str) -> Tensor:
        """One edge's discord per sample, `(batch,)`."""
        for i, e in enumerate(self.edges):
            if e.name == edge:
                return self.values[:, i]
        raise KeyError(f"no edge named {edge!r}; this table has: {[e.name for e in self.edges]}")

    @cached_property
    def by_layer(self) -> dict[str, Tensor]:
        """Discord summed over the edges of each layer, `(batch,)` each."""
        return self._grouped(e.layer for e in self.edges)

    @cached_property
    def by_kind(self) -> dict[str, Tensor]:
        """Discord summed over affine, gate, join, smooth and pin edges, `(batch,)` each."""
        return self._grouped(e.kind for e in self.edges)

    def worst(self, count: int) -> Tensor:
        """Indices of the samples of largest total discord, largest first, `count` at most.

        Raises ValueError for a count below 0.
        """
        count = whole_number("count", count, least=0)
        return self.total.argsort(descending=True, stable=True)[:count]

    def to_pandas(self) -> "pandas.DataFrame":
        """One row per sample and edge: sample, edge, kind, op, module, layer, dim, discord, share.

        `share` is the row's part of its own sample's total.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_pandas needs pandas: pip install pandas") from error
        values = self.values.double().cpu()
        total = values.sum(1, keepdim=True)
        share = torch.where(total > 0, values / total, torch.zeros_like(values))
        batch = values.shape[0]
        columns: dict[str, Any] = {
            "sample": torch.arange(batch).repeat_interleave(len(self.edges)).numpy()
        }
        columns["edge"] = [e.name for e in self.edges] * batch
        for attribute in ("kind", "op", "module", "layer", "dim"):
            columns[attribute] = [getattr(e, attribute) for e in self.edges] * batch
        columns["discord"] = values.flatten().numpy()
        columns["share"] = share.flatten().numpy()
        return pandas.DataFrame(columns)

    def _grouped(self, labels: Iterable[str]) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        for i, label in enumerate(labels):
            column = self.values[:, i]
            sums[label] = sums[label] + column if label in sums else column
        return sums


@torch.no_grad()
def discord(result: Extension | Problem, at: Cochain | None = None) -> Discord:
    """Disagreement ‖r_e‖² of every edge, per sample.

    `result` is an extension, or a problem together with a cochain `at` to read it off. Soft pins
    have a row of their own, kind "pin", with ‖c − p‖² over the coordinates that they pull in that
    sample. At the forward pass every inner edge is 0.

    Raises TypeError for anything else, ValueError for weights that are not finite.
    Cost: nothing for an extension, else one forward pass.
    Source: Bosca & Ghrist 2026, section 6.3 (normalisation of Table 3).

    >>> import torch
    >>> from torchsheaf.boundary import Pin, hold
    >>> from torchsheaf.harmonic import harmonic_extension
    >>> from torchsheaf.sheaf import encode
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    >>> x = torch.randn(16, 2, dtype=torch.float64)
    >>> held = hold(encode(net.double(), x), x).pin(Pin("2", x[:, :1]))
    >>> extension = harmonic_extension(held)
    >>> bool(torch.allclose(discord(extension).total, 2 * extension.energy))
    True
    """
    if not isinstance(result, Extension | Problem):
        raise TypeError(
            f"discord takes an Extension, or a Problem and a cochain; got {type(result).__name__}"
        )
    problem = result.problem if isinstance(result, Extension) else result
    if at is not None:
        require_problem(problem)
        problem.require_values("at", at)
        residual = problem.residual(at)
    elif isinstance(result, Extension):
        residual = result.residual
    else:
        raise TypeError("discord of a problem needs the cochain to read: discord(problem, cochain)")
    edges = discord_edges(problem)
    squares = {e.name: coordinates(residual[e.name]).square() for e in edges}
    for name, pin in problem.taps.items():
        if isinstance(pin.weight, Tensor):  # 0 is no pull
            squares[name] = torch.where(pin.weight > 0, squares[name], 0)
    return Discord(edges, torch.stack([square.sum(1) for square in squares.values()], 1))


def discord_edges(problem: Problem) -> tuple[DiscordEdge, ...]:
    """The rows of the table for a problem: its edges, then its soft pins."""
    sheaf = problem.sheaf
    layers = layers_of(sheaf)
    rows = [
        DiscordEdge(e.name, str(e.kind), e.operation, e.module, layers[e.name], e.dim)
        for e in sheaf.edges.values()
    ]
    for name, pin in problem.taps.items():
        module = sheaf.vertices[pin.vertex].module
        layer = layers.get(pin.vertex, pin.vertex)
        rows.append(DiscordEdge(name, "pin", "pin", module, layer, pin.index.numel()))
    return tuple(rows)


def layers_of(sheaf: Sheaf) -> dict[str, str]:
    """Per edge, its layer: itself if it has parameters, else the layer of its latest parent."""
    order = {name: i for i, name in enumerate(sheaf.vertices)}
    layer = {name: name for name in sheaf.inputs}
    for edge in sheaf.edges.values():
        latest = max(edge.parents, key=order.__getitem__)
        layer[edge.name] = edge.name if edge.parameters else layer[latest]
    return {name: layer[name] for name in sheaf.edges}
