"""What if these coordinates had these values? The effect of pins upstream and downstream."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from torchsheaf.boundary import Pin, Problem, hold
from torchsheaf.cochain import Cochain, coordinates
from torchsheaf.harmonic.extension import Extension, harmonic_extension
from torchsheaf.sheaf import Sheaf


@dataclass(frozen=True, eq=False)
class Change:
    """How far one vertex moved from the forward pass, per sample `(batch,)`.

    `side` is "upstream", "pinned", "downstream", or "beside" for a vertex that is neither above
    nor below a pinned one. `pinned` is the norm in the equilibrium with the pins, `patched` with
    ordinary activation patching.
    """

    vertex: str
    side: str
    pinned: Tensor
    patched: Tensor


@dataclass(frozen=True, eq=False)
class Counterfactual:
    """The forward pass, the same with activations patched, and the equilibrium with them pinned.

    Patching (a forward hook that overwrites the activation) changes what comes after it and
    nothing else. A pin lets everything else settle around it: `extension.energy` is its price,
    and the upstream values say what the earlier layers would have had to be.
    """

    forward: Cochain
    patched: Cochain
    extension: Extension
    pins: tuple[Pin, ...]

    @property
    def pinned(self) -> Cochain:
        """The equilibrium."""
        return self.extension.cochain

    @property
    def price(self) -> Tensor:
        """Energy of the equilibrium reached, `(batch,)`: what it costs to have the pins, by a local
        minimum (an upper bound where it was not reached). Soft pins count with their own term.
        """
        return self.extension.energy

    @cached_property
    def sides(self) -> dict[str, str]:
        """Where each vertex lies with respect to the pinned ones."""
        import networkx as nx

        sheaf = self.extension.problem.sheaf
        graph = sheaf.graph()
        held = {sheaf.vertex(p.vertex) for p in self.pins}
        above = set().union(*(nx.ancestors(graph, v) for v in held))
        below = set().union(*(nx.descendants(graph, v) for v in held))

        def side(name: str) -> str:
            if name in held:
                return "pinned"
            if name in below:
                return "downstream"
            return "upstream" if name in above else "beside"

        return {name: side(name) for name in sheaf.vertices}

    @cached_property
    def changes(self) -> tuple[Change, ...]:
        """Every vertex's change, in topological order."""
        return tuple(
            Change(name, side, self._moved(self.pinned, name), self._moved(self.patched, name))
            for name, side in self.sides.items()
        )

    @property
    def effect(self) -> tuple[Tensor, Tensor]:
        """Change of the output: (pinned, patched), each `(batch, *shape)`.

        ValueError where there are several outputs: take `pinned[name] - forward[name]` of one.
        """
        name = self.extension.problem.sheaf.only_output(".pinned")
        return self.pinned[name] - self.forward[name], self.patched[name] - self.forward[name]

    def _moved(self, c: Cochain, name: str) -> Tensor:
        moved = coordinates(c[name] - self.forward[name])
        return moved.to(self.price.dtype).norm(dim=1)  # token numbers are integers


def counterfactual(
    sheaf: Sheaf,
    x: Tensor | Sequence[Tensor] | Mapping[str, Tensor],
    pins: Pin | Sequence[Pin],
    *,
    tol: float | None = None,
    starts: int = 1,
    max_passes: int = 20_000,
    throw: bool = True,
) -> Counterfactual:
    """Hold the input at x, pin, let the rest settle; beside it plain activation patching.

    Where a hard pin holds a whole vertex through which everything later passes, and the output is
    free, both have the same downstream effect: the values after it are computed from it alone.
    When only some coordinates of a deep vertex are held, its other coordinates follow the earlier
    layers as they give way, so that the downstream effects differ; patching leaves them where
    they were. Soft pins patch their target as if they were hard.

    `tol`, `starts`, `max_passes` and `throw` are those of `harmonic_extension`. Raises ValueError
    for pins that conflict or name no vertex; `ConvergenceError` unless `throw=False`. Cost: two
    forward passes beside those of `harmonic_extension`.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    >>> from torchsheaf.sheaf import encode
    >>> x = torch.randn(4, 2)
    >>> found = counterfactual(encode(net, x), x, Pin("1", 0.5))
    >>> pinned, patched = found.effect
    >>> bool(torch.allclose(pinned, patched, atol=1e-4))
    True
    """
    listed = [pins] if isinstance(pins, Pin) else pins
    if not isinstance(listed, Sequence) or not all(isinstance(p, Pin) for p in listed):
        raise TypeError(f"pins is {pins!r}; write a Pin(…) or a list of them")
    given = tuple(listed)
    if not given:
        raise ValueError("`pins` is empty; write at least one Pin")
    problem = hold(sheaf, x)
    forward = problem.start("forward")
    pinned = problem.pin(*given)
    extension = harmonic_extension(
        pinned, tol=tol, starts=starts, max_passes=max_passes, throw=throw
    )
    return Counterfactual(forward, _patched(problem, given), extension, given)


def _patched(problem: Problem, pins: Sequence[Pin]) -> Cochain:
    """The forward pass with every pin's values written over; the last word wins, as of hooks."""
    sheaf = problem.sheaf

    def overwrite(name: str, value: Tensor) -> Tensor:
        for pin in pins:
            if sheaf.vertex(pin.vertex) == name:
                value = pin.written_over(value, problem.like)
        return value

    return sheaf.substitute({n: problem.values[n] for n in sheaf.inputs}, overwrite)
