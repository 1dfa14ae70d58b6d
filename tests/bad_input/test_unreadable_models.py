"""Models that have no sheaf: the error lists node, module path and source line, and says why."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import torchsheaf as ts


class Holder(nn.Module):
    """A faulty part, two levels down, so that a module path has something to say."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), part)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Unknown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


class TwoUnknown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x) + torch.special.bessel_j1(x)


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


class Complex(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(x)


class Integer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.gather(1, x.argsort(1))


class Compared(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0.3, x, torch.zeros_like(x))


class Mixing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class NoBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(0)


class Gram(nn.Module):
    """A `(batch, batch)` value: no layout puts sample 0 into one row and nowhere else."""

    def forward(self, x: Tensor) -> Tensor:
        return (x @ x.mT) @ x


class Sign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sign(x) * x


class Straight(nn.Module):
    """Quantised, with a straight-through gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (torch.round(x) - x).detach()


class Nearest(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        grid = x[:, None, None, :2]
        return nn.functional.grid_sample(x[:, None, None], grid, "nearest", align_corners=False)


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn(4)


class Kept(nn.Module):
    """What a boolean index keeps has a size that only its values tell."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x[:, torch.tensor([True, False, True, True])]


CASES: dict[str, tuple[nn.Module, str]] = {
    "no rule": (Unknown(), "special_bessel_j0"),
    "integers from activations": (Integer(), "int64"),
    "a comparison of activations": (Compared(), "torch.bool"),
    "complex numbers": (Complex(), "complex"),
    "a sign": (Sign(), "jumps"),
    "hardshrink": (nn.Hardshrink(), "softshrink"),
    "rounding": (Straight(), "jumps"),
    "the nearest entry": (Nearest(), "jumps"),
    "random numbers": (Noisy(), "random"),
    "a boolean index": (Kept(), "nonzero"),
    "no batch axis left": (NoBatch(), "no batch axis"),
    "samples times samples": (Gram(), "mixes the samples"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_error_names_node_module_and_line(name: str) -> None:
    part, word = CASES[name]
    with pytest.raises(ts.UnsupportedModel) as caught:
        ts.encode(Holder(part), torch.randn(3, 4))
    assert caught.value.offenders
    assert word in str(caught.value)
    assert any(
        o.module == "body.1"
        and o.source.startswith(("test_unreadable_models.py:", "activation.py:"))
        for o in caught.value.offenders
    ), caught.value


def test_every_offender_is_listed() -> None:
    with pytest.raises(ts.UnsupportedModel, match="bessel_j0") as caught:
        ts.encode(Holder(TwoUnknown()), torch.randn(3, 4))
    assert len(caught.value.offenders) == 2


def test_control_flow_that_depends_on_the_data() -> None:
    with pytest.raises(ts.UnsupportedModel, match="control flow") as caught:
        ts.encode(Holder(Branch()), torch.randn(3, 4))
    assert "test_unreadable_models.py" in caught.value.offenders[0].source


@pytest.mark.parametrize(
    ("part", "word"),
    [
        (nn.Dropout(0.5), "dropout in training mode"),
        (nn.BatchNorm1d(4), "batch-norm in training mode"),
    ],
)
def test_training_mode(part: nn.Module, word: str) -> None:
    model = Holder(part).train()
    with pytest.raises(ts.UnsupportedModel, match=word) as caught:
        ts.encode(model, torch.randn(3, 4))
    assert {o.module for o in caught.value.offenders} == {"body.1"}
    ts.encode(model.eval(), torch.randn(3, 4))


def test_samples_that_are_mixed() -> None:
    with pytest.raises(ts.UnsupportedModel, match="samples|batch axis"):
        ts.encode(Holder(Mixing()), torch.randn(3, 4))


class AcrossSamples(nn.Module):
    """What begins with a norm, and attends over the first axis, sequence first."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.attention = nn.MultiheadAttention(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.attention(y, y, y, need_weights=False)[0]


class HiddenMixing(nn.Module):
    """The samples meet behind a gate that lets nothing through where the input is."""

    def forward(self, x: Tensor) -> Tensor:
        rest = torch.relu(x - 100)
        return x + rest - rest.mean(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("part", [AcrossSamples(), HiddenMixing()])
def test_mixing_is_seen_behind_norms_and_gates(part: nn.Module, dtype: torch.dtype) -> None:
    x = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    for batch in (3, 1):
        with pytest.raises(ts.UnsupportedModel, match="samples|batch axis"):
            ts.encode(part.eval().to(dtype), x[:batch])


class Merged(nn.Module):
    """The batch is the fast part of a merged axis: (4 · batch, 1) with the sample last."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        merged = self.scale(x.t().reshape(-1, 1))
        return torch.tanh(merged).reshape(4, -1, 2).transpose(0, 1)


def test_a_batch_that_is_merged_with_another_axis_is_found() -> None:
    model, x = Merged().double(), torch.randn(5, 4, dtype=torch.float64)
    problem = ts.hold(ts.encode(model, x), x)
    forward = problem.start("forward")
    with torch.no_grad():
        assert torch.equal(forward[problem.sheaf.outputs[0]], model(x))
    for vertex in problem.sheaf.vertices:
        assert forward[vertex].shape[0] == 5
    # sample 2 of every stalk belongs to sample 2 of the input
    alone = ts.hold(problem.sheaf, x[2:3]).start("forward")
    for vertex in problem.sheaf.vertices:
        assert torch.allclose(forward[vertex][2], alone[vertex][0])
    dense = problem.coboundary(forward).to_dense()
    assert torch.equal(torch.linalg.det(dense), torch.ones(5, dtype=torch.float64))


class Positions(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        largest, where = x.max(1)
        return x - largest[:, None] + where[:, None]


def test_the_indices_of_a_maximum_are_no_activations() -> None:
    with pytest.raises(ts.UnsupportedModel, match="indices of a maximum"):
        ts.encode(Holder(Positions()), torch.randn(3, 4))


class Drifting(nn.Module):
    """Off by one part in ten million at every call."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return (1 + 1e-7 * self.calls) * x


def test_a_model_that_drifts_by_little_is_refused_where_that_is_more_than_rounding() -> None:
    x = torch.ones(3, 4)
    with pytest.raises(ts.UnsupportedModel, match=r"differs from model\(x\)"):
        ts.encode(Drifting(), x.double())
    ts.encode(Drifting(), x)


@pytest.mark.parametrize("read", [ts.encode, partial(ts.precision.plan, budget=0.1)])
def test_torch_dumps_no_graph_beside_the_error(
    read: Callable[..., object], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ts.UnsupportedModel):
        read(Holder(Branch()), torch.randn(3, 4))
    assert capfd.readouterr().err == ""
