"""How many sweeps, and how long, until every sample of a held network is stationary?

    python -m benchmarks.equilibrium ["nets" "digits, trained" "depth" "warm" "memory" "brute" …]

Without a name every part runs. Each replaces its entry of benchmarks/results/equilibrium.json.

Output held hard, 500 samples, float64, one thread. Paraboloid: [2, …, 1] with x uniform on
[−2, 2]², y = ‖x‖². Digits: scikit-learn's 8×8 images / 16, one-hot labels. He-normal weights,
zero biases, seed 0; "trained" is full-batch Adam on the mean squared error over the same samples
(paraboloid 500 steps at 1e-2, digits 200 steps at 3e-3). A sweep is one forward or reverse pass
over the samples still active, so the count is that of the slowest sample.
"""

import json
import statistics
import subprocess
import sys
import time
from itertools import pairwise, product
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import torchsheaf as ts
from benchmarks.equilibrium_euler import euler_until
from benchmarks.equilibrium_shapes import SHAPES, overlapping
from benchmarks.measurement import update_result
from tests.reference.brute_force import brute_force
from tests.reference.networks import randn, relu_mlp

NETS = {
    "1H": [2, 30, 1],
    "2H": [2, 16, 16, 1],
    "4H": [2, 16, 16, 16, 16, 1],
    "D20": [64] * 21 + [10],
}
LIMITS = {"1H": (60, 60), "2H": (200, 200), "4H": (400, 400), "D20": (2500, 700)}


def network(widths: list[int], x: Tensor, y: Tensor, *, trained: bool) -> nn.Sequential:
    source, layers = torch.Generator().manual_seed(0), []
    for m, n in pairwise(widths):
        layer = nn.Linear(m, n, dtype=torch.float64)
        with torch.no_grad():
            drawn = torch.randn(n, m, generator=source, dtype=torch.float64)
            layer.weight.copy_(drawn * (2 / m) ** 0.5)
            layer.bias.zero_()
        layers += [layer, nn.ReLU()]
    net = nn.Sequential(*layers[:-1])
    if trained:
        steps, rate = (500, 1e-2) if widths[0] == 2 else (200, 3e-3)
        optimiser = torch.optim.Adam(net.parameters(), rate)
        for _ in range(steps):
            optimiser.zero_grad()
            (net(x) - y).square().mean().backward()
            optimiser.step()
    return net


def data(widths: list[int]) -> tuple[Tensor, Tensor]:
    if widths[0] == 2:
        x = torch.rand(500, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        x = 4 * x - 2
        return x, x.square().sum(1, keepdim=True)
    digits = load_digits()
    y = nn.functional.one_hot(torch.tensor(digits.target[:500]), 10).double()
    return torch.tensor(digits.data[:500] / 16), y


def held(widths: list[int], *, trained: bool) -> ts.Problem:
    x, y = data(widths)
    net = network(widths, x, y, trained=trained)
    return ts.hold(ts.encode(net, x), x).pin(ts.Pin("output", y))


def solved(problem: ts.Problem, **options: Any) -> tuple[ts.Extension, dict[str, Any]]:
    times = []
    while len(times) < 5 and sum(times) < 2:
        begin = time.perf_counter()
        found = ts.harmonic_extension(problem, throw=False, **{"max_passes": 8000} | options)
        times.append(time.perf_counter() - begin)
    seconds = statistics.median(times)
    return found, {
        "sweeps": found.passes,
        "seconds": round(seconds, 3),
        "energy": float(found.energy.sum()),
        "worst stationarity": float(found.stationarity.max()),
        "samples above 1e-8": int((found.stationarity > 1e-8).sum()),
        "sliding gates per sample": float(found.gates.sliding.double().mean()),
    }


def nets() -> dict[str, Any]:
    """Paraboloid nets: sweeps and energies, beside block descent run to convergence."""
    cases = [(name, trained) for name in ("1H", "2H", "4H") for trained in (False, True)]
    return {_title(n, t): _beside_descent(n, t, budget=12_000) for n, t in cases}


def digits_trained() -> dict[str, Any]:
    """Twenty hidden layers of width 64 on digits, trained."""
    return {_title("D20", True): _beside_descent("D20", True, budget=1500)}


def digits_untrained() -> dict[str, Any]:
    """Twenty hidden layers of width 64 on digits, untrained."""
    return {_title("D20", False): _beside_descent("D20", False, budget=1500)}


def _title(name: str, trained: bool) -> str:
    return f"{name} {'trained' if trained else 'untrained'}"


def _beside_descent(name: str, trained: bool, *, budget: int) -> dict[str, Any]:
    """Where block descent is not done after `budget` passes, Newton finishes from its end."""
    problem = held(NETS[name], trained=trained)
    _, auto = solved(problem)
    auto["limit"] = LIMITS[name][trained]
    print(name, trained, auto, flush=True)
    begin = time.perf_counter()
    descent = ts.harmonic_extension(
        problem, solver="block descent", start="forward", throw=False, max_passes=budget
    )
    finished = bool((descent.stationarity <= 1e-8).all())
    sweeps = descent.passes
    if not finished:
        descent = ts.harmonic_extension(problem, start=descent.cochain, throw=False)
    row = {
        "energy": float(descent.energy.sum()),
        "sweeps": sweeps,
        "seconds": round(time.perf_counter() - begin, 2),
        "finished by Newton": not finished,
    }
    ratio = auto["energy"] / row["energy"] - 1
    print(name, trained, auto, f"{ratio:+.2%}", flush=True)
    return {"auto": auto, "block descent": row, "energy above block descent": ratio}


def depth() -> dict[str, Any]:
    """Digits nets of width 64: sweeps over the number of hidden layers (20: see the other part)."""
    out = {}
    for layers in (2, 5, 10):
        for trained in (False, True):
            problem = held([64] * (layers + 1) + [10], trained=trained)
            _, row = solved(problem)
            out[f"{layers} {'trained' if trained else 'untrained'}"] = row
            print(layers, trained, row["sweeps"], flush=True)
    return out


def warm() -> dict[str, Any]:
    """Ten gradient steps on the weights in a row: from the last equilibrium, and cold."""
    out = {}
    deep = [64] * 6 + [10]
    cases = [(f"4H {t}", NETS["4H"], t == "trained") for t in ("untrained", "trained")]
    cases += [(f"D5 {t}", deep, t == "trained") for t in ("untrained", "trained")]
    for rate, (key, widths, trained) in product((1e-3, 1e-4), cases):
        key = f"{key}, rate {rate:g}"
        problem = held(widths, trained=trained)
        model = problem.sheaf.network.model
        assert model is not None
        x, y = data(widths)
        last = ts.harmonic_extension(problem)
        pairs = []
        for _ in range(10):
            model.zero_grad()
            (0.5 * (model(x) - y).square().sum(1)).mean().backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= rate * p.grad
            cold = ts.harmonic_extension(problem)
            last = ts.harmonic_extension(problem, start=last.cochain)
            pairs.append((last.passes, cold.passes))
        ratios = [w / c for w, c in pairs]
        out[key] = {
            "warm and cold sweeps": pairs,
            "total warm over total cold": sum(w for w, _ in pairs) / sum(c for _, c in pairs),
            "worst step": max(ratios),
            "energy, warm over cold": float(last.energy.sum() / cold.energy.sum()),
        }
        print(key, out[key], flush=True)
    return out


def brute() -> dict[str, Any]:
    """200 random nets with up to eight gates: 16 starts against all 3^gates states."""
    shapes = [[2, 4, 1], [2, 6, 1], [2, 3, 3, 1], [2, 4, 4, 1], [2, 2, 2, 2, 1], [3, 8, 2]]
    hits, below, worst = 0, 0, 0.0
    for seed in range(200):
        widths = shapes[seed % len(shapes)]
        net = relu_mlp(widths, seed)
        x, y = randn(seed + 1000, 1, widths[0]), 2 * randn(seed + 2000, 1, widths[-1])
        least = brute_force(net, x[0], y[0]).least
        problem = ts.hold(ts.encode(net, x), x).pin(ts.Pin("output", y))
        source = torch.Generator().manual_seed(seed)
        found = float(ts.harmonic_extension(problem, starts=16, generator=source).energy)
        gap = (found - least) / max(least, 1e-12)
        hits, below, worst = hits + (gap < 1e-6), below + (gap < -1e-7), max(worst, gap)
    return {"cases": 200, "global minimum found": hits, "below it": below, "worst gap": worst}


def memory() -> dict[str, Any]:
    """10M parameters, batch 128: peak memory of the solve over activations plus weights."""
    line = [sys.executable, "-m", "benchmarks.equilibrium_memory"]
    done = subprocess.run(line, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def euler() -> dict[str, Any]:
    """The paper's scheme at its largest stable step, until within 1% of our energy."""
    out = {}
    for name in NETS:
        for trained in (True, False):
            problem = held(NETS[name], trained=trained)
            _, ours = solved(problem)
            row = euler_until(problem, ours["energy"], cap=20_000)
            row["ours, seconds"] = ours["seconds"]
            row["ours, sweeps"] = ours["sweeps"]
            row["times faster"] = row["seconds"] / ours["seconds"]
            row["ours, to the same 1%"] = near = until_near(problem, ours)
            row["times faster to the same 1%"] = row["seconds"] / near["seconds"]
            row["sweeps over ours to the same 1%"] = 2 * row["steps"] / near["sweeps"]
            key = f"{name} {'trained' if trained else 'untrained'}"
            out[key] = row
            print(key, row, flush=True)
    return out


def euler_random() -> dict[str, Any]:
    """The same from random starts, where the paper's code starts unless told otherwise."""
    out = {}
    for name in ("1H", "2H", "4H"):
        for trained in (True, False):
            problem = held(NETS[name], trained=trained)
            _, ours = solved(problem)
            key = f"{name} {'trained' if trained else 'untrained'}"
            row = euler_until(problem, ours["energy"], cap=20_000, start="random")
            out[key] = row | {"times faster": row["seconds"] / ours["seconds"]}
            print(key, out[key], flush=True)
    return out


def until_near(problem: ts.Problem, ours: dict[str, Any]) -> dict[str, Any]:
    """Our own sweeps and seconds until E is within 1% of where we end: Euler's stopping rule."""

    few, enough = 1, ours["sweeps"]
    while few < enough:  # E falls from sweep to sweep
        middle = (few + enough) // 2
        found = ts.harmonic_extension(problem, max_passes=middle, throw=False)
        near = float(found.energy.sum()) <= 1.01 * ours["energy"]
        few, enough = (few, middle) if near else (middle + 1, enough)
    _, row = solved(problem, max_passes=few)
    return {key: row[key] for key in ("sweeps", "seconds", "energy")}


def shapes() -> dict[str, Any]:
    """Nets that are not paths: residual, convolutional with max-pool, other gates, smooth."""
    digits = load_digits()
    images = torch.tensor(digits.data[:200] / 16).reshape(-1, 1, 8, 8)
    labels = nn.functional.one_hot(torch.tensor(digits.target[:200]), 10).double()
    points, places, values = randn(1, 200, 3), randn(1, 200, 5, 3), randn(2, 200, 2)
    out = {}
    for name, make in SHAPES.items():
        picture = name.startswith("conv")
        x, y = (images, labels) if picture else (points, values)
        x = places if name == "attention" else x
        problem = ts.hold(ts.encode(make(), x), x).pin(ts.Pin("output", y))
        _, out[name] = solved(problem)
        print(name, out[name]["sweeps"], out[name]["worst stationarity"], flush=True)
    return out


PARTS = {
    "nets": nets, "digits, trained": digits_trained, "digits, untrained": digits_untrained,
    "depth": depth, "warm": warm, "brute": brute, "memory": memory,
    "euler": euler, "euler, random start": euler_random, "shapes": shapes,
    "overlapping": overlapping,
}  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    for name in sys.argv[1:] or PARTS:
        update_result("equilibrium", name, PARTS[name]())


if __name__ == "__main__":
    main()
