"""Gates where the batch is not the first axis, against the same model written batch first."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import hardswish

from tests.reference.networks import fill, randn
from torchsheaf import Cochain, Pin, encode, harmonic_extension, heat_flow, hold, stationarity

Gate = Callable[[Tensor, Tensor], Tensor]


class Gated(nn.Module):
    """A linear layer, a gate, a linear layer; `gate` also moves the batch where that is asked."""

    def __init__(self, gate: Gate, features: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 4), nn.Linear(features, 2)
        self.register_buffer("slope", torch.tensor([0.1, -0.2, 0.3, 0.5], dtype=torch.float64))
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.gate(self.first(x), self.slope))


def merged(function: Callable[[Tensor], Tensor]) -> Gate:
    return lambda h, _: function(h.reshape(-1, h.shape[-1])).reshape(h.shape[0], 5, -1)


def swapped(function: Callable[[Tensor], Tensor]) -> Gate:
    return lambda h, _: function(h.transpose(0, 1)).transpose(0, 1)


def pooled(h: Tensor) -> Tensor:
    return torch.max_pool1d(h, 2)


PAIRS: dict[str, tuple[Gate, Gate, int]] = {
    "merged relu": (merged(torch.relu), lambda h, _: h.relu(), 4),
    "swapped relu": (swapped(torch.relu), lambda h, _: h.relu(), 4),
    "merged pool": (
        lambda h, _: pooled(h.reshape(-1, 1, 4)).reshape(h.shape[0], 5, 2),
        lambda h, _: pooled(h),
        2,
    ),
    "swapped amax": (
        lambda h, _: h.transpose(0, 1).amax(0, keepdim=True).transpose(0, 1),
        lambda h, _: h.amax(1, keepdim=True),
        4,
    ),
    "swapped amin, last axis": (
        swapped(lambda h: h.amin(-1, keepdim=True)), lambda h, _: h.amin(-1, keepdim=True), 1
    ),
    "merged selu": (merged(torch.selu), lambda h, _: torch.selu(h), 4),
    "swapped hardswish": (swapped(hardswish), lambda h, _: hardswish(h), 4),
    "merged prelu": (
        lambda h, s: torch.prelu(h.reshape(-1, 4), s).reshape(h.shape),
        lambda h, s: torch.prelu(h.mT, s).mT,
        4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", ["unfused", "fused"])
@pytest.mark.parametrize("name", PAIRS)
def test_a_moved_batch_is_the_same_sheaf(name: str, form: str) -> None:
    *gates, features = PAIRS[name]
    x, problems = randn(1, 3, 5, 6), []
    for gate in gates:
        model = fill(Gated(gate, features), 2)
        sheaf = encode(model, x, form=form)
        assert torch.equal(sheaf.forward(x)[sheaf.outputs[0]], model(x).detach())
        problems.append(hold(sheaf, x).pin(Pin("output", 0.3)))
    starts = [p.start("forward") for p in problems]
    spectra = [
        torch.linalg.eigvalsh(p.laplacian(c).to_dense())
        for p, c in zip(problems, starts, strict=True)
    ]
    torch.testing.assert_close(*spectra, rtol=0, atol=1e-10)
    moved = harmonic_extension(problems[0], start="forward")
    assert moved.outcome.ok
    names = zip(problems[1].sheaf.vertices.items(), moved.cochain.values(), strict=True)
    same = Cochain(
        {n: (c.mT if v.shape == (4, 5) else c).reshape(-1, *v.shape) for (n, v), c in names}
    )
    torch.testing.assert_close(problems[1].energy(same), moved.energy, rtol=1e-12, atol=0)
    plain = stationarity(problems[1], same)
    assert float(plain.distance.max()) <= 1e-7
    assert torch.equal(moved.gates.sliding, plain.gates.sliding)
    for state in moved.gates.states.values():
        assert state.shape[0] == 3
    for problem, c in zip(problems, starts, strict=True):
        distances = [
            stationarity(problem.samples(torch.tensor([i])), c.samples([i])).distance
            for i in range(3)
        ]
        torch.testing.assert_close(torch.cat(distances), stationarity(problem, c).distance)


def test_a_flow_with_a_moved_batch() -> None:
    moved, plain, features = PAIRS["merged relu"]
    x, ends = randn(1, 3, 5, 6), []
    for gate in (moved, plain):
        problem = hold(encode(fill(Gated(gate, features), 2), x), x)
        flow = heat_flow(problem, until=2.0, times=5, start="zeros")
        ends.append(torch.cat([flow.energy, flow.output.flatten(1).mT]))
    torch.testing.assert_close(*ends, rtol=0, atol=1e-8)
