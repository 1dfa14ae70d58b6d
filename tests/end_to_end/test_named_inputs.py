"""Inputs by the names of the forward's arguments, against what the model returns for them."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

import torchsheaf as ts
from tests.reference.networks import randn


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 2).double(), nn.Linear(4, 2).double()

    def join(self, x: Tensor, other: Tensor | None) -> Tensor:
        return self.a(x) if other is None else self.a(x) - torch.tanh(self.b(other))


class KeywordOnly(Two):
    def forward(self, x: Tensor, *, other: Tensor) -> Tensor:
        return self.join(x, other)


class KeywordsOnly(Two):
    def forward(self, *, x: Tensor, other: Tensor) -> Tensor:
        return self.join(x, other)


class Positional(Two):
    def forward(self, x: Tensor, /, other: Tensor) -> Tensor:
        return self.join(x, other)


class LeftOut(Two):
    """Arguments with defaults between those that are given."""

    def forward(
        self, x: Tensor, mask: Tensor | None = None, other: Tensor | None = None, scale: float = 2.0
    ) -> Tensor:
        return scale * self.join(x, other) if mask is None else x


class More(Two):
    """Names of its own beside **kwargs, as in transformers."""

    def forward(self, x: Tensor, other: Tensor | None = None, **kwargs: Tensor) -> Tensor:
        return self.join(x, other)


class Branches(Two):
    """Its batch is fixed by a branch on it, so that another one is read anew."""

    def forward(self, x: Tensor, *, other: Tensor) -> Tensor:
        return self.join(x, other) if x.shape[0] == 5 else 2 * self.join(x, other)


class OneKeyword(nn.Module):
    def forward(self, *, values: Tensor) -> Tensor:
        return torch.tanh(values)


def example(batch: int = 5) -> dict[str, Tensor]:
    return {"x": randn(1, batch, 3), "other": randn(2, batch, 4)}


def returned(model: nn.Module, given: Mapping[str, Tensor]) -> Tensor:
    if isinstance(model, Positional):
        return model(given["x"], given["other"]).detach()
    return model(**given).detach()


@pytest.mark.parametrize("kind", [KeywordOnly, KeywordsOnly, Positional, LeftOut, More, Branches])
def test_every_kind_of_argument_and_any_order(kind: type[Two]) -> None:
    model, given = kind(), example()
    for named in (given, dict(reversed(given.items()))):
        sheaf = ts.encode(model, named)
        assert set(sheaf.inputs) == {"input.x", "input.other"}
        for asked in (named, dict(reversed(named.items()))):
            found = sheaf.forward(asked)[sheaf.outputs[0]]
            torch.testing.assert_close(found, returned(model, given), rtol=1e-14, atol=1e-14)
    other = {n: t + 1 for n, t in example(7).items()}
    for again in (other, {n: t[:1] for n, t in other.items()}):
        found = ts.harmonic_extension(ts.hold(sheaf, again))
        torch.testing.assert_close(
            found.cochain[found.problem.sheaf.outputs[0]], returned(model, again),
            rtol=1e-12, atol=1e-12,
        )  # fmt: skip


def test_an_argument_with_a_default_may_be_left_out() -> None:
    model, x = LeftOut(), example()["x"]
    sheaf = ts.encode(model, {"x": x}, unused_parameters="allow")
    assert sheaf.inputs == ("input",)
    torch.testing.assert_close(sheaf.forward({"x": x})[sheaf.outputs[0]], model(x).detach())
    torch.testing.assert_close(sheaf.forward({"input": x})[sheaf.outputs[0]], model(x).detach())
    with pytest.raises(ValueError, match="no input named 'other'; write one of: input"):
        ts.hold(sheaf, {"other": x})


def test_the_only_input_by_keyword() -> None:
    values = randn(3, 6, 4)
    sheaf = ts.encode(OneKeyword(), {"values": values})
    problem = ts.hold(sheaf, {"values": values}, where={"values": [0]})
    assert torch.equal(problem.values["input"][:, 0], values[:, 0])
    assert torch.equal(sheaf.forward(values)[sheaf.outputs[0]], torch.tanh(values))


def test_what_no_name_reaches_is_refused_in_words() -> None:
    class Catches(Two):
        def forward(self, x: Tensor, **rest: Tensor) -> Tensor:
            return self.join(x, rest["other"])

    class Star(Two):
        def forward(self, *xs: Tensor) -> Tensor:
            return self.join(*xs)

    given = example()
    with pytest.raises(ValueError, match=r"'other', which only its \*\*rest takes.* in its sign"):
        ts.encode(Catches(), given)
    for named in (given, {"xs": given["x"]}):
        with pytest.raises(ValueError, match=r"takes \*xs.*pass a tuple"):
            ts.encode(Star(), named)
    with pytest.raises(ValueError, match=r"names 'x', 'y'.*takes x, other"):
        ts.encode(KeywordOnly(), {"x": given["x"], "y": given["other"]})
    with pytest.raises(ValueError, match="names 'x'; .* takes x, other; it needs other"):
        ts.encode(KeywordOnly(), {"x": given["x"]})
    with pytest.raises(ValueError, match="names nothing"):
        ts.encode(KeywordOnly(), {})
    with pytest.raises(ValueError, match="takes some inputs by name only.*pass a dict"):
        ts.encode(KeywordOnly(), (given["x"], given["other"]))


def test_the_page_of_a_network_with_named_inputs() -> None:
    model, given = KeywordOnly(), example(12)
    page = ts.report(model, given, randn(4, 12, 2), max_samples=8)
    assert "the first 8 of 12 samples" in page
