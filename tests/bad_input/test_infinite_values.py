"""Infinite values among finite ones hide nothing: what is read is still compared with the model."""

import math

import pytest
import torch
from torch import Tensor, nn

import torchsheaf as ts
from tests.reference.networks import fill, randn
from torchsheaf.cochain import Cochain
from torchsheaf.network.differential import Attention

MASK = torch.tensor([True, False, False, False])


class Masked(nn.Module):
    """Logits of which one is masked away."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def logits(self, x: Tensor) -> Tensor:
        return self.linear(x).masked_fill(MASK, -math.inf)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x)


class Counting(Masked):
    """Another function at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.logits(self.calls * x)


class Mixing(Masked):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cumsum(self.logits(x), 0)


class Roots(Masked):
    """NaN at some entries of every sample."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.log(self.linear(x)).tanh()


@pytest.mark.parametrize("model", [Counting(), Mixing()], ids=["counting", "mixing"])
def test_a_masked_output_does_not_hide_what_differs(model: nn.Module) -> None:
    with pytest.raises(ts.UnsupportedModel):
        ts.encode(fill(model, 0), randn(1, 5, 3))


@pytest.mark.parametrize("model", [Masked(), Roots()], ids=["masked", "NaN"])
def test_a_model_with_infinite_or_missing_values_is_read(model: nn.Module) -> None:
    x = randn(1, 5, 3)
    sheaf = ts.encode(fill(model, 0), x)
    torch.testing.assert_close(
        sheaf.forward(x)[sheaf.outputs[0]], model(x), rtol=0, atol=0, equal_nan=True
    )


def test_attention_of_a_missing_query_is_missing() -> None:
    q, k, v = (randn(s, 1, 2, 3) for s in range(3))
    q[0, 1] = torch.nan
    mask = torch.tensor([[False, False], [True, True]])
    whole = Attention(("q", "k", "v"), q, k, v, None, False, None)
    assert whole.push({"v": v})[0, 1].isnan().all()
    assert whole.push({"v": v})[0, 0].isfinite().all()
    nothing = Attention(("q", "k", "v"), k, k, v, mask, False, None)
    assert (nothing.push({"v": v})[0, 0] == 0).all()  # a row that may look at nothing


def test_a_batch_behind_an_axis_of_one_is_squeezed_out() -> None:
    class Behind(Masked):
        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x).unsqueeze(0).squeeze()

    x = randn(1, 5, 3)
    model = fill(Behind(), 0)
    assert torch.equal(ts.encode(model, x).forward(x)["output"], model(x))


def test_what_is_copied_takes_the_type_of_where_it_goes() -> None:
    class Wider(Masked):
        def forward(self, x: Tensor) -> Tensor:
            out = torch.zeros(x.shape[0], 4, dtype=torch.float64)
            out.copy_(self.linear(x))
            return out

    model, x = fill(Wider(), 0).float(), randn(1, 5, 3).float()
    sheaf = ts.encode(model, x)
    found = sheaf.forward(x)[sheaf.outputs[0]]
    assert found.dtype == torch.float64
    assert torch.equal(found, model(x))


def test_a_flow_of_nothing_is_refused() -> None:
    x = randn(1, 5, 3)
    problem = ts.hold(ts.encode(fill(nn.Linear(3, 2), 0), x), x).pin(ts.Pin("output", 1.0))
    with pytest.raises(ValueError, match="every coordinate is held"):
        ts.heat_flow(problem)


def test_the_first_cell_that_is_not_finite_is_named() -> None:
    bad = {"a": math.nan, "b": math.inf, "c": 1.0}
    cells = Cochain({n: torch.tensor([[1.0, value]]) for n, value in bad.items()})
    assert cells.first_nonfinite() == "a"
    assert cells.select(["b", "a"]).first_nonfinite() == "b"
    assert cells.select(["c"]).first_nonfinite() is None


def test_a_mask_of_an_exported_program_may_be_infinite() -> None:
    class Causal(Masked):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.full((4, 4), -math.inf).triu(1))

        def forward(self, x: Tensor) -> Tensor:
            h = self.linear(x)
            return torch.softmax(h.unsqueeze(2) * h.unsqueeze(1) + self.mask, -1)

    x = randn(1, 5, 3)
    model = fill(Causal(), 0)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    sheaf = ts.encode(program, x)
    assert torch.equal(sheaf.forward(x)[sheaf.output()], model(x))


@pytest.mark.parametrize(
    ("links", "has"),
    [(torch.eye(4).to_sparse(), "layout torch.sparse_coo"), (torch.eye(4).to("meta"), "no values")],
)
def test_weights_that_are_no_dense_numbers_are_named(links: Tensor, has: str) -> None:
    class Graph(Masked):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("links", links, persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) @ self.links

    with pytest.raises(ValueError, match=f"weight 'links' has {has}.*dense tensor"):
        ts.encode(Graph(), torch.randn(5, 3))
