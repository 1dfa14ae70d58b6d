"""(b) Which layers were damaged, in a network whose every layer is quantised as well."""

import random
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from benchmarks.diagnosis.tasks import Group, Task, load
from torchsheaf.boundary import Problem, hold
from torchsheaf.cochain import Cochain, coordinates
from torchsheaf.diagnose import fault_profile, label_energy
from torchsheaf.examples import load as load_example
from torchsheaf.sheaf import Sheaf, encode

DEPTH = (48,) * 6
STEPS = 300
SAMPLES = 128
CASES = 20
EXAMPLES = {"digits, convolutions": "digits-conv", "digits, residual": "digits-residual"}
NETWORKS = ("digits", "breast cancer", "wine", "five clusters", *EXAMPLES)


def trained(name: str, seed: int) -> tuple[Sheaf, nn.Module, Tensor, Tensor]:
    """A trained network as a sheaf, with samples and labels to look at."""
    if name in EXAMPLES:
        example = load_example(EXAMPLES[name], seed=seed)
        x, y = example.x[:SAMPLES], example.y[:SAMPLES]
        return encode(example.model, x[:2]), example.model, x, y
    task: Task = load(name)
    group = Group((task.x.shape[1], *DEPTH, task.classes), [seed], rate=0.003)
    group.train(task.x, task.y[None], STEPS)
    sheaf = group.sheaf(0)
    assert isinstance(sheaf.network.model, nn.Module)
    chosen = torch.randperm(len(task.x), generator=torch.Generator().manual_seed(seed))[:SAMPLES]
    return sheaf, sheaf.network.model, task.x[chosen], task.y[chosen]


def quantise(weight: Tensor, bits: int) -> Tensor:
    """Symmetric rounding, one scale per tensor."""
    scale = weight.abs().max() / (2 ** (bits - 1) - 1)
    return (weight / scale).round() * scale


def perturb(module: nn.Module, rng: random.Random, noise: torch.Generator) -> None:
    """Noise of a tenth of the weight's own size."""
    w = module.weight
    drawn = torch.randn(w.shape, generator=noise, dtype=w.dtype)
    w += drawn * (0.1 * w.norm() / drawn.norm())


def wrong_scale(module: nn.Module, rng: random.Random, noise: torch.Generator) -> None:
    """One output channel dequantised with a scale that is half as large again."""
    module.weight[rng.randrange(len(module.weight))] *= 1.5


def swap_bias(module: nn.Module, rng: random.Random, noise: torch.Generator) -> None:
    """The bias of another layout: every entry moved by one."""
    module.bias.copy_(module.bias.roll(1))


FAULTS: tuple[Callable[[nn.Module, random.Random, torch.Generator], None], ...] = (
    perturb, wrong_scale, swap_bias,
)  # fmt: skip


def profiles(problem: Problem, healthy: Cochain, layers: list[str]) -> dict[str, list[float]]:
    """Every method's suspicion per layer."""
    suspect = problem.start("forward")
    sheaf = problem.sheaf

    @cache
    def drift(name: str) -> float:
        a, b = coordinates(healthy[name]), coordinates(suspect[name])
        return float((a - b).norm() / a.norm().clamp_min(1e-12))

    @cache
    def shift(name: str) -> float:
        a, b = coordinates(healthy[name]), coordinates(suspect[name])
        spread = a.std(0) + 0.01 * a.std() + 1e-12
        return float(((a.mean(0) - b.mean(0)) / spread).square().mean().sqrt()) + float(
            ((a.std(0) - b.std(0)) / spread).square().mean().sqrt()
        )

    def before(name: str, measure: Callable[[str], float]) -> float:
        return max(measure(p) for p in sheaf.edges[name].parents)

    misfit = dict(fault_profile(problem, healthy).ranked())
    drifts = [drift(n) for n in layers]
    limit = 3 * min(drifts)
    first = next((i for i, d in enumerate(drifts) if d > limit), 0)
    return {
        "discord at the reference": [misfit[n] for n in layers],
        "activation difference": drifts,
        "growth of the difference": [drift(n) - before(n, drift) for n in layers],
        "ratio of differences": [drift(n) / (before(n, drift) + 1e-3) for n in layers],
        "first deviation": [
            -float(i - first) if i >= first else -100.0 - i for i in range(len(layers))
        ],
        "mean and spread per unit": [shift(n) for n in layers],
        "growth of mean and spread": [shift(n) - before(n, shift) for n in layers],
    }


def by_labels(problem: Problem, labels: Tensor, layers: list[str]) -> list[float]:
    """The label energy's share per coordinate of each layer, without looking at activations."""
    table = label_energy(problem, labels, rivals=1).discord
    dims = {e.name: e.dim for e in table.edges}
    share = dict(zip([e.name for e in table.edges], table.share.tolist(), strict=True))
    return [share[n] / dims[n] for n in layers]


@torch.no_grad()
def study(name: str, seed: int) -> list[dict[str, Any]]:
    """Exact-recovery rate and area under the curve for 1, 2 and 3 faults."""
    with torch.enable_grad():
        sheaf, model, x, y = trained(name, seed)
    problem = hold(sheaf, x)
    healthy = problem.start("forward")
    layers = [
        e.name for e in sheaf.edges.values()
        if e.parameters and model.get_submodule(e.module).weight.ndim > 1
    ]  # fmt: skip
    modules = {n: model.get_submodule(sheaf.edges[n].module) for n in layers}
    profile = by_labels(problem, y, layers)
    original = {k: v.clone() for k, v in model.state_dict().items()}
    rows = []
    for faults in (1, 2, 3):
        rng = random.Random(1000 * seed + faults)
        noise = torch.Generator().manual_seed(1000 * seed + faults)
        found: dict[str, list[tuple[float, float]]] = {}
        for _ in range(CASES):
            model.load_state_dict(original)
            for module in modules.values():
                module.weight.copy_(quantise(module.weight, 8))
            hit = rng.sample(layers, min(faults, len(layers) - 1))
            for layer in hit:
                rng.choice(FAULTS)(modules[layer], rng, noise)
            suspicion = profiles(problem, healthy, layers)
            own = by_labels(problem, y, layers)
            suspicion["labels only"] = own
            suspicion["labels only, against the healthy profile"] = [
                abs(a / b - 1) for a, b in zip(own, profile, strict=True)
            ]
            flags = [n in hit for n in layers]
            for method, values in suspicion.items():
                top = sorted(range(len(layers)), key=lambda i: -values[i])[: len(hit)]
                exact = all(flags[i] for i in top)
                area = float(roc_auc_score(flags, values))
                found.setdefault(method, []).append((float(exact), area))
        for method, pairs in found.items():
            exact, area = (sum(v) / len(v) for v in zip(*pairs, strict=True))
            rows.append(
                {"network": name, "faults": faults, "seed": seed, "method": method}
                | {"exact": exact, "auc": area, "layers": len(layers)}
            )
    model.load_state_dict(original)
    return rows
