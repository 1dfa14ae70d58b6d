"""Attention written out with a mask of −∞, and other masks: no vertex is infinite."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import torchsheaf as ts
from tests.reference.networks import fill, randn

CAUSAL = torch.ones(4, 4).tril()
FLOAT = torch.zeros(4, 4).masked_fill(CAUSAL == 0, -math.inf).double()
FINITE = torch.zeros(4, 4, dtype=torch.float64).masked_fill(
    CAUSAL == 0, torch.finfo(torch.float64).min
)


def filled(s: Tensor) -> Tensor:
    return s.masked_fill(CAUSAL == 0, -math.inf)


def chosen(s: Tensor) -> Tensor:
    return torch.where(CAUSAL.bool(), s, torch.tensor(-math.inf, dtype=s.dtype))


def scaled(s: Tensor) -> Tensor:
    return (s.masked_fill(CAUSAL == 0, -math.inf) * 0.5 + 1) / 0.5


def written(s: Tensor) -> Tensor:
    s = s.clone()
    s[:, CAUSAL == 0] = -math.inf
    return s


MASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "filled": filled, "chosen": chosen, "scaled": scaled,
    "added": lambda s: s + FLOAT, "the least number": lambda s: s + FINITE,
}  # fmt: skip


class Head(nn.Module):
    """One causal head as a text book writes it."""

    def __init__(self, mask: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(3, 3) for _ in range(3))
        self.o = nn.Linear(3, 2)
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        p = torch.softmax(self.mask(self.q(x) @ self.k(x).mT), -1)
        return self.o(p @ self.v(x))


@pytest.mark.parametrize("name", MASKS)
def test_a_held_head_is_at_rest_for_the_energy_written_out(name: str) -> None:
    model, x = fill(Head(MASKS[name]), 3), randn(1, 2, 4, 3)
    sheaf = ts.encode(model, x)
    assert list(sheaf.vertices) == ["input", "q", "k", "matmul", "softmax", "v", "matmul_1", "o"]
    problem = ts.hold(sheaf, x)
    forward = ts.harmonic_extension(problem)
    assert torch.equal(forward.output, model(x))
    wanted = forward.output.detach() + 0.2 * randn(2, 2, 4, 2)
    found = ts.harmonic_extension(problem.pin(ts.Pin("output", wanted)))
    c = {n: found.cochain[n].clone().requires_grad_() for n in sheaf.vertices}
    rest = [
        c["q"] - model.q(x), c["k"] - model.k(x), c["v"] - model.v(x),
        c["matmul"] - c["q"] @ c["k"].mT,
        c["softmax"] - torch.softmax(MASKS[name](c["matmul"]), -1),
        c["matmul_1"] - c["softmax"] @ c["v"], c["o"] - model.o(c["matmul_1"]),
    ]  # fmt: skip
    energy = sum(0.5 * r.square().flatten(1).sum(1) for r in rest)
    torch.testing.assert_close(energy, found.energy, rtol=1e-10, atol=0)
    free = [c[n] for n in ("q", "k", "v", "matmul", "softmax", "matmul_1")]
    slopes = torch.autograd.grad(energy.sum(), free)
    assert max(float(g.abs().max()) for g in slopes) < 1e-7
    spectrum = ts.spectrum(problem, k=1, at=found.cochain).values
    assert bool((spectrum > 0).all())


class MaskedMax(nn.Module):
    """The largest entry among those that a mask leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        seen = torch.tensor([True, True, False, True])[:, None]
        return self.last(self.first(x).masked_fill(~seen, -math.inf).amax(1))


def test_a_masked_maximum_is_the_maximum_of_what_is_seen() -> None:
    class Seen(MaskedMax):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x)[:, [0, 1, 3]].amax(1))

    x, wanted, energies = randn(1, 3, 4, 3), randn(2, 3, 2), []
    for model in (fill(MaskedMax(), 5), fill(Seen(), 5)):
        problem = ts.hold(ts.encode(model, x), x).pin(ts.Pin("output", wanted))
        energies.append(ts.harmonic_extension(problem).energy)
    torch.testing.assert_close(*energies, rtol=1e-9, atol=0)


def test_attention_that_returns_its_weights_takes_a_mask_of_infinities() -> None:
    class Weights(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.attention(x, x, x, attn_mask=FLOAT)

    model, x = fill(Weights(), 4), randn(1, 3, 4, 4)
    sheaf = ts.encode(model, x)
    forward = ts.harmonic_extension(ts.hold(sheaf, x)).cochain
    assert all(bool(forward[n].isfinite().all()) for n in sheaf.vertices)
    for name, returned in zip(sheaf.outputs, model(x), strict=True):
        torch.testing.assert_close(forward[name], returned, rtol=0, atol=1e-14)
    weights = sheaf.outputs[1]
    answer = ts.counterfactual(sheaf, x, ts.Pin(weights, CAUSAL / CAUSAL.sum(-1, keepdim=True)))
    assert bool((answer.price > 0).all())


def test_the_largest_of_each_sample_is_a_stalk_without_axes() -> None:
    class Largest(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x).max(-1).values

    model, x = fill(Largest(), 0), randn(1, 5, 3)
    problem = ts.hold(ts.encode(model, x), x)
    top = ts.harmonic_extension(problem).output
    found = ts.harmonic_extension(problem.pin(ts.Pin("output", top + 0.1)))
    # one entry moves up by t, the output's edge keeps 0.1 − t: halves each
    torch.testing.assert_close(found.energy, torch.full_like(top, 0.0025), rtol=1e-8, atol=0)
    ended = ts.heat_flow(problem.pin(ts.Pin("output", top + 0.1)), until=60.0)
    torch.testing.assert_close(ended.energy[-1], found.energy, rtol=1e-6, atol=0)


@pytest.mark.parametrize("frozen", [False, True])
def test_torchs_encoder_takes_a_padding_mask(frozen: bool) -> None:
    """Torch's fused kernel puts 0 at padded places; the network is what the layers say."""

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 1)

        def forward(self, x: Tensor, padded: Tensor) -> Tensor:
            return self.encoder(x, src_key_padding_mask=padded)

    model, x = fill(Padded(), 0), randn(1, 3, 4, 4)
    padded = torch.tensor([[False, False, False, True]] * 3)
    slow = model(x, padded).detach()  # with gradients asked for
    model.requires_grad_(not frozen)
    sheaf = ts.encode(model, (x, padded))
    found = ts.harmonic_extension(ts.hold(sheaf, (x, padded))).output
    torch.testing.assert_close(found, slow, rtol=0, atol=1e-13)
    assert torch.backends.mha.get_fastpath_enabled()
