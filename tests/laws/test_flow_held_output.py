"""With the output held the exact flow arrives: 500 of 500 samples, verified from outside."""

import pytest
import torch

import torchsheaf as ts


@pytest.mark.slow
@pytest.mark.parametrize("dims", [(2, 30, 1), (2, 16, 16, 1)])
def test_every_sample_stops_at_a_verified_stationary_point(dims):
    torch.manual_seed(0)
    layers = []
    for i, (m, n) in enumerate(zip(dims[:-1], dims[1:], strict=True)):
        layers += [torch.nn.Linear(m, n)] + [torch.nn.ReLU()] * (i < len(dims) - 2)
    net = torch.nn.Sequential(*layers).double()
    x = torch.randn(500, 2, dtype=torch.float64)
    y = 2 * torch.randn(500, 1, dtype=torch.float64)
    problem = ts.hold(ts.encode(net, x[:2]), x).pin(ts.Pin("output", y))
    generator = torch.Generator().manual_seed(3)
    flow = ts.heat_flow(problem, until=None, times=30, generator=generator)
    assert flow.outcome is ts.Outcome.SETTLED
    assert bool(flow.stopped.isfinite().all())
    found = ts.stationarity(problem, flow.final)
    assert float(found.distance.max()) <= 1e-10
    # The case that Euler cannot finish is there: equilibria that sit on walls.
    assert int((found.gates.sliding > 0).sum()) > 50
    assert bool((flow.energy[1:] <= flow.energy[:-1] * (1 + 1e-12) + 1e-20).all())
