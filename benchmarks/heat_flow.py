"""How long does each integrator of the heat equation take to be right to 1e-6?

Three ReLU networks, 500 samples from random starts, states at 50 common times up to t = 10, error =
largest absolute difference from a reference (the exact flow by the other region solver, itself
checked against Euler's extrapolation in tests/orders). Each integrator runs over a ladder of
settings, loosest first, until one meets 1e-6 or its time is up; the best setting counts. All
right-hand sides are the same hand-written batched matrices, which favours the others: torchsheaf
pays for its own sweeps. Writes results/heat_flow.json.

An attempt is given up after `--factor` times the time that "exact" took: "not done" then means at
least that many times slower.

    python -m benchmarks.heat_flow [--factor 10] [--net 2,4,1]
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.integrate
import torch
from torch import Tensor

import torchsheaf as ts
from benchmarks.measurement import update_result
from torchsheaf.flow import Exact

NETS = ((2, 4, 1), (2, 6, 4, 4, 1), (2, 30, 1))
SAMPLES, UNTIL, TARGET = 500, 10.0, 1e-6
TIMES = torch.linspace(0, UNTIL, 50, dtype=torch.float64)


def relu_net(dims: tuple[int, ...]) -> torch.nn.Sequential:
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = []
    for i, (m, n) in enumerate(zip(dims[:-1], dims[1:], strict=True)):
        layers += [torch.nn.Linear(m, n)] + [torch.nn.ReLU()] * (i < len(dims) - 2)
    return torch.nn.Sequential(*layers).double()


class Plain:
    """The right-hand side by hand: flat states (batch, n) in the order z1, a1, z2, …"""

    def __init__(self, net: torch.nn.Sequential, x: Tensor) -> None:
        self.x = x
        self.layers = [(m.weight.detach(), m.bias.detach()) for m in net[::2]]
        self.widths = [w for m in net[::2] for w in (m.out_features, m.out_features)][:-1]

    def __call__(self, flat: Tensor) -> Tensor:
        parts = list(flat.split(self.widths, -1))
        force = [torch.zeros_like(p) for p in parts]
        below = self.x
        for k, (weight, bias) in enumerate(self.layers):
            miss = below @ weight.T + bias - parts[2 * k]
            force[2 * k] += miss
            if k:
                force[2 * k - 1] -= miss @ weight
            if 2 * k + 1 < len(parts):
                on = (parts[2 * k] >= 0).to(flat.dtype)
                gap = parts[2 * k + 1] - on * parts[2 * k]
                force[2 * k] += on * gap
                force[2 * k + 1] -= gap
                below = parts[2 * k + 1]
        return torch.cat(force, -1)


def euler(f: Plain, start: Tensor, dt: float, clock: Callable[[], None]) -> Tensor:
    per = round(float(TIMES[1]) / dt)
    c, out = start, [start]
    for _ in range(len(TIMES) - 1):
        for _ in range(per):
            c = c + float(TIMES[1]) / per * f(c)
        out.append(c)
        clock()
    return torch.stack(out)


def scipy_run(f: Plain, start: Tensor, name: str, tol: float, clock: Callable[[], None]) -> Tensor:
    shape = start.shape

    def velocity(t: float, y: np.ndarray) -> np.ndarray:
        clock()
        return f(torch.from_numpy(y).reshape(shape)).numpy().ravel()

    options: dict[str, Any] = {}
    if name in ("Radau", "BDF"):
        options["jac_sparsity"] = scipy.sparse.kron(
            scipy.sparse.eye(shape[0]), np.ones((shape[1], shape[1])), format="csc"
        )
    found = scipy.integrate.solve_ivp(
        velocity, (0, UNTIL), start.numpy().ravel(), method=name, t_eval=TIMES.numpy(), rtol=tol,
        atol=tol, **options,
    )  # fmt: skip
    if not found.success:
        raise RuntimeError(found.message)
    return torch.from_numpy(found.y.T.copy()).reshape(-1, *shape)


def torchdiffeq_run(
    f: Plain, start: Tensor, name: str, tol: float, clock: Callable[[], None]
) -> Tensor:
    from torchdiffeq import odeint

    def velocity(t: Tensor, y: Tensor) -> Tensor:
        clock()
        return f(y)

    return odeint(velocity, start, TIMES, rtol=tol, atol=tol, method=name)


LADDERS: dict[str, list[Any]] = {
    "torchdiffeq dopri5": [("dopri5", t) for t in (1e-4, 1e-6, 1e-8)],
    "scipy LSODA": [("LSODA", t) for t in (1e-4, 1e-6, 1e-8)],
    "scipy RK45": [("RK45", t) for t in (1e-4, 1e-6, 1e-8)],
    "scipy BDF": [("BDF", t) for t in (1e-5, 1e-7, 1e-9)],
    "euler": [("euler", float(TIMES[1]) / k) for k in (2000, 20_000, 200_000)],
    "scipy DOP853": [("DOP853", t) for t in (1e-4, 1e-6, 1e-8)],
    "torchdiffeq dopri8": [("dopri8", t) for t in (1e-4, 1e-6, 1e-8)],
    "scipy Radau": [("Radau", t) for t in (1e-5, 1e-7, 1e-9)],
}


class OutOfTime(RuntimeError):
    pass


def attempt(run: Callable[[Callable[[], None]], Tensor], budget: float) -> tuple[Any, float, str]:
    """The states, processor seconds, and what went wrong."""
    begun = time.process_time()

    def clock() -> None:
        if time.process_time() - begun > budget:
            raise OutOfTime

    try:
        states = run(clock)
    except OutOfTime:
        return None, time.process_time() - begun, f"not done after {budget:.1f} s"
    except (RuntimeError, AssertionError) as error:
        return None, time.process_time() - begun, str(error)[:100]
    return states, time.process_time() - begun, ""


def measure(dims: tuple[int, ...], factor: float) -> None:
    net = relu_net(dims)
    x = torch.randn(SAMPLES, 2, dtype=torch.float64)
    problem = ts.hold(ts.encode(net, x[:2]), x)
    start = problem.start("random", torch.Generator().manual_seed(1))
    flat = problem.free.flatten(start)
    plain = Plain(net, x)
    gap = plain(flat) + problem.free.flatten(problem.gradient(start))
    assert float(gap.abs().max()) < 1e-12

    def exact(solver: str | None) -> tuple[Tensor, int]:
        flow = ts.heat_flow(
            problem, start, until=UNTIL, method=Exact(solver), times=TIMES, record="states",
            tol=1e-12,
        )  # fmt: skip
        free = [flow.states[n].flatten(2) for n in problem.free.shapes]
        return torch.cat(free, 2), len(flow.events)

    small = problem.free.dim <= 32
    # At larger sizes there is no second region solver: the flow restarted at every recorded time.
    reference = exact("krylov")[0] if small else piecewise(problem, start)
    times = []
    for _ in range(3):
        begun = time.process_time()
        ours, events = exact(None)
        times.append(time.process_time() - begun)
    rows = {
        "torchsheaf exact": {
            "seconds": sorted(times)[1], "error": float((ours - reference).abs().max()),
            "setting": "default",
        }
    }  # fmt: skip
    budget = factor * sorted(times)[1]
    print(dims, rows, flush=True)
    for name, ladder in LADDERS.items():
        rows[name] = climb(name, ladder, plain, flat, reference, budget)
        print(dims, name, rows[name], flush=True)
        found = {"free": problem.free.dim, "switches": events, "integrators": rows}
        write(dims, found, factor)


def piecewise(problem: ts.Problem, start: ts.Cochain) -> Tensor:
    """The exact flow restarted at every recorded time: other Krylov spaces, other roundings."""
    out = [problem.free.flatten(start)]
    c = start
    for step in TIMES.diff():
        c = ts.heat_flow(problem, c, until=float(step), method="exact", times=2, tol=1e-12).final
        out.append(problem.free.flatten(c))
    return torch.stack(out)


def climb(
    name: str, ladder: list[Any], plain: Plain, flat: Tensor, reference: Tensor, budget: float
) -> dict[str, Any]:
    """Settings from loose to tight until the target is met or the budget is spent."""
    best: dict[str, Any] = {"seconds": None, "error": None, "setting": None}
    for method, setting in ladder:
        if name == "euler":
            states, seconds, wrong = attempt(lambda c, s=setting: euler(plain, flat, s, c), budget)
        elif name.startswith("scipy"):
            states, seconds, wrong = attempt(
                lambda c, m=method, s=setting: scipy_run(plain, flat, m, s, c), budget
            )
        else:
            states, seconds, wrong = attempt(
                lambda c, m=method, s=setting: torchdiffeq_run(plain, flat, m, s, c), budget
            )
        if states is None:
            return best | {"gave_up": f"setting {setting:.1e}: {wrong}", "spent": seconds}
        error = float((states - reference).abs().max())
        best = {"seconds": seconds, "error": error, "setting": setting, "met": error <= TARGET}
        if error <= TARGET:
            return best
    return best


def write(dims: tuple[int, ...], found: dict[str, Any], factor: float) -> None:
    """Replace one network's rows in the results."""
    terms = {
        "samples": SAMPLES, "until": UNTIL, "target": TARGET, "clock": "processor seconds",
        "given up after": f"{factor:g} times exact", "scipy": scipy.__version__,
    }  # fmt: skip
    update_result("heat_flow", ",".join(map(str, dims)), found | terms)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--factor", type=float, default=10.0, help="give up after so many times")
    parser.add_argument("--net", help="only this one, such as 2,4,1")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    nets = [tuple(map(int, arguments.net.split(",")))] if arguments.net else NETS
    for dims in nets:
        measure(dims, arguments.factor)


if __name__ == "__main__":
    main()
