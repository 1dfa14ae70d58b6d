"""Does a local rule train faster than backprop? Same weights, batches and grids for every method.

    python -m benchmarks.training [paraboloid | digits | deep | deep-relaxed | convnet …]
    python -m benchmarks.training docs      # put the committed tables into docs/learning.md

Without a name every part runs. Each replaces its entry of benchmarks/results/training.json and
benchmarks/results/training.md, after every method.

How it is measured. Seeds 1, 2, 3 choose split, initial weights (He-normal, zero biases) and batch
order. Every method gets three learning rates, half a decade apart, around the one that earlier
sweeps had found best for it; SGD and first-order run three times as many steps as the others. CPU
seconds = steps × CPU ms per step; the ms are the least of many short chunks in which all methods
take turns, so that other work on the machine hits all alike. "Steps to p" is the first of two
successive evaluations (every 2 steps) that reach p on the held-out digits, median over the seeds;
a method's rate is the one with the least median, so all are optimistic alike.
"""

import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.measurement import RESULTS, update_result
from torchsheaf.file import write_text
from torchsheaf.train import EdgeRule, EquilibriumRule, RecursiveRule, SheafTrainer
from torchsheaf.train.joint_euler import JointEuler

SEEDS = (1, 2, 3)
Step = Callable[[Tensor, Tensor], None]


@dataclass(frozen=True)
class Method:
    """How to make one training step; `rates` is the grid; `share` of the steps it is run for."""

    name: str
    build: Callable[[nn.Sequential, float], Step]
    rates: tuple[float, ...]
    share: float = 1.0


@dataclass(frozen=True)
class Task:
    """A network and its data: digits (accuracy counts up) or a regression (error counts down)."""

    name: str
    make: Callable[[torch.Generator], nn.Sequential]
    data: Callable[[torch.Generator], tuple[Tensor, Tensor, Tensor, Tensor]]
    loss: str
    batch: int
    steps: int
    thresholds: tuple[float, ...]
    every: int = 2

    def reached(self, value: float, threshold: float) -> bool:
        return value <= threshold if self.loss == "l2" else value >= threshold

    def score(self, net: nn.Sequential, data: tuple[Tensor, Tensor, Tensor, Tensor]) -> float:
        """Training error of a regression, held-out accuracy of a classifier."""
        x, y, held_x, held_y = data
        with torch.no_grad():
            if self.loss == "l2":
                return float((net(x) - y).square().mean())
            return float((net(held_x).argmax(1) == held_y).double().mean())


# ---- tasks -----------------------------------------------------------------------------------


def he(net: nn.Sequential, generator: torch.Generator) -> nn.Sequential:
    for layer in net:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            fan_in = layer.weight[0].numel()
            nn.init.normal_(layer.weight, 0, (2 / fan_in) ** 0.5, generator=generator)
            nn.init.zeros_(layer.bias)
    return net


def mlp(*widths: int) -> Callable[[torch.Generator], nn.Sequential]:
    def make(generator: torch.Generator) -> nn.Sequential:
        layers: list[nn.Module] = []
        for m, n in pairwise(widths):
            layers += [nn.Linear(m, n), nn.ReLU()]
        return he(nn.Sequential(*layers[:-1]), generator)

    return make


def convnet(generator: torch.Generator) -> nn.Sequential:
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(128, 10),
    )  # fmt: skip
    return he(net, generator)


def enlarged(x: Tensor) -> Tensor:
    """8×8 images as 28×28 ones, flat."""
    images = x.view(-1, 1, 8, 8)
    return functional.interpolate(images, size=(28, 28), mode="bilinear").reshape(-1, 784)


def digits(shape: tuple[int, ...]) -> Callable[[torch.Generator], tuple[Tensor, ...]]:
    """1,437 for training, 360 held out; (784,): the 8×8 images enlarged to 28×28."""

    def data(generator: torch.Generator) -> tuple[Tensor, ...]:
        bunch = load_digits()
        x = torch.from_numpy(bunch.data).float() / 16
        y = torch.from_numpy(bunch.target).long()
        if shape == (784,):
            x = enlarged(x)
        x = x.reshape(-1, *shape)
        order = torch.randperm(len(x), generator=generator)
        held, kept = order[:360], order[360:]
        return x[kept], y[kept], x[held], y[held]

    return data


def paraboloid(generator: torch.Generator) -> tuple[Tensor, ...]:
    x = torch.rand(700, 2, generator=generator) * 4 - 2
    y = x.square().sum(1, keepdim=True) - 2 / 3 + 0.02 * torch.randn(700, 1, generator=generator)
    return x[:500], y[:500], x[500:], y[500:]


ACCURACIES = (0.95, 0.97, 0.98)
TASKS = {
    "paraboloid": Task(
        "[2,30,1], 500 points, full batch", mlp(2, 30, 1), paraboloid, "l2", 500, 1000,
        (0.05, 0.01, 0.005), 5,
    ),
    "digits": Task(
        "[784,256,256,10], batch 128", mlp(784, 256, 256, 10), digits((784,)), "cross_entropy",
        128, 220, ACCURACIES,
    ),
    "deep": Task(
        "[64]+[128]×20+[10], batch 128", mlp(64, *[128] * 20, 10), digits((64,)),
        "cross_entropy", 128, 220, ACCURACIES,
    ),
    "convnet": Task(
        "convnet 16–32, batch 128", convnet, digits((1, 8, 8)), "cross_entropy", 128, 110,
        ACCURACIES,
    ),
    "stream": Task(
        "[64,256,256,10], batch 1, two passes", mlp(64, 256, 256, 10), digits((64,)),
        "cross_entropy", 1, 2874, ACCURACIES, 64,
    ),
}  # fmt: skip
for _name in ("deep", "convnet"):
    _task = TASKS[_name]
    TASKS[f"{_name}-relaxed"] = replace(
        _task, name=f"{_task.name}: relaxing rules, fewer steps", steps=int(0.3 * _task.steps)
    )


# ---- methods ---------------------------------------------------------------------------------


def backprop(optimiser: Callable[..., list[torch.optim.Optimizer]], loss: str) -> Any:
    def build(net: nn.Sequential, rate: float) -> Step:
        optimisers = optimiser(net, rate)

        def step(x: Tensor, y: Tensor) -> None:
            for o in optimisers:
                o.zero_grad()
            z = net(x)
            # ½ ‖z − y‖², as in every local rule, so that rates mean the same.
            value = (
                0.5 * (z - y).square().sum(1).mean()
                if loss == "l2"
                else functional.cross_entropy(z, y)
            )
            value.backward()
            for o in optimisers:
                o.step()

        return step

    return build


def sgd(net: nn.Sequential, rate: float) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(net.parameters(), lr=rate, fused=True)]


def momentum(net: nn.Sequential, rate: float) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9, fused=True)]


def adam(net: nn.Sequential, rate: float) -> list[torch.optim.Optimizer]:
    return [torch.optim.Adam(net.parameters(), lr=rate, fused=True)]


def muon(net: nn.Sequential, rate: float) -> list[torch.optim.Optimizer]:
    """Muon on matrices; it takes no others, so biases and kernels get Adam at a tenth."""
    matrices = [p for p in net.parameters() if p.ndim == 2]
    others = [p for p in net.parameters() if p.ndim != 2]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.0),
        torch.optim.Adam(others, lr=rate / 10, fused=True),
    ]


def local(rule: Callable[[], Any], loss: str, optimiser: Any = sgd) -> Any:
    def build(net: nn.Sequential, rate: float) -> Step:
        trainer = SheafTrainer(net, loss=loss, rule=rule())
        (o,) = optimiser(net, rate)

        def step(x: Tensor, y: Tensor) -> None:
            trainer.local_gradients(x, y)
            o.step()

        return step

    return build


def joint(loss: str, inner: int, dt: float = 0.1) -> Any:
    """`inner` joint Euler steps per batch, β N = rate; stalks kept while the batch stays."""

    def build(net: nn.Sequential, rate: float) -> Step:
        kept: dict[str, Any] = {}

        def step(x: Tensor, y: Tensor) -> None:
            flow = JointEuler(loss=loss, dt=dt, beta=rate / len(x))
            if kept.get("x") is not x:
                kept.update(x=x, state=flow.start(net, x, y, stalks="forward"))
            flow.run(kept["state"], inner, every=inner)
            kept["state"].write_to([net])

        return step

    return build


def grid(centre: float) -> tuple[float, ...]:
    """Three rates, half a decade apart, around the one known to be good."""
    return tuple(round(centre * 10 ** (k / 2), 6) for k in (-1, 0, 1))


CENTRES = {
    "paraboloid": (0.1, 0.1, 0.1, 0.3, 0.3),
    "digits": (0.3, 0.1, 0.003, 3.0, 1.0),
    "deep": (0.03, 0.01, 0.001, 0.3, 0.1),
    "convnet": (0.3, 0.1, 0.003, 3.0, 1.0),
    "stream": (0.03, 0.003, 0.001, 0.3, 1.0),
}
"""Middle rates of SGD (and first-order), momentum, Adam, edge, recursive."""


def relaxing(name: str) -> list[Method]:
    """Few sweeps per batch, and joint Euler where the network is a path; SGD for the same steps."""
    few = partial(EquilibriumRule, max_passes=8)
    found = [
        Method("SGD", backprop(sgd, "cross_entropy"), grid(CENTRES[name][0])),
        Method("equilibrium, few sweeps, + Adam", local(few, "cross_entropy", adam), grid(0.003)),
    ]
    if name == "deep":
        found.append(Method("joint Euler, 20 steps", joint("cross_entropy", 20, 0.02), grid(0.3)))
    return found


def methods(name: str) -> list[Method]:
    if name.endswith("-relaxed"):
        return relaxing(name.removesuffix("-relaxed"))
    loss, n = TASKS[name].loss, name
    layers = {"digits": 3, "deep": 21, "convnet": 3, "stream": 3}.get(n, 2)
    group = {"digits": 64, "paraboloid": None, "convnet": None}.get(n, 32)
    centre = CENTRES[n]
    slow = 3.0 if n in ("digits", "deep", "convnet") else 1.0  # plain gradient steps need more
    remember = partial(RecursiveRule, memory=2000.0) if n == "stream" else RecursiveRule
    found = [
        Method("SGD", backprop(sgd, loss), grid(centre[0]), slow),
        Method("momentum", backprop(momentum, loss), grid(centre[1])),
        Method("Adam", backprop(adam, loss), grid(centre[2])),
        Method("first-order", local(lambda: "first-order", loss), grid(centre[0]), slow),
        Method("edge", local(lambda: EdgeRule(group=group), loss), grid(centre[3])),
        Method("recursive", local(remember, loss), grid(centre[4]), 1.0 if n == "stream" else 0.3),
    ]
    if n != "stream":
        found.append(Method("Muon", backprop(muon, loss), grid(0.03)))
    if n != "paraboloid":
        fixed = local(lambda: EdgeRule(group=group), loss)
        found.append(Method(f"edge, η = 8/{layers} fixed", fixed, (8 / layers,)))
    if n == "paraboloid":
        relaxed = partial(EquilibriumRule, warm=True, max_passes=4, solver="block descent")
        found += [
            Method(
                "edge + momentum", local(lambda: EdgeRule(group=None), loss, momentum), grid(1.0)
            ),
            Method("equilibrium + Adam", local(relaxed, loss, adam), grid(0.1), 0.25),
            Method("joint Euler, one step", joint(loss, 1), grid(3.0), 5.0),
        ]
    if n == "digits":
        few = partial(EquilibriumRule, max_passes=4, solver="block descent")
        found += [
            Method("equilibrium, few sweeps, + Adam", local(few, loss, adam), grid(0.003), 0.1),
            Method("joint Euler, 20 steps", joint(loss, 20, 0.02), grid(0.3), 0.1),
        ]
    return found


# ---- measuring -------------------------------------------------------------------------------


def milliseconds(task: Task, chosen: list[Method], budget: float = 6.0) -> dict[str, float]:
    """CPU ms per step: the least of chunks in which the methods take turns."""
    generator = torch.Generator().manual_seed(0)
    x, y, _, _ = task.data(generator)
    x, y = x[: task.batch], y[: task.batch]
    steps = []
    for method in chosen:
        steps.append(method.build(task.make(torch.Generator().manual_seed(1)), 1e-4))
        for _ in range(3):
            steps[-1](x, y)
    best = [math.inf] * len(chosen)
    began, rounds = time.process_time(), 0
    while rounds < 5 or (time.process_time() - began < budget and rounds < 60):
        rounds += 1
        for i, step in enumerate(steps):
            repeat = max(1, int(0.01 / best[i])) if best[i] < math.inf else 1
            start = time.process_time()
            for _ in range(repeat):
                step(x, y)
            best[i] = min(best[i], (time.process_time() - start) / repeat)
    return {m.name: 1e3 * b for m, b in zip(chosen, best, strict=True)}


def trace(task: Task, method: Method, rate: float, seed: int) -> list[tuple[int, float]]:
    """(step, score) every few steps; ends early when the run is lost."""
    generator = torch.Generator().manual_seed(seed)
    data = task.data(generator)
    net = task.make(generator)
    step = method.build(net, rate)
    x, y = data[:2]
    total, done, found = int(task.steps * method.share), 0, []
    every = task.every if method.share <= 1 else task.every * int(method.share)
    while done < total:
        order = torch.randperm(len(x), generator=generator)
        whole = task.batch >= len(x)
        for index in order.split(task.batch):
            try:
                step(x, y) if whole else step(x[index], y[index])
            except (RuntimeError, ValueError):  # diverged: what was reached stands
                return found
            done += 1
            if done % every == 0 or done == total:
                found.append((done, task.score(net, data)))
                if not math.isfinite(found[-1][1]):
                    return found
            if done >= total:
                break
    return found


def first_reached(task: Task, points: list[tuple[int, float]], threshold: float) -> float:
    for (step, a), (_, b) in pairwise(points):
        if task.reached(a, threshold) and task.reached(b, threshold):
            return step
    return math.inf


def summarise(task: Task, method: Method, ms: float) -> dict[str, Any]:
    """Steps to each threshold at the best rate for it, and the best final score."""
    began = time.process_time()
    runs = {r: [trace(task, method, r, s) for s in SEEDS] for r in method.rates}
    finals = {}
    for rate, found in runs.items():
        last = [t[-1][1] if t and math.isfinite(t[-1][1]) else math.nan for t in found]
        if not any(math.isnan(v) for v in last):
            finals[rate] = last
    best = (min if task.loss == "l2" else max)(
        finals, key=lambda r: statistics.mean(finals[r]), default=None
    )
    reached = {}
    for threshold in task.thresholds:
        steps = {
            r: statistics.median([first_reached(task, t, threshold) for t in found])
            for r, found in runs.items()
        }
        rate = min(steps, key=lambda r: steps[r])
        got = math.isfinite(steps[rate])
        reached[str(threshold)] = (
            {"rate": rate, "steps": steps[rate], "cpu_ms": steps[rate] * ms} if got else None
        )
    return {
        "ms_per_step": ms,
        "reached": reached,
        "final": None if best is None else {"rate": best, "scores": finals[best]},
        "rates": list(method.rates),
        "steps": int(task.steps * method.share),
        "cpu_seconds": time.process_time() - began,
    }


def run(name: str, save: Callable[[str, dict[str, Any]], None]) -> None:
    """Measure one part; saved after every method, so that an interrupted run shows what it has."""
    task, chosen = TASKS[name], methods(name)
    ms = milliseconds(task, chosen)
    rows: dict[str, Any] = {}
    entry = {"task": task.name, "loss": task.loss, "methods": rows, "complete": False}
    entry["ms_per_step"] = ms
    for method in sorted(chosen, key=lambda m: ORDER.index(m.name.split(",")[0].split(" +")[0])):
        rows[method.name] = summarise(task, method, ms[method.name])
        entry["complete"] = len(rows) == len(chosen)
        save(name, entry)
        print(name, method.name, json.dumps(rows[method.name]), flush=True)


ORDER = (
    "edge", "SGD", "Adam", "recursive", "momentum", "first-order", "Muon", "equilibrium",
    "joint Euler",
)  # fmt: skip


def write(name: str, entry: dict[str, Any]) -> None:
    """Replace one part of the results, and their tables."""
    known = update_result("training", name, entry)
    write_text(RESULTS / "training.md", "\n".join(table(known[n]) for n in TASKS if n in known))


def table(entry: dict[str, Any]) -> str:
    """One task as a markdown table."""
    rows = entry["methods"]
    base = entry["ms_per_step"]["SGD"]
    thresholds = list(next(iter(rows.values()))["reached"])
    less = entry["loss"] == "l2"
    sign = "≤" if less else "≥"
    titles = [f"CPU ms to {sign} {t} (steps)" for t in thresholds]
    head = ["method", "ms/step", "× SGD step", *titles, "final, mean (worst)"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, row in rows.items():
        cells = [name, f"{row['ms_per_step']:.2f}", f"{row['ms_per_step'] / base:.2f}"]
        for t in thresholds:
            got = row["reached"][t]
            cells.append(f"{got['cpu_ms']:.0f} ({got['steps']:.0f})" if got else "–")
        if row["final"] is None:
            cells.append("diverged at every rate")
        else:
            scores = row["final"]["scores"]
            mean, worst = statistics.mean(scores), (max if less else min)(scores)
            cells.append(f"{mean:.4f} ({worst:.4f})" if less else f"{mean:.3f} ({worst:.3f})")
        lines.append("| " + " | ".join(cells) + " |")
    note = "" if entry["complete"] else " (methods not listed were not run to the end)"
    return f"**{entry['task']}**{note}\n\n" + "\n".join(lines) + "\n"


def publish() -> None:
    """Put the committed tables between the two marks of the learning page."""
    page = Path(__file__).parent.parent / "docs" / "learning.md"
    before, _, rest = page.read_text().partition("<!-- benchmark tables -->")
    _, _, after = rest.partition("<!-- end of benchmark tables -->")
    tables = (RESULTS / "training.md").read_text().strip()
    write_text(
        page,
        f"{before}<!-- benchmark tables -->\n\n{tables}\n\n<!-- end of benchmark tables -->{after}",
    )


def main(names: list[str]) -> int:
    if names == ["docs"]:
        publish()
        return 0
    unknown = sorted(set(names) - set(TASKS))
    if unknown:
        print(f"unknown part: {', '.join(unknown)}\n{__doc__}")
        return 2
    torch.set_num_threads(1)
    for name in names or list(TASKS):
        run(name, write)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
