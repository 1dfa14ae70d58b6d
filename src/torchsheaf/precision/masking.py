"""Infinities and masked scores: where a rounding, or an overflow to −∞, changes nothing.

Rounding ±∞ is exact in every format that has it, and −∞ + s = −∞ for finite s. A score s_i with
e^(s_i − max s) = 0 in float64 is at least 745 below the largest, so its softmax weight is below
2^−1074; at −∞ it is 0. A negative score that only softmaxes read, all of which give it weight 0,
may therefore overflow to −∞. An infinity that arises from finite operands is no such thing.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torchsheaf.network.aten import AtenCall, substitute
from torchsheaf.precision.dataflow import Dataflow
from torchsheaf.precision.execute import keywords

ALL_READERS = ""
"""Stands for every reader of a value together."""

# Each number of the result is a number of one operand, or a sum of numbers of the operands.
_PASSES_ON = set(
    """view permute transpose t reshape _unsafe_view expand slice select squeeze unsqueeze clone
    alias detach contiguous _to_copy where masked_fill cat slice_scatter select_scatter
    constant_pad_nd index gather add""".split()
)


def masked_scores(flow: Dataflow, values: Mapping[str, Any]) -> dict[tuple[str, str], Tensor]:
    """(value, reader) → True where the number is a score that may become −∞ without consequence.

    values: those of a float64 run, all kept. reader: a call, or `ALL_READERS`. A score is masked
    where it is negative and every number that depends on it has softmax weight 0 or is passed over
    by a `where`. Pairs without such a score are absent. Cost: one reverse pass over the calls
    between a mask and its softmax; nothing where no softmax has a weight 0.
    """
    weightless = [
        c.name for c in flow.graph.calls if c.packet == "_softmax" and (values[c.name] == 0).any()
    ]
    if not weightless:
        return {}
    used = set(flow.graph.outputs)
    asking = _row_tests(flow, weightless)
    live: dict[str, Tensor] = {}
    found: dict[tuple[str, str], Tensor] = {}
    for c in reversed(flow.graph.calls):
        reach: dict[str, Tensor] = {}
        if c.name in weightless:
            reach = {c.operands[0]: values[c.name] != 0}
        elif c.name in asking:
            continue
        elif c.name in live and c.name not in used and _passes_on(c):
            reach = _reach(flow, c, values, live[c.name])
        for n in c.operands:
            if n not in reach:
                used.add(n)
                continue
            live[n] = live[n] | reach[n] if n in live else reach[n]
            found[n, c.name] = ~reach[n] & (values[n] < 0)
    for n, alive in live.items():
        if n not in used:
            found[n, ALL_READERS] = ~alive & (values[n] < 0)
    return {key: masked for key, masked in found.items() if masked.any()}


def _row_tests(flow: Dataflow, softmaxes: Sequence[str]) -> set[str]:
    """Calls `s == −∞` that only ask whether a row of the softmax has any other score.

    A row has a score of positive weight, so the answer is yes whatever becomes of its masked ones.
    """
    calls, readers = flow.calls, flow.graph.consumers()
    rows = {(calls[s].operands[0], _axis(calls[s].args[1], calls[s].shape)) for s in softmaxes}
    found = set()
    for c in flow.graph.calls:
        if c.target == "aten.eq.Scalar" and c.args[1] == -math.inf:
            negations = [calls[n] for n in readers.get(c.name, [])]
            asked = [calls[n] for r in negations for n in readers.get(r.name, [])]
            if (
                all(r.packet == "logical_not" for r in negations)
                and not {r.name for r in negations} & set(flow.graph.outputs)
                and all(
                    r.target == "aten.any.dim"
                    and (c.operands[0], _axis(r.args[1], c.shape)) in rows
                    for r in asked
                )
            ):
                found.add(c.name)
    return found - set(flow.graph.outputs)


def _axis(dim: int, shape: tuple[int, ...] | None) -> int:
    return dim % len(shape or (1,))


def _passes_on(c: AtenCall) -> bool:
    # A negative factor of the second term would turn −∞ into +∞.
    return c.packet in _PASSES_ON and "alpha" not in c.kwargs


def _reach(
    flow: Dataflow, c: AtenCall, values: Mapping[str, Any], live: Tensor
) -> dict[str, Tensor]:
    """For each floating operand, True where a live number of the result depends on it."""
    names = [n for n in c.operands if n in flow.source and isinstance(values[n], Tensor)]
    leaves = {n: torch.zeros_like(values[n]).requires_grad_() for n in names}

    def value(n: str) -> Any:
        return leaves[n] if n in leaves else values[n]

    with torch.enable_grad():
        out = c.call(*substitute(c.args, value), **keywords(c, value, torch.float64))
    grads = torch.autograd.grad(out, list(leaves.values()), live.to(out.dtype), allow_unused=True)
    return {
        n: torch.zeros_like(values[n], dtype=torch.bool) if g is None else g > 0
        for n, g in zip(names, grads, strict=True)
    }


def new_infinities(
    c: AtenCall, value: Callable[[str], Any], result: Tensor, dtype: torch.dtype | None
) -> Tensor | None:
    """True where the result is infinite though no infinite operand made it so; None for nowhere.

    These are overflows and poles: the call gives an infinity there with 0 for infinite operands
    too. Cost: one more call where the result holds an infinity.
    """
    infinite = torch.isinf(result)
    if not infinite.any():
        return None

    def finite(n: str) -> Any:
        x = value(n)
        floating = isinstance(x, Tensor) and x.is_floating_point()
        return x.masked_fill(torch.isinf(x), 0.0) if floating else x

    with torch.no_grad():
        again = c.call(*substitute(c.args, finite), **keywords(c, finite, dtype))
    first = again[0] if isinstance(again, tuple | list) else again
    born = infinite & torch.isinf(first)
    return born if born.any() else None
