"""Tables 2 and 3 and the spectral evolution of the paper, with verified stationary points.

    python -m reproduce.diagnosis depth | sheaf | descent

`depth` takes seconds; `sheaf` (100,000 joint Euler steps) and `descent` (100,000 gradient steps,
twice) a few minutes each on one core. Each replaces its entry of reproduce/results/diagnosis.json,
and writes it as it goes.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measurement import as_json, environment, revise
from torchsheaf.boundary import Pin, hold, stationarity
from torchsheaf.diagnose import discord, spectra
from torchsheaf.examples.paper_tasks import PAPER_TASKS
from torchsheaf.flow import heat_flow
from torchsheaf.harmonic import harmonic_extension
from torchsheaf.sheaf import encode
from torchsheaf.train.joint_euler import JointEuler, JointState

RESULTS = Path(__file__).parent / "results" / "diagnosis.json"
TASK = PAPER_TASKS["paraboloid"]
STAGES = (0, 1_000, 10_000, 20_000, 50_000, 100_000)
INPUTS = 50

# Recomputed from the authors' code: (λ₁ median, std, λ_max median) at initialisation, seed 42.
PUBLISHED_DEPTH = {
    (2, 30, 1): (0.2248, 0.0200, 3.20),
    (2, 10, 8, 1): (0.0602, 0.0047, 7.79),
    (2, 8, 6, 4, 1): (0.0281, 0.0060, 7.95),
}
# steps: (λ₁, λ_max), weights seed 0.
PUBLISHED_EVOLUTION = {
    "sheaf": {
        0: (0.1911, 3.58), 1_000: (0.1126, 5.90), 10_000: (0.0511, 12.75),
        20_000: (0.0415, 15.64), 50_000: (0.0346, 18.84), 100_000: (0.0324, 20.47),
    },
    "gradient descent": {
        0: (0.1911, 3.58), 1_000: (0.1337, 5.18), 10_000: (0.0934, 7.80),
        20_000: (0.0731, 10.43), 50_000: (0.0635, 12.21), 100_000: (0.0610, 12.79),
    },
}  # fmt: skip
# Mean discord per edge, z_out held, 50 test inputs, seed 42.
PUBLISHED_PINNED = {
    "sheaf": {"0": 0.000664, "1": 0.002658, "2": 0.000141},
    "gradient descent": {"0": 0.000047, "1": 0.000199, "2": 0.000014},
}


def spectral_row(net: nn.Sequential, x: Tensor) -> dict[str, Any]:
    """Medians over inputs, and where the extreme modes live."""
    found = spectra(hold(encode(net, x), x), tol=1e-7)
    return {
        "gap": float(found.gap.quantile(0.5)),
        "gap_std": float(found.gap.std(correction=0)),
        "top": float(found.top.quantile(0.5)),
        "condition": float(found.condition.quantile(0.5)),
        "fiedler": {n: float(v.mean()) for n, v in found.fiedler_energy.items()},
        "top_energy": {n: float(v.mean()) for n, v in found.top_energy.items()},
        "stability": list(found.stability),
    }


def depth() -> dict[str, Any]:
    """Table 2: the gap against depth at initialisation."""
    x = TASK.data()[0][:INPUTS]
    rows = {}
    for widths, published in PUBLISHED_DEPTH.items():
        seeds = {s: spectral_row(replace(TASK, widths=widths).network(s), x) for s in (42, 0, 1)}
        rows[str(list(widths))] = {"seed 42": seeds[42], "published": published} | {
            "gap of seeds 42, 0, 1": [r["gap"] for r in seeds.values()]
        }
    return rows


def copy_of(state: JointState, run: int) -> nn.Sequential:
    net = TASK.network(0)
    one = JointState([], [], [w[run : run + 1] for w in state.w], state.y)
    one.write_to([net])
    return net


def sheaf_trained() -> dict[str, Any]:
    """Joint Euler: evolution from weights seed 0, pinned discord of seed 42; written as it goes.

    The stalks of both runs are drawn with seed 42, as the authors drew them.
    """
    x, y, test_x, test_y = TASK.data()
    flow = JointEuler(loss="l2", dt=0.005, beta=1 / 300)
    seeds = (0, 42)
    state = flow.start(
        [TASK.network(s) for s in seeds], x, y, stalks="random",
        generators=[torch.Generator().manual_seed(42) for _ in seeds],
    )  # fmt: skip
    found: dict[str, Any] = {"evolution": {}, "published": PUBLISHED_EVOLUTION["sheaf"]}

    def look(state: JointState) -> None:
        if state.steps in STAGES:
            loss = float((state.forward(x)[0] - y).square().mean())
            row = spectral_row(copy_of(state, 0), x[:INPUTS])
            found["evolution"][str(state.steps)] = {"loss": loss, **row}
            write("sheaf", found)

    look(state)
    flow.run(state, STAGES[-1], callback=look)
    found["pinned"] = pinned_discord(copy_of(state, 1), test_x[:INPUTS], test_y[:INPUTS])
    return found | {"published_pinned": PUBLISHED_PINNED["sheaf"]}


@torch.no_grad()
def descend(parameters: list[Tensor], x: Tensor, y: Tensor) -> None:
    """One step on the mean squared error of 2–30–1, by hand: a fifth of autograd's time."""
    w1, b1, w2, b2 = parameters
    h = torch.addmm(b1, x, w1.mT)
    a = h.relu()
    e = torch.addmm(b2, a, w2.mT).sub_(y).mul_(2 / len(y))
    d = torch.mm(e, w2).mul_(h > 0)
    for p, slope in ((w1, d.mT @ x), (b1, d.sum(0)), (w2, e.mT @ a), (b2, e.sum(0))):
        p.sub_(slope, alpha=TASK.rate)


def descent_trained() -> dict[str, Any]:
    """The same for full-batch gradient descent."""
    x, y, test_x, test_y = TASK.data()
    found: dict[str, Any] = {
        "evolution": {}, "published": PUBLISHED_EVOLUTION["gradient descent"]
    }  # fmt: skip
    for seed in (42, 0):
        net = TASK.network(seed)
        parameters = list(net.parameters())
        for step in range(STAGES[-1] + 1):
            if seed == 0 and step in STAGES:
                with torch.no_grad():
                    loss = float((net(x) - y).square().mean())
                row = spectral_row(net, x[:INPUTS])
                found["evolution"][str(step)] = {"loss": loss, **row}
                write("descent", found)
            descend(parameters, x, y)
        if seed == 42:
            found["pinned"] = pinned_discord(net, test_x[:INPUTS], test_y[:INPUTS])
            found["published_pinned"] = PUBLISHED_PINNED["gradient descent"]
    return found


def pinned_discord(net: nn.Sequential, x: Tensor, y: Tensor) -> dict[str, Any]:
    """Table 3's numbers at a verified stationary point, and where explicit Euler stands instead."""
    problem = hold(encode(net, x), x).pin(Pin("output", y))
    found = harmonic_extension(problem, start="forward")
    table = discord(found)
    euler = heat_flow(
        problem, start="forward", until=200.0, method="euler", dt=0.01, times=2,
        progress=False, throw=False,
    )  # fmt: skip
    chattering = discord(problem, euler.final)
    names = [e.name for e in table.edges]
    return {
        "mean": dict(zip(names, table.mean.tolist(), strict=True)),
        "std": dict(zip(names, table.values.std(0, correction=0).tolist(), strict=True)),
        "total": float(table.total.mean()),
        "stationarity": float(found.stationarity.max()),
        "sliding_gates": int(found.gates.sliding.sum()),
        "samples_with_sliding": int((found.gates.sliding > 0).sum()),
        "euler_mean": dict(zip(names, chattering.mean.tolist(), strict=True)),
        "euler_stationarity": float(stationarity(problem, euler.final).distance.max()),
        "euler_energy_excess": float((problem.energy(euler.final) - found.energy).abs().max()),
    }


PARTS = {"depth": depth, "sheaf": sheaf_trained, "descent": descent_trained}


def write(part: str, value: Any) -> None:
    """Replace one entry of the results file."""
    entry = {part: {"result": value, "environment": environment()}}
    revise(RESULTS, lambda known: known | entry)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0] not in PARTS:
        print(__doc__)
        return 2
    torch.set_num_threads(1)
    result = PARTS[arguments[0]]()
    write(arguments[0], result)
    print(as_json(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
