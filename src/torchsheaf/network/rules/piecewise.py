"""Gates: continuous piecewise linear operations with a pattern that can be frozen."""

import math
from typing import Any

import torch.nn.functional as F

from torchsheaf.network.gates import (
    ExtremeGate,
    Gate,
    GateFactory,
    ScalarGate,
    SlopeGate,
    WindowGate,
)
from torchsheaf.network.operation import Operation
from torchsheaf.network.rules.rule import Kind, Rule, argument, training_flag


def _scalar(breakpoints: tuple[float, ...], slopes: tuple[float, ...]) -> GateFactory:
    gate = ScalarGate(breakpoints, slopes)
    return lambda args, kwargs: gate


def _leaky(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Gate:
    slope = float(argument(args, kwargs, 1, "negative_slope", 0.01))
    return ScalarGate((0.0,), (slope, 1.0))


def _hardtanh(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Gate:
    low = argument(args, kwargs, 1, "min_val", -1.0)
    return _between(low, argument(args, kwargs, 2, "max_val", 1.0))


def _clamp(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Gate:
    return _between(argument(args, kwargs, 1, "min"), argument(args, kwargs, 2, "max"))


def _between(low: float | None, high: float | None) -> Gate:
    """1 between two bounds and 0 outside; an infinite bound is none, crossed ones leave `high`."""
    below, above = (-math.inf if low is None else low), (math.inf if high is None else high)
    if below >= above:
        return ScalarGate((float(above),), (0.0, 0.0))
    points = tuple(float(t) for t in (below, above) if math.isfinite(t))
    slopes = (0.0,) * math.isfinite(below) + (1.0,) + (0.0,) * math.isfinite(above)
    return ScalarGate(points, slopes)


def _threshold(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Gate:
    return ScalarGate((float(args[1]),), (0.0, 1.0))


def jump(operation: Operation) -> float | None:
    """Where the map of a gate jumps; None where it is continuous, as gates should be."""
    if str(operation.target) != "aten.threshold.default":
        return None
    _, at, below = operation.args
    return None if float(at) == float(below) else float(at)


def _softshrink(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Gate:
    width = float(args[1]) if len(args) > 1 else 0.5
    return ScalarGate((-width, width), (1.0, 0.0, 1.0))


def _prelu(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Gate:
    z, weight = args[0], args[1]
    shape = (1, -1, *([1] * (z.ndim - 2))) if weight.numel() > 1 else (1,) * z.ndim
    return SlopeGate(weight.reshape(shape))


def _max_pool(spatial: int) -> GateFactory:
    pool = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[spatial]

    def build(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Gate:
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        options = dict(zip(names, args[1:], strict=False)) | kwargs
        if options.get("stride") == []:
            options["stride"] = None
        return WindowGate(lambda z: pool(z, return_indices=True, **options), spatial)

    return build


def _adaptive_max_pool(spatial: int) -> GateFactory:
    pool: Any = {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}

    def build(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Gate:
        return WindowGate(lambda z: pool[spatial](z, args[1], return_indices=True), spatial)

    return build


def _rrelu(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Gate:
    low, high = (*args[1:3], 1 / 8, 1 / 3)[:2] if len(args) != 2 else (args[1], 1 / 3)
    return ScalarGate((0.0,), ((float(low) + float(high)) / 2, 1.0))


def _extreme(largest: bool) -> GateFactory:
    def build(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Gate:
        dims = argument(args, kwargs, 1, "dim", ())
        keep = argument(args, kwargs, 2, "keepdim", False)
        dims = (dims,) if isinstance(dims, int) else tuple(dims)
        return ExtremeGate(dims, bool(keep), largest)

    return build


def _one_axis(args: tuple[Any, ...], kwargs: Any) -> str | None:
    one = len(argument(args, kwargs, 1, "dim", ())) == 1
    return None if one else "an extreme over several axes has no rule; flatten them first"


def _gate(factory: GateFactory) -> Rule:
    return Rule(Kind.GATE, gate=factory)


PIECEWISE: dict[str, Rule] = {
    "aten.relu.default": _gate(_scalar((0.0,), (0.0, 1.0))),
    "aten.leaky_relu.default": _gate(_leaky),
    "aten.prelu.default": _gate(_prelu),
    "aten.hardtanh.default": _gate(_hardtanh),
    "aten.relu6.default": _gate(_scalar((0.0, 6.0), (0.0, 1.0, 0.0))),
    "aten.hardsigmoid.default": _gate(_scalar((-3.0, 3.0), (0.0, 1 / 6, 0.0))),
    "aten.clamp.default": _gate(_clamp),
    "aten.clamp_min.default": _gate(_clamp),
    "aten.clamp_max.default": _gate(
        lambda args, kwargs: _clamp((args[0], None, args[1]), kwargs)
    ),
    "aten.threshold.default": _gate(_threshold),
    "aten.softshrink.default": _gate(_softshrink),
    "aten.abs.default": _gate(_scalar((0.0,), (-1.0, 1.0))),
    "aten.max_pool1d.default": _gate(_max_pool(1)),
    "aten.max_pool2d.default": _gate(_max_pool(2)),
    "aten.max_pool3d.default": _gate(_max_pool(3)),
    "aten.max_pool1d_with_indices.default": _gate(_max_pool(1)),
    "aten.max_pool2d_with_indices.default": _gate(_max_pool(2)),
    "aten.max_pool3d_with_indices.default": _gate(_max_pool(3)),
    "aten.adaptive_max_pool1d.default": _gate(_adaptive_max_pool(1)),
    "aten.adaptive_max_pool2d.default": _gate(_adaptive_max_pool(2)),
    "aten.adaptive_max_pool3d.default": _gate(_adaptive_max_pool(3)),
    "aten.rrelu.default": Rule(
        Kind.GATE, gate=_rrelu, refuse=training_flag(3, "training", "randomised ReLU")
    ),
    "aten.amax.default": Rule(Kind.GATE, gate=_extreme(True), refuse=_one_axis),
    "aten.max.dim": _gate(_extreme(True)),
    "aten.min.dim": _gate(_extreme(False)),
    "aten.amin.default": Rule(Kind.GATE, gate=_extreme(False), refuse=_one_axis),
}  # fmt: skip
