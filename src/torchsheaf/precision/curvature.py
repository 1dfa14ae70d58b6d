"""The second derivative of every operation at its own operands, measured by finite differences."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchsheaf.cochain import is_finite
from torchsheaf.draws import random_signs
from torchsheaf.network.aten import substitute
from torchsheaf.precision.dataflow import Dataflow
from torchsheaf.precision.execute import keywords, run_exact


def measure_curvature(
    flow: Dataflow, inputs: Sequence[Any], *, step: float = 1e-3, directions: int = 3
) -> dict[str, float]:
    """½ max |f(x+h) − 2f(x) + f(x−h)| / |h|²_∞ over a few random ±h, per choosing call.

    x are the operation's activations in the float64 run (weights held fixed), so a linear layer
    has curvature 0 and a saturated softmax less than a balanced one. A lower bound on the largest
    second directional derivative. Rounding errors are governed by first derivatives; this number
    only says how far the first-order estimate can be trusted.
    """
    generator = torch.Generator().manual_seed(0)
    values = run_exact(flow, inputs, keep=True).values
    found = {}
    for name in flow.choices:
        c = flow.calls[name]
        moving = [
            n
            for n in c.operands
            if n in flow.source and not flow.is_constant(n) and is_finite(values[n])
        ]
        best = 0.0
        if flow.kinds[name] == "rounding" and moving:
            for _ in range(directions):
                shift = {n: step * random_signs(values[n], generator) for n in moving}
                best = max(best, _second(c, values, shift) / step**2)
        found[name] = best / 2
    return found


def _second(c: Any, values: Any, shift: dict[str, Tensor]) -> float:
    runs = []
    for side in (1.0, 0.0, -1.0):

        def value(n: str, side: float = side) -> Any:
            return values[n] + side * shift[n] if n in shift else values[n]

        out = c.call(*substitute(c.args, value), **keywords(c, value, torch.float64))
        runs.append(out[0] if isinstance(out, tuple | list) else out)
    plus, middle, minus = runs
    second = torch.nan_to_num((plus - 2 * middle + minus).abs())
    # Differences below the rounding of float64 sums are no curvature: a linear layer has none.
    noise = 64 * 2.0**-52 * torch.nan_to_num(middle.abs()).amax() if middle.numel() else 0.0
    second = torch.where(second > noise, second, torch.zeros_like(second))
    return float(second.max()) if second.numel() else 0.0
