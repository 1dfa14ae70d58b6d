"""A monitor for training loops, backpropagation included, in two lines."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from torchsheaf.arguments import INPUTS, kind, whole_number
from torchsheaf.boundary import Problem, hold
from torchsheaf.diagnose.classes import require_labels
from torchsheaf.diagnose.evolution import Evolution
from torchsheaf.diagnose.findings import Finding
from torchsheaf.diagnose.nudge import nudged_discord
from torchsheaf.diagnose.pathology import pathologies
from torchsheaf.diagnose.spectra import Spectra, spectra
from torchsheaf.network.placement import placement
from torchsheaf.sheaf import Sheaf, encode
from torchsheaf.train.batches import generators, inputs, placed
from torchsheaf.train.fit import Progressed

Data = Iterable[Any] | tuple[Tensor | tuple[Tensor, ...], Tensor | None]


class Watch:
    """Looks at a model on fixed samples; call it once per epoch, or pass it to `fit`.

    `evolution` holds everything seen so far. The sheaf reads the model's parameters live, so a look
    needs no new tracing and never touches gradients, optimiser or random state. Batch-norm and
    dropout are read as in evaluation, whatever mode the loop is in.
    """

    def __init__(
        self, sheaf: Sheaf, x: tuple[Tensor, ...], y: Tensor | None, *, every: int,
        spectral: int, writer: Any, output: str | None = None,
    ) -> None:  # fmt: skip
        self.sheaf, self.x, self.y = sheaf, x, y
        self.every, self.spectral, self.writer = every, spectral, writer
        self.output = sheaf.output(output)
        self.evolution = Evolution()
        self._calls = 0

    def __call__(self, progressed: Progressed | None = None) -> tuple[Finding, ...]:
        """Take a look if it is time; returns what is wrong.

        In a loop of one's own call it without an argument; as a callback of `fit` it gets the
        epoch from there.
        """
        number = self._calls if progressed is None else progressed.epoch
        if number % self.every == 0:
            self.look(number)
        self._calls += 1
        return self.evolution.failing

    @torch.no_grad()
    def look(self, step: int) -> None:
        """Take a look now and file it under `step`."""
        problem = hold(self.sheaf, self.x)
        table = nudged_discord(problem, self.y, output=self.output)
        findings = pathologies(problem, self.y, output=self.output)
        found = self._spectra(problem) if self.spectral else None
        # Everything is computed by now: a look that fails leaves no half of it behind.
        seen = self.evolution
        seen.edges = table.edges
        seen.steps.append(step)
        seen.tables.append(table.values.double().cpu())
        seen.findings.append(findings)
        if found is not None:
            quartiles = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
            seen.gaps.append(found.gap.double().cpu().quantile(quartiles))
            seen.tops.append(found.top.double().cpu().quantile(quartiles))
            seen.fiedler.append({n: float(v.mean()) for n, v in found.fiedler_energy.items()})
        if self.writer is not None:
            seen.log_to(self.writer)

    def _spectra(self, problem: Problem) -> Spectra:
        fixed = self.sheaf.network.fixed_batch is not None
        few = torch.arange(min(self.spectral, problem.batch))
        return spectra(problem if fixed else problem.samples(few), tol=1e-4, throw=False)


def watch(
    model: nn.Module,
    loader: Data,
    *,
    samples: int = 128,
    every: int = 1,
    spectral: int = 16,
    writer: Any = None,
    output: str | None = None,
) -> Watch:
    """Watch a model while any loop trains it.

        monitor = ts.watch(model, loader)     # before the loop
        monitor()                             # at the end of every epoch

    `loader` is a DataLoader of `(x, y)` batches or (x, y) itself, x a tuple where the model has
    several inputs, y None where there are no labels; they are moved to the model's device. The
    first `samples` of it are looked at every `every` epochs, and the spectrum of the first
    `spectral` of those (0: none). `writer` is
    anything with `add_scalar(tag, value, step)`, TensorBoard's `SummaryWriter` for one. `output`
    names the one that y belongs to, where the model has several. As a callback:
    `ts.fit(…, callbacks=[ts.watch(model, data)])`.

    Raises TypeError or ValueError for data that are no such pairs, an empty loader and numbers that
    do not fit, and what `encode` raises. A look raises ValueError naming
    the weight that has become NaN or infinite; the record then stays as it was.
    Cost per look: about four passes over `samples`, and 100 over `spectral`; reading the model once
    takes about a second.

    >>> net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> x, y = torch.randn(64, 2), torch.randint(0, 2, (64,))
    >>> step = torch.optim.SGD(net.parameters(), 0.1)
    >>> monitor = watch(net, (x, y))
    >>> for _ in range(3):
    ...     step.zero_grad()
    ...     nn.functional.cross_entropy(net(x), y).backward()
    ...     step.step()
    ...     broken = monitor()
    >>> monitor.evolution.discord.shape == (3, 64, 3)
    True
    """
    every, spectral = whole_number("every", every), whole_number("spectral", spectral, least=0)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; pass an nn.Module")
    if writer is not None and not hasattr(writer, "add_scalar"):
        raise TypeError(
            f"writer is a {type(writer).__name__}; it needs add_scalar(tag, value, step)"
        )
    own = generators(loader) if isinstance(loader, DataLoader) else []
    states = [g.get_state() for g in own]
    with torch.random.fork_rng(devices=[]):  # the loop draws what it would draw unwatched
        x, y = _first(loader, whole_number("samples", samples))
    for generator, state in zip(own, states, strict=True):
        generator.set_state(state)
    x = inputs(placed(x, placement(model.parameters())))
    training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        sheaf = encode(model, tuple(t[: max(2, len(t) // 8)] for t in x))
        if spectral and (dtype := sheaf.network.nodes[0].dtype).itemsize < 4:
            raise ValueError(f"the network is {dtype}; Lanczos needs float32: write spectral=0")
    finally:
        for module in training:  # not model.train(): some parts may be frozen on purpose
            module.training = True
    return Watch(sheaf, x, y, every=every, spectral=spectral, writer=writer, output=output)


def _first(data: Data, count: int) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """The first samples, as (inputs, labels)."""
    pair = isinstance(data, Sequence) and len(data) == 2 and (
        isinstance(data[0], Tensor) or isinstance(data[1], Tensor | None)
    )  # fmt: skip
    inputs: list[tuple[Tensor, ...]] = []
    labels: list[Tensor | None] = []
    left = count
    for batch in [data] if pair or not isinstance(data, Iterable) else data:
        x, y = _read(batch)
        inputs.append(tuple(t[:left].detach() for t in x))
        labels.append(None if y is None else y[:left].detach())
        left -= len(x[0])
        if left <= 0:
            break
    if not labels:
        raise ValueError("the loader is empty: it gave no batch")
    x = tuple(torch.cat(parts) for parts in zip(*inputs, strict=True))
    known = [y for y in labels if y is not None]
    return x, torch.cat(known) if known else None


def _read(batch: Any) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """One batch as (inputs, labels)."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise TypeError(
            f"the data came as {kind(batch)}; write (x, y), x a tuple where the model has several "
            "inputs, or a DataLoader of such batches"
        )
    x, y = inputs(batch[0]), batch[1]
    for t in x:
        if t.ndim == 0:
            raise TypeError(f"input x is a tensor without axes; write {INPUTS}")
    if y is not None:
        require_labels("y", y, len(x[0]))
    return x, y
