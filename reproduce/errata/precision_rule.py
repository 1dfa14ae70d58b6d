"""The precision README's rule, re-stated in a few lines, against what the formats really do.

The rule: bits = log2(κ·100/ε), or log2(1/ε) where κ = 0; up to 16 it says fp16, up to 32 fp32, else
fp64; "H⁰ = 0, uniform precision impossible" as soon as one operation needs more than 16.
κ: Linear 0, ReLU 1, Softmax 362.5, exp 100, subtraction and everything unlisted 1, addition 0.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .entry import Register, Shown

REGISTER = Register()
KAPPA = {"linear": 0.0, "add": 0.0, "relu": 1.0, "softmax": 362.5, "exp": 100.0}
HALF, BFLOAT, SINGLE, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64


def bits(kind: str, budget: float) -> float:
    """Mantissa bits the rule asks for."""
    kappa = KAPPA.get(kind, 1.0)
    ratio = kappa * 100 / budget if kappa else 1 / budget
    return float(torch.log2(torch.tensor(ratio, dtype=DOUBLE)))


def rule(kinds: list[str], budget: float) -> tuple[int, list[int]]:
    """(h0 of the rule, format width per operation)."""
    needed = [bits(kind, budget) for kind in kinds]
    widths = [16 if b <= 16 else 32 if b <= 32 else 64 for b in needed]
    return int(all(b <= 16 for b in needed)), widths


def error(run: Callable[[Tensor], Tensor], exact: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """max |run(x) − exact(x in float64)|."""
    return float((run(x).to(DOUBLE) - exact(x.to(DOUBLE))).abs().max())


def in_format(model: nn.Module, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """The same weights with every operation in one format."""
    cast = copy.deepcopy(model).to(dtype)
    return lambda x: cast(x.to(dtype)).detach()


def readme_mlp() -> tuple[nn.Module, Tensor]:
    """The README's 784-256-10 classifier, random weights, 64 random inputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10), nn.Softmax(dim=1))
    return model, torch.randn(64, 784)


MLP_KINDS = ["linear", "relu", "linear", "softmax"]


@REGISTER(
    "precision.impossible", "README example, ε = 1e-6: uniform precision is impossible (H⁰ = 0)"
)
def impossible() -> Shown:
    """Uniform fp32 meets the budget."""
    model, x = readme_mlp()
    h0, widths = rule(MLP_KINDS, 1e-6)
    found = error(in_format(model, SINGLE), in_format(model, DOUBLE), x)
    return Shown(
        (f"rule: h0 = {h0}, widths {widths}; uniform fp32 error {found:.1e}",),
        h0 == 0 and found < 1e-6,
    )


@REGISTER("precision.contradiction", "H⁰ = 0 means that no uniform assignment exists")
def contradiction() -> Shown:
    """At ε = 1e-5 the rule says so and hands out a uniform assignment that works."""
    model, x = readme_mlp()
    h0, widths = rule(MLP_KINDS, 1e-5)
    found = error(in_format(model, SINGLE), in_format(model, DOUBLE), x)
    return Shown(
        (f"rule at 1e-5: h0 = {h0}, widths {widths}; uniform fp32 error {found:.1e}",),
        h0 == 0 and set(widths) == {32} and found < 1e-5,
    )


@REGISTER("precision.wasteful", "the same model at ε = 1e-3 and 1e-2 needs fp32 for its softmax")
def wasteful() -> Shown:
    """Uniform 16-bit formats meet both budgets."""
    model, x = readme_mlp()
    half, bfloat = (error(in_format(model, d), in_format(model, DOUBLE), x) for d in (HALF, BFLOAT))
    return Shown(
        (
            f"rule: widths {rule(MLP_KINDS, 1e-3)[1]} at 1e-3, {rule(MLP_KINDS, 1e-2)[1]} at 1e-2",
            f"uniform fp16 error {half:.1e}, uniform bf16 error {bfloat:.1e}",
        ),
        half < 1e-3 and bfloat < 1e-2 and rule(MLP_KINDS, 1e-2)[1][-1] == 32,
    )


@REGISTER("precision.identity", "nn.Identity at ε = 1e-6: uniform precision is impossible")
def identity() -> Shown:
    """It computes nothing, so it rounds nothing."""
    h0, widths = rule(["identity"], 1e-6)
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    found = error(nn.Identity(), nn.Identity(), x)
    return Shown(
        (f"rule: h0 = {h0}, widths {widths}; fp32 error {found:.1f}",), h0 == 0 and found == 0.0
    )


@REGISTER("precision.linear", "Linear(784, 256) at ε = 2e-5: fp16 certified, H⁰ ≠ 0")
def linear() -> Shown:
    """A linear layer has curvature 0 and rounding errors all the same."""
    torch.manual_seed(0)
    model, x = nn.Linear(784, 256), torch.randn(64, 784)
    h0, widths = rule(["linear"], 2e-5)
    found = error(in_format(model, HALF), in_format(model, DOUBLE), x)
    return Shown(
        (
            f"rule: h0 = {h0}, widths {widths}; "
            f"fp16 error {found:.1e} = {found / 2e-5:.0f} x the budget",
        ),
        h0 == 1 and found > 2e-5,
    )


@REGISTER("precision.scaled", "the same layer with weights x 1e4 at ε = 1e-4: fp16 certified")
def scaled() -> Shown:
    """The rule never reads the weights."""
    torch.manual_seed(0)
    model, x = nn.Linear(784, 256), torch.randn(64, 784)
    model.weight.data *= 1e4
    h0, widths = rule(["linear"], 1e-4)
    found = error(in_format(model, HALF), in_format(model, DOUBLE), x)
    return Shown(
        (
            f"rule: h0 = {h0}, widths {widths}; "
            f"fp16 error {found:.1f} = {found / 1e-4:.0f} x the budget",
        ),
        h0 == 1 and found > 1e-4,
    )


@REGISTER("precision.cancellation", "(x + 1e4) − 1e4 at ε = 1e-4: fp16 then fp32 is enough")
def cancellation() -> Shown:
    """The sum is rounded to a multiple of 8 before the subtraction sees it."""
    widths = rule(["add", "sub"], 1e-4)[1]
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))

    def assigned(values: Tensor) -> Tensor:
        return (values.to(HALF) + torch.tensor(1e4, dtype=HALF)).to(SINGLE) - 1e4

    found = error(assigned, lambda v: (v + 1e4) - 1e4, x)
    return Shown(
        (f"rule: widths {widths}; error {found:.1f} = {found / 1e-4:.0f} x the budget",),
        widths == [16, 32] and found > 1e-4,
    )


@REGISTER(
    "precision.softmax", "softmax, logits in [−5, 5], ε = 1e-3: 25 mantissa bits are necessary"
)
def softmax() -> Shown:
    """fp16 has 11 and stays inside the budget."""
    x = torch.rand(256, 10, generator=torch.Generator().manual_seed(0)) * 10 - 5
    found = error(lambda v: torch.softmax(v.to(HALF), 1), lambda v: torch.softmax(v, 1), x)
    return Shown(
        (f"rule: {bits('softmax', 1e-3):.1f} bits; fp16 (11 bits) error {found:.1e}",), found < 1e-3
    )


@REGISTER("precision.expexp", "exp(exp(x)): H⁰ = 0 proves that no uniform precision works")
def expexp() -> Shown:
    """At 1e-6 the rule itself hands out uniform fp64; at 1e-2 its fp32 is far off."""
    x = torch.randn(100, generator=torch.Generator().manual_seed(0))
    h0, widths = rule(["exp", "exp"], 1e-6)
    loose = rule(["exp", "exp"], 1e-2)[1]

    def twice(values: Tensor) -> Tensor:
        return torch.exp(torch.exp(values))

    big = torch.linspace(-1, 3, 101)
    found = error(twice, twice, big)
    return Shown(
        (
            f"ε = 1e-6: h0 = {h0}, widths {widths} (uniform)",
            f"ε = 1e-2: widths {loose}; fp32 error {found:.1e} on [−1, 3], "
            f"{error(twice, twice, x):.1e} on 100 normal numbers",
        ),
        h0 == 0 and set(widths) == {64} and loose == [32, 32] and found > 1e-2,
    )


@REGISTER(
    "precision.attention", "p ≈ 21 bits at ε = 1e-3 follows from κ = 362.5 and p ≥ log2(κ D²/ε)"
)
def attention() -> Shown:
    """The D = 10 that the rule uses everywhere gives another number."""
    diameter = (2**21 * 1e-3 / 362.5) ** 0.5
    return Shown(
        (f"D = 10 gives {bits('softmax', 1e-3):.1f} bits; 21 bits need D = {diameter:.2f}",),
        abs(bits("softmax", 1e-3) - 21) > 2,
    )


class Block(nn.Module):
    """A pre-norm transformer block; results of one kind of operation can be rounded to fp16."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(64) for _ in range(2))
        self.qkv, self.out = nn.Linear(64, 192), nn.Linear(64, 64)
        self.up, self.down = nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, x: Tensor, halved: str) -> Tensor:
        """One block, single head; results of the kind `halved` are rounded to fp16."""

        def keep(kind: str, value: Tensor) -> Tensor:
            return value.to(HALF).to(value.dtype) if kind == halved else value

        q, k, v = self.qkv(keep("norm", self.norms[0](x))).chunk(3, dim=-1)
        weights = keep("softmax", torch.softmax(keep("linear", q) @ keep("linear", k).mT / 8, -1))
        x = keep("add", x + keep("linear", self.out(weights @ v)))
        hidden = torch.relu(keep("linear", self.up(keep("norm", self.norms[1](x)))))
        return keep("add", x + keep("linear", self.down(hidden)))


@REGISTER("precision.ranking", "softmax needs the most bits, additions the fewest")
def ranking() -> Shown:
    """Round the results of one kind of operation to fp16, keep the rest in fp64."""
    torch.manual_seed(0)
    blocks = [Block().double() for _ in range(3)]
    x = torch.randn(8, 16, 64, dtype=DOUBLE)

    def run(halved: str) -> Tensor:
        state = x
        for block in blocks:
            state = block(state, halved).detach()
        return state

    exact = run("none")
    found = {
        kind: float((run(kind) - exact).abs().max())
        for kind in ("softmax", "linear", "norm", "add")
    }
    listed = ", ".join(f"{kind} {value:.1e}" for kind, value in found.items())
    return Shown(
        (
            f"bits by the rule at 1e-3: softmax {bits('softmax', 1e-3):.1f}, "
            f"add {bits('add', 1e-3):.1f}",
            f"max output error with that kind alone in fp16: {listed}",
        ),
        found["add"] > 3 * found["softmax"],
    )
