"""Demonstrations: the seed's four networks and one true example of "uniform fails, mixed works"."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchsheaf.network.aten import trace_aten
from torchsheaf.precision.autocast import autocast_assignment
from torchsheaf.precision.dataflow import Dataflow, read_dataflow
from torchsheaf.precision.execute import run_assigned, uniform
from torchsheaf.precision.image_data import load_images
from torchsheaf.precision.measure import measure
from torchsheaf.precision.memory import count_memory
from torchsheaf.precision.plan import Plan, plan
from torchsheaf.precision.price import NoSection, price
from torchsheaf.precision.profile import load_profile
from torchsheaf.precision.refute import Refutation, refute
from torchsheaf.precision.zoo import Transformer, seed_mlp, seeded, train_classifier


@dataclass(frozen=True)
class Way:
    """One way to run the model: its error, relative cost, memory and, where known, accuracy."""

    name: str
    error: float
    cost: float
    memory_mb: float
    accuracy: float | None = None


@dataclass(frozen=True)
class Demo:
    """What a demonstration found: sentences, the ways to run it, plans by budget, refutations."""

    title: str
    story: tuple[str, ...]
    ways: tuple[Way, ...]
    plans: Mapping[float, Plan]
    refutations: tuple[Refutation, ...] = ()


def compare_ways(
    flow: Dataflow, inputs: tuple[Any, ...], plans: Mapping[str, Plan], labels: Tensor | None = None
) -> tuple[Way, ...]:
    """Uniform formats, autocast's lists and plans, all run and priced alike."""
    candidates = {f"uniform {f}": uniform(flow, f) for f in ("fp32", "bf16", "fp16")}
    candidates |= {f"autocast {f}": autocast_assignment(flow, f) for f in ("bf16", "fp16")}
    candidates |= {name: p.by_call for name, p in plans.items()}
    profile = next(iter(plans.values())).profile if plans else load_profile("stated")
    ways = []
    for name, assignment in candidates.items():
        error = measure(flow, inputs, assignment, "max").largest
        accuracy = None
        if labels is not None:
            out = run_assigned(flow, inputs, assignment).outputs[0]
            accuracy = float((out.argmax(-1) == labels).float().mean())
        cost = price(flow, assignment, profile).relative
        memory = count_memory(flow, assignment).total / 2**20
        ways.append(Way(name, error, cost, memory, accuracy))
    return tuple(ways)


def try_plan(flow: Dataflow, inputs: Any, budget: float, **options: Any) -> Plan | None:
    """A plan, or None where no section meets the budget."""
    try:
        return plan(flow.graph, inputs, budget, **options)
    except NoSection:
        return None


def _plans(flow: Dataflow, x: Any, budgets: tuple[float, ...], **options: Any) -> dict[float, Plan]:
    found = {b: try_plan(flow, x, b, **options) for b in budgets}
    return {b: p for b, p in found.items() if p is not None}


def feed_forward() -> Demo:
    """The README's 784-256-10 network with a softmax, at four budgets."""
    model, x = seed_mlp()
    flow = read_dataflow(trace_aten(model, x))
    plans = _plans(flow, x, (1e-2, 1e-3, 1e-4, 1e-6), formats=("fp64", "fp32", "bf16", "fp16"))
    ways = compare_ways(flow, (x,), {f"plan {b:g}": p for b, p in plans.items()})
    story = (
        "The budget is the largest error of a class probability.",
        "At 1e-6 uniform fp32 is enough: nothing here is impossible, and fp64 buys nothing.",
    )
    return Demo("feed-forward 784-256-10", story, ways, plans)


class Classifier(nn.Module):
    """A small convolution network for images of any size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(channels, 16, 3, padding=1)
        self.two = nn.Conv2d(16, 32, 3, padding=1)
        self.head = nn.Linear(32 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) → (batch, 10)."""
        x = torch.relu(self.one(x))
        x = nn.functional.adaptive_avg_pool2d(torch.relu(self.two(x)), 4)
        return self.head(x.flatten(1))


def images(data: str = "digits", budget: float = 2e-2, steps: int = 100) -> Demo:
    """Train on digits (or MNIST, CIFAR-10, a folder), plan, and compare accuracy for real."""
    x, y = load_images(data, "train")
    held, labels = load_images(data, "test", 384)
    model = train_classifier(seeded(lambda: Classifier(x.shape[1]), 0), x, y, steps)
    flow = read_dataflow(trace_aten(model, held[:128]))
    plans = _plans(flow, held[:128], (budget, budget * 10), holdout=held[128:384])
    everything = read_dataflow(trace_aten(model, held))
    named = {f"plan {b:g}": plan(everything.graph, held, b) for b in plans}
    ways = compare_ways(everything, (held,), named, labels)
    story = (
        f"Trained {steps} steps on {len(x)} images of {data!r}; accuracy is on {len(held)} others.",
        "The plan is executed in its formats; it is not fp32 under another name.",
    )
    return Demo(f"image classifier on {data}", story, ways, plans)


def reversal_batch(
    generator: torch.Generator, size: int, length: int = 12
) -> tuple[Tensor, Tensor]:
    """Random digit strings and their reversals: an algorithmic task for a transformer."""
    ids = torch.randint(10, (size, length), generator=generator)
    return ids, ids.flip(1)


def train_reversal(steps: int = 160) -> tuple[nn.Module, Tensor, Tensor]:
    """A two-layer post-LN transformer that learns to reverse 12 digits, in seconds."""
    model = seeded(lambda: Transformer(10, 64, 4, 2, 12, pre=False), 0).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        ids, target = reversal_batch(generator, 64)
        loss = nn.functional.cross_entropy(model(ids).flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ids, target = reversal_batch(generator, 32)
    return model.eval(), ids, target


def transformer(steps: int = 160, budgets: tuple[float, ...] = (3e-2, 1e-2, 3e-3)) -> Demo:
    """A transformer trained here; which of its operations carry the error is measured."""
    model, ids, target = train_reversal(steps)
    flow = read_dataflow(trace_aten(model, ids))
    plans = _plans(flow, ids, budgets)
    ways = compare_ways(flow, (ids,), {f"plan {b:g}": p for b, p in plans.items()}, target)
    shares: dict[str, float] = {}
    first = next(iter(plans.values()), None)
    if first is not None:
        for s in first.blame():
            shares[s.kind] = shares.get(s.kind, 0.0) + s.share
    top = sorted(shares.items(), key=lambda item: -item[1])[:4]
    softmax = shares.get("_softmax", 0.0)
    story = (
        f"Trained {steps} steps to reverse 12 digits.",
        "Who carries the error: " + ", ".join(f"{k} {v:.0%}" for k, v in top) + ".",
        f"The softmax, which a fixed table of curvatures blames most, carries {softmax:.1%}.",
    )
    return Demo("toy transformer", story, ways, plans)


class DoubleExponential(nn.Module):
    """exp(exp(x))."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return torch.exp(torch.exp(x))


class RangeVersusPrecision(nn.Module):
    """A large intermediate that fp16 cannot hold and an output that bf16 cannot resolve."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 8) → (batch, 4)."""
        signal = self.mix(x)
        large = torch.exp(12.5 + 0.1 * torch.tanh(signal))
        return signal + 5.0 + 0.02 * torch.log(large)


def range_versus_precision() -> tuple[nn.Module, Tensor]:
    """The example for which "uniform impossible, mixed works" is true, with its input."""
    model = seeded(RangeVersusPrecision, 3)
    return model, torch.randn(16, 8, generator=torch.Generator().manual_seed(3)) * 0.5


def pathological(budget: float = 8e-3) -> Demo:
    """exp∘exp at two budgets, and the true example over {fp16, bf16}."""
    x = torch.randn(1, 100, generator=torch.Generator().manual_seed(0))
    flow = read_dataflow(trace_aten(DoubleExponential(), x))
    wide = _plans(flow, x, (1e-6, 1e-2), formats=("fp64", "fp32", "bf16", "fp16"))
    model, z = range_versus_precision()
    mixed_flow = read_dataflow(trace_aten(model, z))
    mixed = try_plan(mixed_flow, z, budget, formats=("bf16", "fp16"), margin=1.0)
    proofs = tuple(refute(mixed_flow.graph, z, f, budget) for f in ("fp16", "bf16"))
    plans = {**wide, **({budget: mixed} if mixed else {})}
    ways = compare_ways(mixed_flow, (z,), {f"plan {budget:g}": mixed} if mixed else {})
    errors = {f: measure(flow, (x,), uniform(flow, f), "max").largest for f in ("fp64", "fp32")}
    story = (
        "exp(exp(x)): run uniformly it errs by "
        + " and ".join(f"{e:.2g} in {f}" for f, e in errors.items())
        + "; fp64 is the reference itself, so a uniform format always exists.",
        f"Range against precision, formats fp16 and bf16 only, budget {budget:g}: each uniform "
        "format is refuted below, and a mixture meets the budget. This needs two formats of which "
        "neither holds the other's numbers; on a chain (fp16, fp32, fp64) it cannot happen.",
    )
    return Demo("pathological", story, ways, plans, proofs)


DEMOS: dict[str, Callable[..., Demo]] = {
    "feed-forward": feed_forward,
    "images": images,
    "transformer": transformer,
    "pathological": pathological,
}
