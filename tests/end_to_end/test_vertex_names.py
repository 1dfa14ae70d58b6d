"""Vertices have names of their own, whatever the modules are called."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import torchsheaf as ts
from tests.reference.networks import randn
from torchsheaf.network.naming import name_vertices
from torchsheaf.sheaf import Edge


class Chain(nn.Module):
    """Three linear layers with ReLUs between them; the modules have any names."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        widths = [3, 4, 5, 2]
        self.order = names
        for name, m, n in zip(names, widths, widths[1:], strict=False):
            self.add_module(name, nn.Linear(m, n, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        for i, name in enumerate(self.order):
            x = getattr(self, name)(torch.relu(x) if i else x)
        return x


NAMES = [
    ("input", "head", "last"), ("a", "b", "relu_1"), ("relu", "relu_1", "linear"),
    ("output", "hidden", "end"), ("linear", "input_1", "input"), ("a", "output", "relu"),
]  # fmt: skip


@pytest.mark.parametrize("form", ["unfused", "fused"])
@pytest.mark.parametrize("names", NAMES)
def test_names_change_nothing(names: tuple[str, ...], form: str) -> None:
    torch.manual_seed(0)
    plain, named = Chain("one", "two", "three"), Chain(*names)
    for p, q in zip(plain.parameters(), named.parameters(), strict=True):
        q.data.copy_(p.data)
    x, found = randn(1, 6, 3), []
    for model in (plain, named):
        sheaf = ts.encode(model, x, form=form)
        assert len(sheaf.vertices) == (6 if form == "unfused" else 4)
        problem = ts.hold(sheaf, x)
        assert torch.equal(ts.harmonic_extension(problem).output, model(x))
        found.append(ts.harmonic_extension(problem.pin(ts.Pin("output", 1.0))))
    torch.testing.assert_close(found[0].energy, found[1].energy, rtol=1e-12, atol=0)
    torch.testing.assert_close(found[0].output, torch.ones(6, 2, dtype=torch.float64))
    # modules keep their path, unless it is the input's or means the model's output
    kept = [n for n in names if n not in ("input", "output")]
    assert set(kept) <= set(found[1].problem.sheaf.vertices)


class PostNorm(nn.Module):
    """As in BERT: the norm comes last, and the sum before it is not what the module returns."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.dense(x))


class Residual(PostNorm):
    """The sum comes last: it is what the module returns."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dense(self.norm(x))


def test_a_modules_name_is_what_a_hook_on_it_sees() -> None:
    model = nn.Sequential(PostNorm(), Residual(), nn.Sequential(PostNorm(), nn.ReLU())).double()
    x, seen = randn(1, 5, 4), {}
    values = ts.encode(model, x).forward(x)
    for name, module in model.named_modules():
        module.register_forward_hook(lambda m, given, y, name=name: seen.update({name: y}))
    model(x)
    shared = set(seen) & set(values)
    assert {"0.dense", "0.norm", "1", "1.norm", "2.0.norm"} <= shared
    assert {"0", "2.0"}.isdisjoint(shared)
    assert {"0.add", "2.0.add"} <= set(values)
    for name in shared:
        torch.testing.assert_close(values[name], seen[name], rtol=1e-12, atol=1e-12)


def test_an_input_whose_name_a_module_has_too() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.input = nn.ModuleDict({"x": nn.Linear(3, 3, dtype=torch.float64)})

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.relu(self.input["x"](x) + y)

    model, x, y = Two(), randn(1, 4, 3), randn(2, 4, 3)
    sheaf = ts.encode(model, (x, y))
    assert list(sheaf.vertices)[:3] == ["input.x", "input.y", "input.x_1"]
    assert torch.equal(ts.harmonic_extension(ts.hold(sheaf, (x, y))).output, model(x, y))


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_star_arguments_are_inputs_of_their_own(extra: int) -> None:
    class Starred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2, dtype=torch.float64)

        def forward(self, x: Tensor, *more: Tensor) -> Tensor:
            return self.head(torch.relu(sum(more, x)))

    model, given = Starred(), tuple(randn(i, 4, 3) for i in range(extra + 1))
    sheaf = ts.encode(model, given)
    assert len(sheaf.inputs) == extra + 1
    other = tuple(randn(10 + i, 7, 3) for i in range(extra + 1))  # another batch size
    assert torch.equal(ts.harmonic_extension(ts.hold(sheaf, other)).output, model(*other))


def test_a_module_of_several_vertices_says_what_leaves_it() -> None:
    """Whoever patches with hooks names modules: the vertex with that value is named in return."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x + self.mlp(x))

    model, x = nn.Sequential(*[Block() for _ in range(9)]).double(), randn(1, 5, 4)
    sheaf, seen = ts.encode(model, x), {}
    model[3].register_forward_hook(lambda m, given, y: seen.update(y=y))
    model(x)
    with pytest.raises(ValueError, match=r"what leaves the module of that name is '3\.tanh'"):
        sheaf.vertex("3")
    assert torch.equal(sheaf.forward(x)["3.tanh"], seen["y"])
    with pytest.raises(ValueError, match=r"is '3\.mlp\.2'"):
        ts.hold(sheaf, x).pin(ts.Pin("3.mlp", 0.0))
    with pytest.raises(ValueError, match=r"one of 46 vertices, such as .*'?3\.mlp\.2"):
        sheaf.vertex("3.mlp.22")
    with pytest.raises(ValueError, match=r"one of the 46 in list"):
        sheaf.vertex("nothing like it")


class Recurrent(nn.Module):
    """A classifier on a recurrence's values, on its last state, or on both."""

    def __init__(self, cell: type[nn.RNNBase], reads: str) -> None:
        super().__init__()
        self.cell, self.reads = cell(3, 4, num_layers=2, batch_first=True), reads
        self.head = nn.Linear(4 if reads != "both" else 8, 2)

    def forward(self, x: Tensor) -> Tensor:
        values, state = self.cell(x)
        if self.reads == "values":
            return self.head(values[:, -1])
        last = (state[0] if isinstance(state, tuple) else state)[-1]
        return self.head(last if self.reads == "state" else torch.cat([values[:, 0], last], 1))


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("reads", ["values", "state", "both"])
def test_results_that_nothing_uses_are_no_vertices(cell: type[nn.RNNBase], reads: str) -> None:
    x, model = randn(1, 5, 6, 3), Recurrent(cell, reads).double()
    sheaf = ts.encode(model, x)
    name = {nn.LSTM: "lstm", nn.GRU: "gru", nn.RNN: "rnn_tanh"}[cell]
    inner = [f"cell.{name}", f"cell.{name}_1", "cat"] if reads == "both" else ["cell"]
    assert list(sheaf.vertices) == ["input", *inner, "head"]
    assert sheaf.edges[inner[0]].op == f"aten.{name}.input"
    torch.testing.assert_close(sheaf.forward(x)["head"], model(x).detach(), rtol=0, atol=1e-14)


def test_an_operation_of_another_library_is_named_after_itself() -> None:
    (node,) = ts.encode(nn.Linear(3, 2), torch.randn(4, 3)).network.nodes
    library = replace(node, op="torchvision.roi_align.default", module="")
    (named, _), _, _ = name_vertices([library, replace(library, name="b")], ("b",), {"input": (3,)})
    assert (named.name, Edge(named, ()).operation) == ("roi_align", "roi_align")
