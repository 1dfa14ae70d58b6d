"""Explicit Euler converges to the exact flow with slope 1 in dt: states and crossing times."""

import functools

import numpy as np
import pytest
import torch

import torchsheaf as ts

STEPS = (8e-3, 4e-3, 2e-3, 1e-3)
UNTIL = 2.0
BATCH = 48
# Ten random nets; half have the output held, so that slides persist.
NETS = [
    ((2, 4, 1), "unfused", False), ((2, 4, 1), "unfused", True), ((2, 4, 1), "fused", True),
    ((2, 6, 1), "unfused", True), ((2, 8, 1), "fused", False), ((2, 5, 4, 1), "unfused", False),
    ((2, 5, 4, 1), "unfused", True), ((3, 4, 4, 2), "fused", True),
    ((2, 6, 4, 4, 1), "unfused", False), ((2, 6, 4, 4, 1), "unfused", True),
]  # fmt: skip


def relu_net(dims, generator):
    layers = []
    for i, (m, n) in enumerate(zip(dims[:-1], dims[1:], strict=True)):
        layer = torch.nn.Linear(m, n, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(n, m, generator=generator).double() * (2 / m) ** 0.5)
            layer.bias.copy_(0.3 * torch.randn(n, generator=generator).double())
        layers += [layer, torch.nn.ReLU()] if i < len(dims) - 2 else [layer]
    return torch.nn.Sequential(*layers)


@functools.cache
def runs(number):
    dims, form, held = NETS[number]
    generator = torch.Generator().manual_seed(100 + number)
    net = relu_net(dims, generator)
    x = torch.randn(BATCH, dims[0], generator=generator, dtype=torch.float64)
    problem = ts.hold(ts.encode(net, x[:2], form=form), x)
    if held:
        y = 2 * torch.randn(BATCH, dims[-1], generator=generator, dtype=torch.float64)
        problem = problem.pin(ts.Pin("output", y))
    start = problem.start("random", generator)
    options = {"until": UNTIL, "times": 26, "record": "states", "throw": False}
    exact = ts.heat_flow(problem, start, method="exact", **options)
    eulers = [ts.heat_flow(problem, start, method="euler", dt=dt, **options) for dt in STEPS]
    return exact, eulers


def slope(errors):
    return np.polyfit(np.log(STEPS), np.log(errors), 1)[0]


def distance(a, b):
    """Mean over samples and times of ‖c_a − c_b‖."""
    square = sum((a.states[n] - b.states[n]).flatten(2).square().sum(2) for n in a.states)
    return float(square.sqrt().mean())


def first_switches(flow):
    """(sample, wall) → time of its first switch."""
    found = {}
    for t, s, w in zip(
        flow.events.time.tolist(), flow.events.sample.tolist(), flow.events.wall.tolist(),
        strict=True,
    ):  # fmt: skip
        found.setdefault((s, w), t)
    return found


@pytest.mark.parametrize("number", range(len(NETS)))
def test_states_converge_with_slope_one(number):
    exact, eulers = runs(number)
    assert slope([distance(exact, e) for e in eulers]) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("number", range(len(NETS)))
def test_crossing_times_converge_with_slope_one(number):
    exact, eulers = runs(number)
    wanted = first_switches(exact)
    found = [first_switches(e) for e in eulers]
    # A graze that a coarse step misses or makes up has no time to compare.
    shared = set(wanted).intersection(*found)
    assert len(shared) > 0.95 * len(wanted)
    errors = [
        np.mean([min(abs(f[k] - wanted[k]), 100 * dt) for k in shared])
        for f, dt in zip(found, STEPS, strict=True)
    ]
    assert slope(errors) == pytest.approx(1, abs=0.05)


def test_the_runs_slide():
    """Not only crossings were compared: trajectories with slides are among them."""
    slides = [len(runs(i)[0].events.slides) for i in range(len(NETS))]
    assert sum(s > 0 for s in slides) >= 8
    assert sum(slides) > 200


@pytest.mark.parametrize("number", [1, 4])
def test_the_energy_that_chatter_leaves_at_a_minimum_on_a_wall_falls_as_dt(number):
    """Euler beside the exact method's end: E stays O(dt) above it, however small the step."""
    exact, _ = runs(number)
    problem = exact.problem
    end = ts.heat_flow(problem, exact.final, None, "exact").final
    beside = end + 1e-3 * problem.start("random", torch.Generator().manual_seed(1))
    steps = [8 * dt for dt in STEPS]
    left = []
    for dt in steps:
        flow = ts.heat_flow(problem, beside, 6.0, "euler", dt=dt, times=25, throw=False)
        left.append(float((flow.energy[12:] - problem.energy(end)).mean()))
    if NETS[number][2]:
        assert min(left) > 1e-5
        assert slope(left) == pytest.approx(1, abs=0.1)
    else:  # no minimum lies on a wall
        assert max(left) < 1e-7
