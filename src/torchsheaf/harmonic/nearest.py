"""The nearest consistent state: which input, close to this one, would the network call y?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchsheaf.arguments import positive_number
from torchsheaf.boundary import Pin, hold
from torchsheaf.boundary.pin import Coordinates, read_coordinates
from torchsheaf.cochain import coordinates
from torchsheaf.harmonic.extension import harmonic_extension
from torchsheaf.outcome import Outcome
from torchsheaf.sheaf import Sheaf, require_sheaf

WEIGHTS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)


@dataclass(frozen=True, eq=False, repr=False)
class Nearest:
    """Inputs changed as little as the sheaf allows so that the output becomes `target`.

    `reference` and `changed` (batch, *input shape); `weight` (batch,) is the pull γ towards the
    reference at which the network's own forward pass of `changed` first gave the wanted class,
    `reached` whether it did at all; `price` (batch,) the energy then, residual edges included.
    `outcome` is how the worst of the relaxations ended; a sample that became NaN or infinite in one
    stays where it was before.
    """

    reference: Tensor
    changed: Tensor
    target: Tensor
    wanted: Tensor
    prediction: Tensor
    reached: Tensor
    weight: Tensor
    price: Tensor
    outcome: Outcome

    def __repr__(self) -> str:
        return (
            f"Nearest({len(self.reached)} samples; {int(self.reached.sum())} reached the wanted "
            f"class, {float(self.distance.mean()):.4g} away on average)"
        )

    @property
    def distance(self) -> Tensor:
        """‖changed − reference‖ per sample, `(batch,)`."""
        return coordinates(self.changed - self.reference).norm(dim=1)


def nearest_consistent(
    sheaf: Sheaf,
    x: Tensor,
    wanted: Tensor | int,
    *,
    where: Coordinates = None,
    weights: Sequence[float] = WEIGHTS,
    tol: float | None = None,
    output: str | None = None,
) -> Nearest:
    """Free the input (or the coordinates `where` of it), hold the output, pull gently back to x.

    Minimises E(c) + γ/2 ‖c_input − x‖² with the output held at the network's answer, its largest
    entry exchanged with that of class `wanted`. γ falls through `weights`, each equilibrium being
    the next one's start, until the forward pass of the changed input says `wanted`: at large γ
    the disagreement stays inside the network, at small γ all of it has moved into the input.
    `output` names the one that is held, where the model has several; `tol` is that of
    `harmonic_extension`.

    This is a local minimum from the forward pass, not the closest adversarial example. Raises
    TypeError or ValueError naming what does not fit: several inputs, integer inputs, an output
    that is not (batch, classes), classes that there are not. Relaxations that do not arrive are no
    error: see `outcome`. Cost: `harmonic_extension` once per weight, warm.

    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> from torchsheaf.sheaf import encode
    >>> x = torch.randn(5, 4, dtype=torch.float64)
    >>> found = nearest_consistent(encode(net.double(), x), x, 1)
    >>> bool((found.prediction[found.reached] == 1).all())
    True
    """
    require_sheaf(sheaf)
    if len(sheaf.inputs) != 1:
        raise ValueError(f"one input is needed; this network has {', '.join(sheaf.inputs)}")
    (source,), output, pulls = sheaf.inputs, sheaf.output(output), _pulls(weights)
    x = sheaf.read_inputs(x)[source]
    batch, vertex = x.shape[0], sheaf.vertices[source]
    free = read_coordinates(f"nearest to {source!r}", where, vertex.shape)
    rest = torch.ones(vertex.dim, dtype=torch.bool)
    rest[free] = False
    held = hold(sheaf, x, where=rest)
    sheaf = held.sheaf
    forward = sheaf.forward(x)
    classes = _classes(wanted, forward[output])
    target = _exchanged(forward[output], classes)
    changed, price = x.clone(), x.new_zeros(batch)
    reached = forward[output].argmax(1) == classes
    prediction, at = forward[output].argmax(1), x.new_full((batch,), torch.inf)
    state, outcome = forward, Outcome.SETTLED
    held = held.pin(Pin(output, target))
    left = torch.arange(batch, device=x.device)
    for weight in pulls:
        if sheaf.network.fixed_batch is None:  # samples that have arrived are not solved again
            left, state = left[~reached[left]], state.samples(~reached[left])
        if bool(reached.all()):
            break
        pull = Pin(source, coordinates(x)[:, free.to(x.device)], free, weight)
        problem = held.pin(pull).samples(left)
        found = harmonic_extension(problem, start=state, tol=tol, throw=False)
        outcome = max(outcome, found.outcome, key=_BETTER_FIRST.index)
        finite = found.energy.isfinite()
        state = found.cochain.where(finite, state)
        answer = sheaf.forward(state[source])[output].argmax(1)
        new = finite & ~reached[left]
        fresh = left[new]
        changed[fresh], prediction[fresh] = state[source][new], answer[new]
        price[fresh], at[fresh] = found.energy[new], weight
        reached[left] |= answer == classes[left]
    return Nearest(x, changed, target, classes, prediction, reached, at, price, outcome)


_BETTER_FIRST = (Outcome.SETTLED, Outcome.STALLED, Outcome.STEP_LIMIT, Outcome.NONFINITE)


def _pulls(weights: Any) -> list[float]:
    """The weights γ of the pull towards the reference, in order."""
    try:
        given = () if isinstance(weights, str) else tuple(weights)
    except TypeError:
        given = ()
    if not given:
        raise TypeError(f"weights is {weights!r}; write numbers such as (1.0, 0.1, 0.01)")
    return [positive_number(f"weights[{i}]", w) for i, w in enumerate(given)]


def _classes(wanted: Tensor | int, logits: Tensor) -> Tensor:
    """One class per sample."""
    if logits.ndim != 2:
        raise ValueError(f"classes need an output (batch, classes); it is {tuple(logits.shape)}")
    try:
        given = torch.as_tensor(wanted, device=logits.device)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"wanted is {wanted!r}; write whole numbers") from None
    batch, classes = logits.shape
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise ValueError(f"wanted is of type {given.dtype}; write whole numbers")
    if given.ndim and tuple(given.shape) != (batch,):
        raise ValueError(f"wanted has shape {tuple(given.shape)}; write one number or ({batch},)")
    if int(given.min()) < 0 or int(given.max()) >= classes:
        raise ValueError(f"wanted is {given.tolist()}; the classes are 0 … {classes - 1}")
    return given.expand(batch)


def _exchanged(logits: Tensor, wanted: Tensor) -> Tensor:
    top, index = logits.max(1)
    asked = logits.gather(1, wanted[:, None])[:, 0]
    out = logits.scatter(1, index[:, None], asked[:, None])
    return out.scatter(1, wanted[:, None], top[:, None])
