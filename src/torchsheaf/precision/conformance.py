"""Do this machine's kernels obey the error models? Every 16-bit input of a unary kernel is tried.

Unary kernels: all 65,536 inputs in fp16 and bf16, all 256 in the 8-bit formats (emulated), and a
directed sample in fp32 and tf32 that visits every exponent. The rest (products, sums, norms,
softmax, arithmetic of two operands) is sampled over sizes and magnitudes, cancellation included.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from torchsheaf.draws import random_integers, source_device, standard_normal
from torchsheaf.network.aten import AtenCall, Ref
from torchsheaf.precision.arguments import refuse_device
from torchsheaf.precision.bound_rules import rule_of
from torchsheaf.precision.formats import Format, find_format
from torchsheaf.precision.operators import CONTRACTION, MODELS, KernelModel, model_of, terms_of

aten = torch.ops.aten


@dataclass(frozen=True)
class KernelCheck:
    """One kernel in one format: the worst ratio of its error to what the model allows.

    inputs: how many were tried; exhaustive: whether that is all there are. witness: the input
    (operands, result, exact) of the worst ratio.
    """

    operator: str
    format: str
    inputs: int
    exhaustive: bool
    worst: float
    witness: str
    emulated: bool

    @property
    def passed(self) -> bool:
        """Whether the model held everywhere."""
        return self.worst <= 1.0


@dataclass(frozen=True)
class Conformance:
    """All checks on one device; `failures` is what a plan here must not rely on."""

    device: str
    checks: tuple[KernelCheck, ...]
    missing: tuple[str, ...]

    @property
    def failures(self) -> tuple[KernelCheck, ...]:
        """Checks that failed."""
        return tuple(c for c in self.checks if not c.passed)


UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": torch.exp,
    "exp2": torch.exp2,
    "expm1": torch.expm1,
    "log": torch.log,
    "log2": torch.log2,
    "log10": torch.log10,
    "log1p": torch.log1p,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "reciprocal": torch.reciprocal,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "sin": torch.sin,
    "cos": torch.cos,
    "erf": torch.erf,
    "atan": torch.atan,
    "gelu": torch.nn.functional.gelu,
    "silu": torch.nn.functional.silu,
    "mish": torch.nn.functional.mish,
    "softplus": torch.nn.functional.softplus,
    "elu": torch.nn.functional.elu,
    "hardswish": torch.nn.functional.hardswish,
    "hardsigmoid": torch.nn.functional.hardsigmoid,
    "leaky_relu": torch.nn.functional.leaky_relu,
    "hardtanh": lambda x: torch.nn.functional.hardtanh(x, -3.0, 3.0),
    "square": torch.square,
    "pow": lambda x: torch.pow(x, 3),
}
# Exact kernels: their result must be the very number.
EXACT: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "neg": torch.neg,
    "abs": torch.abs,
}


def all_numbers(form: Format, device: str) -> Tensor:
    """Every number of a format of at most 16 bits, in its carrier dtype."""
    bits = 8 * form.bytes
    dtype = torch.int16 if bits == 16 else torch.uint8
    low = -(2**15) if bits == 16 else 0
    pattern = torch.arange(low, low + 2**bits, device=device).to(dtype)
    return pattern.view(form.storage).to(form.carrier)


def sampled_numbers(form: Format, device: str, generator: torch.Generator) -> Tensor:
    """Numbers of every exponent and sign, dense around 1, with the special values."""
    exponents = torch.arange(-126.0, 128.0).repeat_interleave(64)
    place = source_device(generator)
    mantissa = 1 + torch.rand(len(exponents), generator=generator, device=place).cpu()
    wide = mantissa * torch.exp2(exponents)
    near = torch.linspace(-20, 20, 40001)
    special = torch.tensor([0.0, 1.0, math.inf, 88.7, 104.0, 16.6, 9.97, 5.56])
    x = torch.cat([wide, near, special, -special, -wide])
    return form.round(x.to(form.carrier)).to(device)


def ratio(
    actual: Tensor, exact: Tensor, allowed: Tensor, form: Format, gain: float = 1.0
) -> Tensor:
    """|actual − exact| / allowed; overflow to infinity and NaN for NaN count as right."""
    actual = actual.double()
    error = (actual - exact).abs()
    result = error / allowed
    over = min(form.result.overflow, form.result.largest) * (1 - 2.0**-9) / gain
    same = (actual == exact) | (torch.isnan(actual) & torch.isnan(exact))
    same |= torch.isinf(actual) & (exact.abs() >= over) & (actual.sign() == exact.sign())
    same |= (exact.abs() >= over) & ~torch.tensor(form.has_infinity) & torch.isnan(actual)
    return torch.where(same, 0.0, torch.nan_to_num(result, nan=math.inf))


def check_unary(
    name: str, function: Callable[[Tensor], Tensor], form: Format, device: str,
    generator: torch.Generator,
) -> KernelCheck:  # fmt: skip
    """One elementwise kernel: all inputs where the format has at most 16 bits.

    Models are of finite operands, which the ranges of a plan see to; what a kernel makes of an
    infinite one is its own matter (PyTorch 2.13's gelu is NaN there on processors with AVX-512).
    """
    exhaustive = form.bytes <= 2
    if exhaustive:
        x = all_numbers(form, device)
    else:
        x = sampled_numbers(form, device, generator)
    if name in ("sin", "cos"):
        # Reduction of huge arguments is a matter of the library, not of the format.
        x = x[~(x.double().abs() > 1e5)]
    out = function(x)
    if form.is_emulated and form.rounds_result:
        out = form.round(out)
    exact = function(x.double())
    model = MODELS.get(name, KernelModel(narrow=0.0, wide=0.0))
    allowed = model.relative(form) * form.result.unit * exact.abs() + model.floor(form)
    found = ratio(out, exact, allowed, form, model.gain).masked_fill(x.isinf(), 0)
    worst = int(found.argmax())
    value, got, true = float(x[worst]), float(out[worst]), float(exact[worst])
    witness = f"{name}({value:.9g}) = {got:.9g}, exact {true:.9g}"
    size = float(found[worst])
    return KernelCheck(name, form.name, x.numel(), exhaustive, size, witness, form.is_emulated)


def _cases(generator: torch.Generator) -> Iterator[tuple[str, Callable[..., Any], list[Any]]]:
    """(operator, kernel, arguments) over sizes, magnitudes and cancellation."""

    def r(*shape: int) -> Tensor:
        return standard_normal(shape, generator, torch.float64)

    for k in (1, 7, 64, 500):
        a, b = r(5, k), r(k, 6)
        yield "mm", aten.mm.default, [a, b]
        yield "addmm", aten.addmm.default, [r(6), a, b]
        # Cancellation: the second half undoes the first, up to its rounding.
        yield "mm", aten.mm.default, [torch.cat([a, -a], 1), torch.cat([b, b], 0)]
        yield "bmm", aten.bmm.default, [r(3, 4, k), r(3, k, 2)]
        yield "sum", aten.sum.dim_IntList, [r(8, k), [1]]
        yield "mean", aten.mean.dim, [r(8, k) * 30, [1]]
    for scale in (1e-3, 1.0, 20.0):
        x, y = r(4000) * scale, r(4000)
        for name, kernel in (("add", aten.add.Tensor), ("sub", aten.sub.Tensor)):
            yield name, kernel, [x, y]
        yield "mul", aten.mul.Tensor, [x, y]
        yield "div", aten.div.Tensor, [x, y.abs() + 0.1]
        yield "_softmax", aten._softmax.default, [r(64, 33) * scale, -1, False]
        yield "_log_softmax", aten._log_softmax.default, [r(64, 33) * scale, -1, False]
        yield "_softmax", aten._softmax.default, [r(64, 33) * scale, 0, False]
        yield "_log_softmax", aten._log_softmax.default, [r(64, 33) * scale, 0, False]
        for n in (4, 64, 700):
            args = [r(16, n) * scale + 1.0, [n], r(n), r(n), 1e-5]
            yield "native_layer_norm", aten.native_layer_norm.default, args
        for groups in (1, 2, 6):
            rows = r(2, 6, 9, 7) * scale + 1.0
            for held in (rows, rows.to(memory_format=torch.channels_last)):
                args = [held, r(6), r(6), 2, 6, 63, groups, 1e-5]
                yield "native_group_norm", aten.native_group_norm.default, args
    geometry = [[1, 1], [1, 1], [1, 1], False, [0, 0], 1]
    yield "convolution", aten.convolution.default, [r(2, 5, 8, 8), r(4, 5, 3, 3), r(4), *geometry]
    yield "avg_pool2d", aten.avg_pool2d.default, [r(2, 3, 8, 8), [2, 2]]
    stats = [r(5), r(5), r(5), r(5).abs() + 0.1]
    yield from _more_cases(r, generator)
    norm = aten._native_batch_norm_legit_no_training.default
    long = [r(20_000, 3) * 5, 0, False]
    yield "_softmax", aten._softmax.default, long
    yield "_log_softmax", aten._log_softmax.default, long
    yield "_native_batch_norm_legit_no_training", norm, [r(4, 5, 6), *stats, 0.1, 1e-5]


def _more_cases(
    r: Callable[..., Tensor], generator: torch.Generator
) -> Iterator[tuple[str, Callable[..., Any], list[Any]]]:
    """Pooling, interpolation, and sums whose terms are chosen by an index."""
    yield "atan2", aten.atan2.default, [r(4000), r(4000)]
    yield "cumprod", aten.cumprod.default, [1 + 0.1 * r(6, 200), 1]
    yield "cumsum", aten.cumsum.default, [r(6, 500), 1]
    yield "avg_pool3d", aten.avg_pool3d.default, [r(2, 3, 6, 6, 6), [2, 2, 2]]
    cube = [r(2, 3, 6, 6, 6) + 2, [2, 2, 2]]
    yield "_adaptive_avg_pool3d", aten._adaptive_avg_pool3d.default, cube
    for aligned in (False, True):
        for size in ([47, 31], [9, 5]):
            resize = [r(2, 3, 20, 13), size, aligned, None]
            yield "upsample_bilinear2d", aten.upsample_bilinear2d.vec, resize
    goals = random_integers(3, (60, 4), generator)
    yield "scatter_add", aten.scatter_add.default, [r(3, 4), 0, goals, r(60, 4) + 1]
    yield "index_put", aten.index_put.default, [r(3, 4), [goals[:, 0]], r(60, 4) + 1, True]
    entries = random_integers(50, (160,), generator)
    for mode in (0, 1, 2):
        bags = [r(50, 6) + 1, entries, torch.arange(0, 160, 40), False, mode]
        yield "_embedding_bag", aten._embedding_bag.default, bags
    products = [r(5, 9), r(7, 9, 8), r(5, 8), [1, 3], [0], [1, 2], [2, 3]]
    yield "_trilinear", aten._trilinear.default, products
    images = [r(1, 6, 8, 8) * 3 + 20, r(6), r(6), True, 0.1, 1e-5]
    yield "_native_batch_norm_legit", aten._native_batch_norm_legit.no_stats, images


def _on_grid(value: Any, form: Format, device: str) -> Any:
    if isinstance(value, list):
        return [_on_grid(item, form, device) for item in value]
    if not isinstance(value, Tensor):
        return value
    return (form.round(value.float()) if value.is_floating_point() else value).to(device)


def check_sampled(
    name: str, kernel: Callable[..., Any], arguments: Sequence[Any], form: Format, device: str
) -> KernelCheck:
    """One kernel of several operands against float64 on the same (rounded) operands."""
    given = [_on_grid(a, form, device) for a in arguments]
    out = kernel(*given)
    wide = [a.double() if _is_floating(a) else a for a in given]
    exact = kernel(*wide)
    if isinstance(out, tuple):
        out, exact = out[0], exact[0]
    if form.is_emulated and form.rounds_result:
        out = form.round(out)
    rule = rule_of(name, kernel)
    assert rule is not None
    pairs = [(a, torch.zeros_like(a)) if _is_floating(a) else a for a in wide]
    _, inside = rule(*pairs)
    call, operands = _as_call(name, kernel, wide, exact)
    model = model_of(call)
    terms = terms_of(call, operands) if model.accumulates else 1
    allowed = model.local(form, terms, exact.abs(), inside)
    found = ratio(out, exact, allowed, form).reshape(-1)
    worst = int(found.argmax())
    shapes = [tuple(a.shape) for a in given if isinstance(a, Tensor)]
    got, true = float(out.reshape(-1)[worst]), float(exact.reshape(-1)[worst])
    witness = f"{name} of {shapes}: {got:.9g}, exact {true:.9g}"
    return KernelCheck(
        name, form.name, out.numel(), False, float(found[worst]), witness, form.is_emulated
    )


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _as_call(
    name: str, kernel: Callable[..., Any], arguments: Sequence[Any], result: Tensor
) -> tuple[AtenCall, dict[str, tuple[int, ...]]]:
    """The call as it stands in a graph, and the shapes of its operands."""
    shapes: dict[str, tuple[int, ...]] = {}

    def named(value: Any) -> Any:
        if isinstance(value, list):
            return [named(item) for item in value]
        if not isinstance(value, Tensor):
            return value
        shapes[str(len(shapes))] = tuple(value.shape)
        return Ref(str(len(shapes) - 1))

    args = tuple(map(named, arguments))
    shape = tuple(result.shape)
    return AtenCall(name, f"aten.{name}", kernel, args, {}, shape, result.dtype), shapes


def _checks(
    form: Format, device: str, generator: torch.Generator
) -> Iterator[tuple[str, Callable[[], KernelCheck]]]:
    """(operator, its check in this format), all that there are."""
    tf32 = form.name == "tf32"  # a mode of matrix products
    if not tf32:
        for name, function in {**UNARY, **EXACT}.items():
            yield name, functools.partial(check_unary, name, function, form, device, generator)
    for name, kernel, arguments in _cases(generator):
        if not tf32 or name in CONTRACTION:
            yield name, functools.partial(check_sampled, name, kernel, arguments, form, device)


def conformance(
    formats: Sequence[str] = ("fp32", "tf32", "bf16", "fp16", "fp8_e4m3", "fp8_e5m2"),
    *,
    device: str = "cpu",
    operators: Sequence[str] | None = None,
    generator: torch.Generator | None = None,
) -> Conformance:
    """Check the error model of every kernel in every format on one device.

    operators: only these, or all. tf32 is checked on matrix products. Cost: a few seconds.
    Raises `ValueError` where nothing can be computed on the device or nothing was to be checked.

    >>> conformance(["bf16"], operators=["relu", "mul"]).failures
    ()
    """
    refuse_device(device)
    generator = generator or torch.Generator().manual_seed(0)
    checks: dict[tuple[str, str], KernelCheck] = {}
    missing: list[str] = []

    with torch.no_grad():
        for form in map(find_format, formats):
            for name, check in _checks(form, device, generator):
                if operators is not None and name not in operators:
                    continue
                try:
                    one = check()
                except torch.OutOfMemoryError:
                    raise
                except (RuntimeError, NotImplementedError):
                    missing.append(f"{name} in {form.name}")
                    continue
                old = checks.get((name, form.name), one)
                tried = one.inputs + (0 if old is one else old.inputs)
                worse = one if one.worst > old.worst else old
                checks[name, form.name] = replace(worse, inputs=tried)
    if not checks and not missing:
        raise ValueError(f"operators is {operators!r}; none of them has a check")
    return Conformance(device, tuple(checks.values()), tuple(dict.fromkeys(missing)))
