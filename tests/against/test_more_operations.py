"""Operations beyond the usual layers: values and gradients are autograd's, and pins settle."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchsheaf as ts
from tests.reference.networks import fill, randn

Body = Callable[[Tensor, Tensor], Tensor]
ONES = torch.ones(3, dtype=torch.float64)
PLACES = torch.tensor([0, 2, 1, 0, 2, 1])


def assigned(h: Tensor) -> Tensor:
    y = h.clone()
    y[:, 0] = 1.0
    y[:, 1:3] *= 2
    y[:, [3, 4]] = y[:, [0, 1]]
    return y + h


def zeroed(h: Tensor) -> Tensor:
    y = 2 * h
    y[:, 1].zero_()
    return y.masked_fill_(PLACES == 0, 0.5)


def routed(h: Tensor, g: Tensor) -> Tensor:
    """Two of three experts, mixed with the softmax of their scores."""
    best = h[:, :3].topk(2, -1).values
    weight = torch.softmax(best, -1)
    return weight[:, :1] * g + weight[:, 1:] * torch.tanh(g)


BODIES: dict[str, Body] = {
    # in an order
    "topk": lambda h, g: h.topk(3, -1).values,
    "sort": lambda h, g: torch.sort(h, -1, descending=True)[0] * g,
    "median": lambda h, g: h.median(-1, keepdim=True).values + g,
    "kthvalue": lambda h, g: h.kthvalue(2, -1, keepdim=True).values + g,
    "cummax": lambda h, g: h.cummax(-1).values,
    "routing by value": routed,
    "a maximum over two axes": lambda h, g: h.view(-1, 1, 2, 3).amax((2, 3)) + g,
    "a minimum over both axes": lambda h, g: (h[:, :, None] + g[:, None]).amin((1, -1))[:, None],
    # without a forward mode
    "grid_sample": lambda h, g: F.grid_sample(
        h.view(-1, 1, 2, 3), torch.tanh(g).view(-1, 1, 3, 2), align_corners=False
    ).flatten(1),
    "spatial transformer": lambda h, g: F.grid_sample(
        g.view(-1, 1, 2, 3), F.affine_grid(h.view(-1, 2, 3), [h.shape[0], 1, 2, 2], False)
    ).flatten(1),
    "cdist": lambda h, g: torch.cdist(h.view(-1, 2, 3), g.view(-1, 2, 3)).flatten(1),
    "distance to centres": lambda h, g: torch.exp(-torch.cdist(h, torch.eye(6).double())),
    "sum of absolute values": lambda h, g: torch.cdist(h[:, None], g[:, None], p=1)[:, 0],
    # composed of others by torch
    "clip": lambda h, g: torch.clip(h, -0.5, 0.5),
    "huber": lambda h, g: F.huber_loss(h, g, reduction="none", delta=0.3),
    "smooth l1 to a constant": lambda h, g: F.smooth_l1_loss(
        h, ONES.repeat(2).expand_as(h), reduction="none", beta=0.7
    ) + g,
    "clamp by tensors": lambda h, g: torch.clamp(h, g - 1, g + 1),
    "swapdims": lambda h, g: h.view(-1, 2, 3).swapdims(1, 2).flatten(1) * g,
    "moveaxis": lambda h, g: h.view(-1, 2, 3).moveaxis(1, 2).flatten(1) * g,
    "hsplit": lambda h, g: torch.hsplit(h, 2)[1],
    "diag_embed": lambda h, g: (torch.diag_embed(h) @ g[..., None])[..., 0],
    "tensordot": lambda h, g: torch.tensordot(h, torch.ones(6, 2).double(), 1),
    "var_mean": lambda h, g: torch.cat(torch.var_mean(h, -1, keepdim=True), -1),
    "pairwise_distance": lambda h, g: F.pairwise_distance(h, g)[:, None],
    "mse": lambda h, g: F.mse_loss(h, g, reduction="none"),
    "aminmax": lambda h, g: torch.aminmax(h, dim=-1, keepdim=True)[0] + g,
    "index_fill": lambda h, g: h.index_fill(1, torch.tensor([0, 2]), 3.0),
    "assignments": lambda h, g: assigned(h),
    "zero_": lambda h, g: zeroed(h),
    # complex numbers on the way
    "spectrum": lambda h, g: torch.fft.rfft(h).abs(),
    "mixing by Fourier": lambda h, g: torch.fft.fft(torch.fft.fft(h), n=6).real * g,
    "convolution by Fourier": lambda h, g: torch.fft.irfft(
        torch.fft.rfft(h) * torch.fft.rfft(g), n=6
    ),
    "a filter": lambda h, g: torch.fft.irfft(torch.fft.rfft(h) * torch.arange(4).mul(1j), n=6),
    "rotary": lambda h, g: torch.view_as_real(
        torch.view_as_complex(h.view(-1, 3, 2)) * torch.polar(ONES, torch.arange(3).double())
    ).flatten(1),
    "polar": lambda h, g: torch.polar(1 + h.square(), g).imag,
    "conjugate": lambda h, g: (torch.complex(h, g) * torch.complex(g, h).conj()).real,
    "short time": lambda h, g: torch.view_as_real(
        torch.stft(h, 4, window=ONES.new_ones(4), return_complex=True)
    ).flatten(1),
    # graphs
    "largest neighbour": lambda h, g: h.new_zeros(h.shape[0], 3).scatter_reduce(
        1, PLACES.expand_as(h), h, "amax", include_self=False
    ),
    "mean of neighbours": lambda h, g: g[:, :3].scatter_reduce(1, PLACES.expand_as(h), h, "mean"),
    "shaped by another": lambda h, g: h * torch.ones(3, 2).double().view_as(g[0]).expand_as(g),
    "inverse": lambda h, g: torch.linalg.inv(
        h.view(-1, 2, 3) @ h.view(-1, 2, 3).mT + torch.eye(2).double()
    ).flatten(1),
}  # fmt: skip


class Between(nn.Module):
    """Two linear images of x, an operation of both, and another linear layer."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.h, self.g, self.body = nn.Linear(4, 6), nn.Linear(4, 6), body
        with torch.no_grad():
            width = body(torch.randn(2, 6).double(), torch.randn(2, 6).double()).shape[1]
        self.out = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(self.h(x), self.g(x)))


@pytest.mark.filterwarnings("ignore:Default grid_sample and affine_grid")
@pytest.mark.parametrize("name", BODIES)
def test_values_and_gradients_are_autograds(name: str) -> None:
    net, x, y = fill(Between(BODIES[name]), 2), randn(3, 5, 4), randn(4, 5, 2)
    sheaf = ts.encode(net, x, unused_parameters="allow")
    for given in (x, randn(5, 7, 4), randn(6, 1, 4)):
        read = sheaf.forward(given)[sheaf.outputs[0]]
        torch.testing.assert_close(read, net(given).detach(), rtol=0, atol=1e-14)
    trainer = ts.SheafTrainer(net, loss="l2", rule="first-order", unused_parameters="allow")
    trainer.local_gradients(x, y)
    found = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    (0.5 * (net(x) - y).square().sum(1).mean()).backward()
    for n, p in net.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(found[n], p.grad, rtol=1e-10, atol=1e-12)
    # forward mode, edge by edge: against central differences, and as the adjoint of reverse mode
    values = sheaf.forward(x)
    for k, node in enumerate(sheaf.network.nodes):
        at = {p: values[p] for p in node.parents}
        u = {p: randn(10 + k, *v.shape) for p, v in at.items()}
        high, low = (
            sheaf.network.evaluate(node, {p: v + t * u[p] for p, v in at.items()})
            for t in (1e-6, -1e-6)
        )
        linear = sheaf.network.linearise(node, at, {})
        pushed, g = linear.push(u), randn(20 + k, *high.shape)
        torch.testing.assert_close(pushed, (high - low) / 2e-6, rtol=1e-6, atol=1e-7)
        pulled = sum((v * u[p]).sum() for p, v in linear.pull(g).items())
        torch.testing.assert_close(pulled, (pushed * g).sum(), rtol=1e-11, atol=1e-12)
    assert bool((ts.spectrum(ts.hold(sheaf, x), k=1).values > 0).all())


def test_a_complex_map_is_affine_where_its_steps_are() -> None:
    def kinds(body: Body) -> dict[str, str]:
        net, x = fill(Between(body), 2), randn(3, 5, 4)
        sheaf = ts.encode(net, x, unused_parameters="allow")
        for e in sheaf.edges.values():  # weights apart: what is not smooth has one linear part
            assert e.node.piecewise_affine == (e.kind in ("affine", "gate"))
        return {e.op: e.kind for e in sheaf.edges.values()}

    assert kinds(BODIES["a filter"])["aten.fft_irfft.default"] == "affine"
    assert kinds(BODIES["rotary"])["aten.view_as_real.default"] == "affine"
    assert kinds(BODIES["spectrum"])["aten.abs.default"] == "smooth"
    assert kinds(BODIES["convolution by Fourier"])["aten.fft_irfft.default"] == "join"
    own = kinds(lambda h, g: torch.fft.irfft(torch.fft.rfft(h).square(), n=6))
    assert own["aten.fft_irfft.default"] == "smooth"
