"""Gates: selection · z = gate(z) for every piece, and z on a breakpoint counts as above it."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.laws.operation_examples import EXAMPLES
from tests.reference.networks import randn, relu_mlp
from torchsheaf.network import ScalarGate
from torchsheaf.network.rules import table
from torchsheaf.sheaf import encode

HOMOGENEOUS = [
    "aten.relu.default", "aten.leaky_relu.default", "aten.abs.default", "aten.max_pool1d.default",
    "aten.max_pool2d.default", "aten.max_pool3d.default", "aten.adaptive_max_pool2d.default",
]  # fmt: skip


@pytest.mark.parametrize("operation", HOMOGENEOUS)
@pytest.mark.parametrize("ties", [False, True])
def test_the_selected_piece_is_the_gate(operation: str, ties: bool) -> None:
    """R^z z = gate(z), with integer-valued z too, where maxima are tied and zeros frequent."""
    example = EXAMPLES[operation]
    x = randn(31, 4, *example.shape)
    sheaf = encode(example.model(), x, unused_parameters="allow")
    node = next(n for n in sheaf.network.nodes if n.gates)
    values = dict(sheaf.forward(x).items())
    parent = node.parents[0]
    z = randn(32, *values[parent].shape)
    values[parent] = z.round() if ties else z
    assert not ties or bool((values[parent] == 0).any())
    expected = sheaf.network.evaluate(node, values)
    selections = dict(sheaf.pattern(values))
    pushed = sheaf.network.linearise(node, values, selections).push({parent: values[parent]})
    assert torch.equal(pushed, expected)


@pytest.mark.parametrize(
    ("gate", "function"),
    [
        (ScalarGate((0.0,), (0.0, 1.0)), torch.relu),
        (ScalarGate((0.0,), (0.25, 1.0)), lambda z: F.leaky_relu(z, 0.25)),
        (ScalarGate((-1.0, 1.0), (0.0, 1.0, 0.0)), F.hardtanh),
        (ScalarGate((0.0, 6.0), (0.0, 1.0, 0.0)), F.relu6),
        (ScalarGate((0.0,), (-1.0, 1.0)), torch.abs),
    ],
)
@given(values=st.lists(st.floats(-8, 8), min_size=1, max_size=12))
def test_a_scalar_gate_has_the_slopes_of_its_function(gate, function, values) -> None:  # type: ignore[no-untyped-def]
    """The slope selected at z is the slope of the function just above z."""
    z = torch.tensor([*values, *gate.breakpoints], dtype=torch.float64)
    near = torch.stack([(z - t).abs() for t in gate.breakpoints]).amin(0)
    z = z[(near == 0) | (near > 1e-3)]
    step = 1e-4
    slope = (function(z + step) - function(z)) / step
    assert torch.allclose(gate.select(z), slope, atol=1e-9)


def test_zero_is_active() -> None:
    relu = ScalarGate((0.0,), (0.0, 1.0))
    z = torch.tensor([-0.0, 0.0, -1e-300], dtype=torch.float64)
    assert relu.select(z).tolist() == [1.0, 1.0, 0.0]


def test_patterns_are_compared_sample_by_sample() -> None:
    x = randn(35, 3, 4)
    sheaf = encode(relu_mlp([4, 6, 5, 2], 1), x)
    c = dict(sheaf.forward(x).items())
    pattern = sheaf.pattern(c)
    assert pattern.equal(sheaf.pattern(c)).tolist() == [True, True, True]
    for sample, gate in ((1, "0"), (2, "2")):  # one gate of one sample, in either layer
        c[gate] = c[gate].clone()
        c[gate][sample, 3] *= -1
    assert pattern.equal(sheaf.pattern(c)).tolist() == [True, False, False]


def test_a_pattern_set_by_hand_is_obeyed() -> None:
    """Any mask may be imposed, fractional ones too; the restriction map is then that mask."""
    example = EXAMPLES["aten.relu.default"]
    x = randn(33, 2, *example.shape)
    sheaf = encode(example.model(), x, unused_parameters="allow")
    c = sheaf.forward(x)
    node = next(n for n in sheaf.network.nodes if n.gates)
    mask: Tensor = torch.tensor([[0.0, 1.0, 0.5, 0.25], [1.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    maps = sheaf.linearise(c, {node.gates[0].name: mask})
    u = randn(34, 2, 4)
    assert torch.equal(maps[node.name].push({node.parents[0]: u}), mask * u)
    assert torch.equal(maps[node.name].pull(u)[node.parents[0]], mask * u)


@pytest.mark.parametrize(
    ("operation", "args"),
    [
        ("selu", ()),
        ("elu", (0.3,)),
        ("elu", (2.0,)),
        ("elu", (1.0, 0.5, 3.0)),
        ("hardswish", ()),
    ],
)
def test_a_curved_gate_has_the_slopes_and_the_kinks_of_its_function(operation, args) -> None:  # type: ignore[no-untyped-def]
    """Slopes are those just above z; rises are the slope above minus the slope below."""
    target = getattr(torch.ops.aten, operation).default
    kinks = table.rule_for(f"aten.{operation}.default").kinks
    z = torch.linspace(-7.3, 7.1, 50, dtype=torch.float64)
    gate = kinks((z, *args), {})
    z, h = torch.cat([z, z.new_tensor(gate.breakpoints)]), 1e-7
    above = (target(z + h, *args) - target(z, *args)) / h
    torch.testing.assert_close(gate.select(z), above, rtol=0, atol=1e-6)
    at = z.new_tensor(gate.breakpoints)
    bend = target(at + h, *args) + target(at - h, *args) - 2 * target(at, *args)
    torch.testing.assert_close(z.new_tensor(gate.rises), bend / h, rtol=0, atol=1e-6)


def test_an_elu_without_a_kink_is_smooth() -> None:
    kinks = table.rule_for("aten.elu.default").kinks
    assert kinks((None,), {}) is None
    assert kinks((None, 0.5, 2.0, 2.0), {}) is None
    assert kinks((None, 1.0), {"scale": 2.0, "input_scale": 0.5}) is not None
