"""Published runs of the heat equation; writes reproduce/results/flow.json.

The reference library draws weights with `torch.manual_seed(seed)` and one `torch.randn` per layer
(He scale, zero biases), and the random start with a second seed, first every z, then every a, then
the output; so its numbers can be matched, as far as the seeds are published.
Source: Bosca & Ghrist 2026, Fig. 6, notebook 01 and Appendix E of the authors' repository.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

import torchsheaf as ts
from benchmarks.measurement import environment, revise
from torchsheaf.flow import euler_step
from torchsheaf.flow.walls import Walls

RESULTS = Path(__file__).parent / "results" / "flow.json"


@dataclass(frozen=True)
class Run:
    """A published run: the network, its input, the stopping rule, what was printed."""

    name: str
    dims: tuple[int, ...]
    seed: int
    x: tuple[tuple[float, ...], ...]
    tol: float
    cap: int
    published: dict
    start_seed: int = 7
    sigmoid: bool = False
    look_every: int = 1  # the authors compare patterns every so many steps
    drawn: int = 0  # inputs drawn after the weights, in float32, where none are printed


RUNS = (
    Run("figure 6", (2, 4, 1), 7, ((0.5, -0.3),), 0.0, 10_000, {
        "discord at start": 10.30, "discord at 5000": 1.35e-8, "discord at 10000": 9.3e-16,
        "crossing steps": [50, 65], "output": -0.710566,
    }, start_seed=42),
    Run("notebook 1, [2,4,1]", (2, 4, 1), 42, ((1.0, 0.5),), 1e-12, 100_000, {
        "iterations": 8592, "discord": 9.28e-20, "error": 3.9e-10, "output": 1.278224,
        "crossings seen": [50, 50, 110],
    }, look_every=10),
    Run("notebook 1, [2,6,4,4,1]", (2, 6, 4, 4, 1), 123, ((0.8, -0.3),), 1e-12, 100_000, {
        "iterations": 67_557, "error": 1.55e-9, "crossings": 9, "last crossing": 20_320,
    }, look_every=20),
    Run("notebook 1, sigmoid", (2, 4, 1), 42, ((1.0, 0.5),), 1e-12, 100_000, {
        "iterations": 8796, "error": 9.0e-11,
    }, sigmoid=True),
    Run("notebook 1, batch of 5", (2, 4, 1), 42, (), 1e-11, 50_000, {
        "iterations": 7896, "error": 3.9e-9,
    }, start_seed=99, drawn=5),
    Run("appendix E.1", (2, 6, 4, 4, 1), 0, (), 1e-12, 62_500, {
        "error": 1.1e-6, "forward": 0.703263,
    }, start_seed=42, sigmoid=True, drawn=1),
)  # fmt: skip


def network(run: Run) -> torch.nn.Sequential:
    """He weights from the seed, zero biases."""
    torch.manual_seed(run.seed)
    layers: list[torch.nn.Module] = []
    for i, (m, n) in enumerate(zip(run.dims[:-1], run.dims[1:], strict=True)):
        layer = torch.nn.utils.skip_init(torch.nn.Linear, m, n, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(n, m, dtype=torch.float64) * math.sqrt(2 / m))
            layer.bias.zero_()
        layers += [layer, torch.nn.ReLU()] if i < len(run.dims) - 2 else [layer]
    return torch.nn.Sequential(*layers, *([torch.nn.Sigmoid()] if run.sigmoid else []))


def inputs(run: Run) -> torch.Tensor:
    """The printed input, or the one drawn right after the weights; call after `network`."""
    if run.drawn:
        return torch.randn(run.dims[0], run.drawn).T.double().contiguous()
    return torch.tensor(run.x, dtype=torch.float64)


def start(run: Run, problem: ts.Problem, seed: int) -> ts.Cochain:
    """The reference's random start: every pre-activation, then every activation, then φ(z)."""
    torch.manual_seed(seed)
    hidden = len(run.dims) - 2
    pre = [str(2 * layer) for layer in range(hidden + 1)]
    post = [str(2 * layer + 1) for layer in range(hidden)]
    last = [str(2 * hidden + 1)] if run.sigmoid else []
    drawn = {}
    for name in (*pre, *post, *last):
        dim = problem.sheaf.vertices[name].dim
        drawn[name] = torch.randn(dim, problem.batch, dtype=torch.float64).T.contiguous()
    return problem.clamp(drawn)


def euler_run(run: Run, dt: float = 0.01) -> dict:
    """The explicit scheme with the reference's own stopping rule: largest change below tol."""
    net = network(run)
    x = inputs(run)
    problem = ts.hold(ts.encode(net, x), x)
    walls = Walls.of(problem)
    c = start(run, problem, run.start_seed)
    flat = problem.free.flatten(c)
    signs = looked = walls.state(flat)
    crossings: list[int] = []
    seen: list[int] = []
    discord: dict[int, float] = {}
    step = 0
    while step < run.cap:
        if step in (0, 5000):
            discord[step] = float(2 * problem.energy(c).sum())
        c, step = euler_step(problem, c, dt), step + 1
        new = problem.free.flatten(c)
        now = walls.state(new)
        crossings += [step] * int((now != signs).sum())
        if step % run.look_every == 0:
            seen += [step] * int((now != looked).sum())
            looked = now
        change = float((new - flat).abs().max())
        signs, flat = now, new
        if step >= 5 and change < run.tol:
            break
    output = c[problem.sheaf.outputs[0]]
    limit = ts.heat_flow(
        problem, start(run, problem, run.start_seed), until=None, throw=False,
        tol=1e-10 if not run.sigmoid else 1e-7,
    )  # fmt: skip
    forward = net(x).detach()
    return {
        "iterations": step, "discord at start": discord[0],
        "discord at 5000": discord.get(5000), "discord": float(2 * problem.energy(c).sum()),
        "crossing steps": crossings, "crossings seen": seen, "output": output.flatten().tolist(),
        "forward": forward.flatten().tolist(),
        "error": float((output - forward).abs().max()),
        "limit": {
            "method": limit.method,
            "output": limit.output.flatten().tolist(),
            "error": float((limit.output - forward).abs().max()),
            "crossing times": [e.time for e in limit.events],
            "slides": len(limit.events.slides),
        },
    }  # fmt: skip


def write(run: Run, measured: dict) -> None:
    """Merge one run into the results."""
    entry = {run.name: {"published": run.published, "measured": measured}}

    def merged(known: dict) -> dict:
        runs = known.get("runs", {}) | entry
        ordered = {r.name: runs[r.name] for r in RUNS if r.name in runs}
        return {"environment": environment(), "runs": ordered}

    revise(RESULTS, merged)


def main() -> None:
    """Run everything, or only the runs named on the command line."""
    torch.set_num_threads(1)
    for run in RUNS:
        if sys.argv[1:] and run.name not in sys.argv[1:]:
            continue
        measured = euler_run(run)
        write(run, measured)
        print(run.name, measured["iterations"], measured["error"], flush=True)


if __name__ == "__main__":
    main()
