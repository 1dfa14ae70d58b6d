"""The theorems behind the precision README: curvature bounds, presheaves, forced mixtures."""

import itertools

import torch
from torch import Tensor

from .entry import Register, Shown

REGISTER = Register()
HALF, BFLOAT, SINGLE, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64


@REGISTER("precision.theorem", "a function of curvature κ on diameter D errs by at least κD²/8")
def theorem() -> Shown:
    """x² on [0, 1]: κ = ½|f''| = 1, D = 1."""
    x = torch.linspace(0, 1, 100_001, dtype=SINGLE)
    found = float(((x * x).double() - x.double() ** 2).abs().max())
    return Shown((f"claimed ≥ 0.125; fp32 error {found:.1e}",), found < 1e-6)


@REGISTER("precision.curvature", "p ≥ log2(κD²/ε) bits are necessary, and κ = 0 needs none")
def curvature() -> Shown:
    """Wrong in both directions: the first derivative decides, not the second."""
    line = torch.linspace(0, 1000, 100_001, dtype=DOUBLE)
    stored = float((line.to(HALF).double() - line).abs().max())
    x = torch.linspace(0, 40, 100_001, dtype=DOUBLE)
    fast = float((torch.exp(-x.to(HALF)).double() - torch.exp(-x.to(HALF).double())).abs().max())
    asked = float(torch.log2(torch.tensor(0.5 * 40**2 / 1e-3)))
    return Shown(
        (
            f"f(x) = x on [0, 1000], κ = 0: fp16 error {stored:.2f}",
            f"exp(−x) on [0, 40], ε = 1e-3: {asked:.1f} bits asked; "
            f"fp16 (11 bits) error {fast:.1e}",
        ),
        stored > 0.1 and fast < 1e-3 and asked > 11,
    )


@REGISTER("precision.derivative", "the second derivative of softmax is diag(s) − s sᵀ")
def derivative() -> Shown:
    """That is the first."""
    x = torch.randn(5, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    s = torch.softmax(x, 0)
    jacobian = torch.func.jacrev(lambda v: torch.softmax(v, 0))(x)
    gap = float((jacobian - (torch.diag(s) - torch.outer(s, s))).abs().max())
    second = torch.func.hessian(lambda v: torch.softmax(v, 0))(x)
    return Shown(
        (
            f"|first derivative − (diag(s) − ssᵀ)| = {gap:.0e}; "
            f"the second has shape {tuple(second.shape)}",
        ),
        gap < 1e-12,
    )


@REGISTER("precision.presheaf", "assignments valid to within ε on a subgraph form a presheaf")
def presheaf() -> Shown:
    """A valid assignment restricts to an invalid one: y = 1e-3 · round_bf16(x), ε = 1e-3."""
    x = torch.linspace(-100, 100, 100_001, dtype=DOUBLE)
    rounded = x.to(BFLOAT).double()
    whole, part = float((1e-3 * (rounded - x)).abs().max()), float((rounded - x).abs().max())
    return Shown(
        (
            f"error on the whole graph {whole:.1e} ≤ 1e-3; "
            f"on the subgraph {{round}} {part:.2f} > 1e-3",
        ),
        whole <= 1e-3 < part,
    )


def chain_error(formats: tuple[torch.dtype, ...], x: Tensor) -> float:
    """log(3·exp(x)), each of its three results in its own format; max |error| against fp64."""
    state = x
    for step, dtype in zip((torch.exp, lambda v: 3 * v, torch.log), formats, strict=True):
        state = step(state).to(dtype).double()
    return float((state - torch.log(3 * torch.exp(x))).abs().max())


@REGISTER(
    "precision.mixed", "on {fp16, fp32} some ε is met by a mixture and by no uniform assignment"
)
def mixed() -> Shown:
    """Where one format contains the other, the wider uniform assignment is the best of all."""
    x = torch.linspace(-4, 2, 2001, dtype=DOUBLE)
    errors = {f: chain_error(f, x) for f in itertools.product((HALF, SINGLE), repeat=3)}
    uniform = errors.pop((SINGLE,) * 3)
    return Shown(
        (f"uniform fp32 {uniform:.1e}; the best of the 7 others {min(errors.values()):.1e}",),
        uniform <= min(errors.values()),
    )


@REGISTER("precision.incomparable", "a need for mixing is a matter of topology, of H¹")
def incomparable() -> Shown:
    """It is a matter of incomparable formats: log(exp(x)) at x = 11.8, ε = 8e-3, fp16 and bf16."""
    x = torch.tensor(11.8, dtype=DOUBLE)
    errors = {}
    for first, second, third in itertools.product((HALF, BFLOAT), repeat=3):
        state = torch.exp(x.to(first).double()).to(second).double()
        value = torch.log(state).to(third).double()
        errors[(first, second, third)] = float((value - x).abs())
    names = {HALF: "fp16", BFLOAT: "bf16"}
    good = [" ".join(names[d] for d in f) for f, e in errors.items() if e <= 8e-3]
    return Shown(
        (
            f"uniform fp16 {errors[(HALF,) * 3]:.1e}, uniform bf16 {errors[(BFLOAT,) * 3]:.1e}",
            f"within 8e-3 (input, exp, log): {', '.join(good)}",
        ),
        min(errors[(HALF,) * 3], errors[(BFLOAT,) * 3]) > 8e-3 and bool(good),
    )


@REGISTER(
    "precision.cohomology", "H¹ of a feed-forward network measures the obstruction to a precision"
)
def cohomology() -> Shown:
    """Error vectors as stalks, Jacobians as maps: δ is unitriangular on a DAG, so H¹ = 0 always."""
    gen, worst = torch.Generator().manual_seed(0), 0
    for _ in range(50):
        lower = torch.tril(torch.randn(20, 20, generator=gen, dtype=DOUBLE), -1)
        delta = torch.eye(20, dtype=DOUBLE) - lower
        worst = max(worst, 20 - int(torch.linalg.matrix_rank(delta, rtol=1e-14)))
    return Shown((f"largest dim H¹ over 50 random graphs: {worst}",), worst == 0)
