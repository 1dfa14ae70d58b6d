"""Every rule of the table obeys the laws that `register_rule` asks of users' own rules."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import torchsheaf as ts
from tests.laws.rule_examples import ARGUMENTS, s, t
from torchsheaf.network import CurvedGate, ScalarGate, known_operations
from torchsheaf.network.calls import overwritten, written
from torchsheaf.network.differential import Differential, Linear, Pointwise
from torchsheaf.network.laws import check_rule
from torchsheaf.network.registration import _overload
from torchsheaf.network.rules import Kind, Rule, Site, forget_rule, rule_for
from torchsheaf.network.rules.affine import pointwise

READ_AS = {"aten.copy.default": overwritten, "aten.slice_scatter.default": written}


@pytest.mark.parametrize("operation", ARGUMENTS)
def test_the_rule_is_lawful(operation: str) -> None:
    rule = rule_for(operation)
    assert rule is not None
    args, kwargs = ARGUMENTS[operation]
    target = READ_AS.get(operation) or _overload(operation)
    check_rule(rule, target, args, kwargs)


def test_every_rule_is_an_operation_of_torch() -> None:
    for operation in known_operations():
        if operation != "getitem":
            assert callable(_overload(operation)), operation


aten = torch.ops.aten


def _slope_of_elu(z: Tensor) -> Tensor:
    return torch.where(z >= 0, 1.0, 2 * z.clamp_max(0).exp())


def _slope_below_of_elu(z: Tensor) -> Tensor:
    return torch.where(z > 0, 1.0, 2 * z.clamp_max(0).exp())


WRONG: dict[str, tuple[Rule, object, tuple[object, ...], str]] = {
    "not affine": (Rule(Kind.AFFINE), aten.tanh.default, (s(2, 3),), "affine"),
    "not affine there": (
        Rule(Kind.SMOOTH, (0, 1)), aten.div.Tensor, (s(2, 3), t(2, 3)), "argument 1",
    ),
    "not jointly affine": (
        Rule(Kind.AFFINE, additive=True), aten.mul.Tensor, (s(2, 3), t(2, 3)), "affine",
    ),
    "an offset in a relabelling": (
        Rule(Kind.RESHAPE), aten.add.Scalar, (s(2, 3), 1.0), "derivative",
    ),
    "a gate with wrong slopes": (
        Rule(Kind.GATE, gate=lambda a, k: ScalarGate((0.0,), (0.1, 1.0))),
        aten.relu.default, (s(2, 3),), "derivative",
    ),
    "a curved gate": (
        Rule(Kind.GATE, gate=lambda a, k: ScalarGate((0.0,), (0.0, 1.0))),
        aten.square.default, (t(2, 3),), "derivative",
    ),
    "a kink of another rise": (
        Rule(Kind.SMOOTH, kinks=lambda a, k: CurvedGate((0.0,), (1.0,), _slope_of_elu)),
        aten.elu.default, (s(2, 3), 2.0), "rise of the slope",
    ),
    "a kink of another slope": (
        Rule(Kind.SMOOTH, kinks=lambda a, k: CurvedGate((0.0,), (-1.0,), torch.exp)),
        aten.elu.default, (-t(2, 3), 1.0), "rise of the slope",
    ),
    "a slope taken below the kink": (
        Rule(Kind.SMOOTH, kinks=lambda a, k: CurvedGate((0.0,), (-1.0,), _slope_below_of_elu)),
        aten.elu.default, (s(2, 3), 2.0), "slope above",
    ),
    "a shortcut that is not the derivative": (
        Rule(Kind.SMOOTH, shortcut=lambda site: Linear(site.name_at(0), torch.eye(3).double())),
        aten.tanh.default, (s(2, 3),), "derivative",
    ),
    "a diagonal shortcut of a dense map": (
        Rule(Kind.AFFINE, shortcut=pointwise), aten.cumsum.default, (s(2, 3), 1), "VJP|JVP|central",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_rule_is_refused(name: str) -> None:
    rule, target, args, law = WRONG[name]
    with pytest.raises(ValueError, match=law):
        check_rule(rule, target, args)


def test_a_shortcut_without_an_adjoint_is_refused() -> None:
    class Lopsided(Differential):
        def __init__(self, right: Differential) -> None:
            self.right = right

        def push(self, tangents: object) -> Tensor:
            return self.right.push(tangents)

        def pull(self, cotangent: Tensor) -> dict[str, Tensor]:
            return {n: 2 * g for n, g in self.right.pull(cotangent).items()}

    def shortcut(site: Site) -> Differential:
        ((name, x),) = site.operands.items()
        return Lopsided(Pointwise(name, x, site.function))

    with pytest.raises(ValueError, match="VJP"):
        check_rule(Rule(Kind.SMOOTH, shortcut=shortcut), aten.tanh.default, (s(2, 3),))


@pytest.mark.parametrize(
    ("first", "second"), [((2, 3), (2, 1)), ((2, 1, 3), (2, 4, 1)), ((2, 4, 3), (4, 1))]
)
def test_products_broadcast(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    rule = rule_for("aten.mul.Tensor")
    assert rule is not None
    check_rule(rule, aten.mul.Tensor, (s(*first), t(*second)))
    check_rule(rule, aten.mul.Tensor, (t(*second), s(*first)))


class Bessel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.i0(self.linear(x))


class Twice(nn.Module):
    """One value at both places of an operation."""

    def __init__(self, operation: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(x, x)


@pytest.mark.parametrize(
    ("operation", "kind"),
    [(torch.add, Kind.AFFINE), (torch.sub, Kind.AFFINE), (torch.mul, Kind.SMOOTH),
     (torch.div, Kind.SMOOTH), (torch.matmul, Kind.SMOOTH)],
    ids=["add", "sub", "mul", "div", "matmul"],
)  # fmt: skip
def test_one_value_at_both_places(
    operation: Callable[[Tensor, Tensor], Tensor], kind: Kind
) -> None:
    """x · x is not affine in x, though it is in either factor; x + x is."""
    x, u = t(4, 3, 3), t(4, 3, 3).cos()
    sheaf = ts.encode(Twice(operation), x)
    (edge,) = sheaf.edges.values()
    assert (edge.kind, sheaf.is_piecewise_affine) == (kind, kind is Kind.AFFINE)
    maps = sheaf.linearise(sheaf.forward(x))[edge.name]
    pushed = torch.func.jvp(lambda x: operation(x, x), (x,), (u,))[1]
    pulled = torch.func.vjp(lambda x: operation(x, x), x)[1](u)[0]
    torch.testing.assert_close(maps.push({"input": u}), pushed, rtol=0, atol=1e-13)
    torch.testing.assert_close(maps.pull(u)["input"], pulled, rtol=0, atol=1e-13)


def test_a_registered_operation_makes_a_model_readable() -> None:
    model, x = Bessel().double(), s(4, 3)
    with pytest.raises(ts.UnsupportedModel, match="special_i0") as caught:
        ts.encode(model, x)
    assert "register_rule" in str(caught.value)
    try:
        ts.register_rule("aten.special_i0.default", "smooth", example=(s(2, 3),))
        problem = ts.hold(ts.encode(model, x), x)
        assert torch.equal(ts.harmonic_extension(problem).output, model(x))
    finally:
        forget_rule("aten.special_i0.default")


def test_registration_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="kind is 'soft'"):
        ts.register_rule("aten.special_i0.default", "soft", example=(s(2, 3),))
    with pytest.raises(ValueError, match="namespace.operation"):
        ts.register_rule("aten.no_such_thing", "smooth", example=(s(2, 3),))
    with pytest.raises(TypeError, match="op is a function"):
        ts.register_rule(lambda x: x, "smooth", example=(s(2, 3),))
    with pytest.raises(ValueError, match="built-in"):
        ts.register_rule("aten.relu.default", "gate", example=(s(2, 3),),
                         gate=lambda a, k: ScalarGate((0.0,), (0.0, 1.0)))  # fmt: skip
    with pytest.raises(ValueError, match="only kind 'smooth'"):
        ts.register_rule("aten.special_i0.default", "affine", example=(s(2, 3),),
                         kinks=lambda a, k: None)  # fmt: skip
    with pytest.raises(ValueError, match="needs `gate`"):
        ts.register_rule("aten.special_i0.default", "gate", example=(s(2, 3),))
    assert rule_for("aten.special_i0.default") is None
