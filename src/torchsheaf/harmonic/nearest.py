"""The nearest consistent state: which input, close to this one, would the network call y?"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchsheaf.boundary import Pin, hold
from torchsheaf.boundary.pin import Coordinates
from torchsheaf.cochain import Cochain, coordinates, per_sample
from torchsheaf.harmonic.extension import harmonic_extension
from torchsheaf.sheaf import Sheaf

WEIGHTS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)


@dataclass(frozen=True, repr=False)
class Nearest:
    """Inputs changed as little as the sheaf allows so that the output becomes `target`.

    `reference` and `changed` (batch, *input shape); `weight` (batch,) is the pull γ towards the
    reference at which the network's own forward pass of `changed` first gave the wanted class,
    `reached` whether it did at all; `price` (batch,) the energy then, residual edges included.
    """

    reference: Tensor
    changed: Tensor
    target: Tensor
    wanted: Tensor
    prediction: Tensor
    reached: Tensor
    weight: Tensor
    price: Tensor

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
    tol: float = 1e-6,
) -> Nearest:
    """Free the input (or the coordinates `where` of it), hold the output, pull gently back to x.

    Minimises E(c) + γ/2 ‖c_input − x‖² with the output held at the network's answer, its largest
    entry exchanged with that of class `wanted`. γ falls through `weights`, each equilibrium being
    the next one's start, until the forward pass of the changed input says `wanted`: at large γ
    the disagreement stays inside the network, at small γ all of it has moved into the input.

    This is a local minimum from the forward pass, not the closest adversarial example. Raises
    ValueError for several inputs, integer inputs and classes that there are not.

    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> from torchsheaf.sheaf import encode
    >>> x = torch.randn(5, 4, dtype=torch.float64)
    >>> found = nearest_consistent(encode(net.double(), x), x, 1)
    >>> bool((found.prediction[found.reached] == 1).all())
    True
    """
    if len(sheaf.inputs) != 1:
        raise ValueError(f"one input is needed; this network has {', '.join(sheaf.inputs)}")
    (source,) = sheaf.inputs
    output, batch = sheaf.outputs[0], x.shape[0]
    forward = sheaf.forward(x)
    dim = sheaf.vertices[source].dim
    free = torch.arange(dim) if where is None else Pin(source, 0.0, where).index(x.shape[1:])
    rest = torch.ones(dim, dtype=torch.bool)
    rest[free] = False
    held = hold(sheaf, x, where=rest.nonzero().flatten())
    classes = _classes(wanted, forward[output])
    target = _exchanged(forward[output], classes)
    changed, price = x.clone(), x.new_zeros(batch)
    reached = forward[output].argmax(1) == classes
    prediction, at = forward[output].argmax(1), x.new_full((batch,), torch.inf)
    state: Cochain = forward
    held = held.pin(Pin(output, target))
    for weight in weights:
        if bool(reached.all()):
            break
        pull = Pin(source, coordinates(x)[:, free.to(x.device)], free, weight)
        found = harmonic_extension(held.pin(pull), start=state, tol=tol, throw=False)
        state = found.cochain
        answer = sheaf.forward(state[source])[output].argmax(1)
        fresh = ~reached
        changed = torch.where(per_sample(fresh, x), state[source], changed)
        price, at = torch.where(fresh, found.energy, price), torch.where(fresh, weight, at)
        prediction = torch.where(fresh, answer, prediction)
        reached = reached | (answer == classes)
    return Nearest(x, changed, target, classes, prediction, reached, at, price)


def _classes(wanted: Tensor | int, logits: Tensor) -> Tensor:
    """One class per sample."""
    given = torch.as_tensor(wanted, device=logits.device)
    batch, classes = logits.shape
    if given.is_floating_point() or given.dtype == torch.bool:
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
