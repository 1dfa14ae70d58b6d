"""Entries of the rule table inside a network: reachable, equal to the model, lawful maps."""

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor

from tests.laws.linear_maps import LAWS, close, is_adjoint, is_one_map_per_sample
from tests.laws.linear_maps import keeps_dtype_and_device as keeps_dtype
from tests.laws.operation_examples import EXAMPLES
from tests.reference.networks import randn
from torchsheaf.cochain import Cochain, Space
from torchsheaf.linalg import LinearMap
from torchsheaf.network import Composition, Node, known_operations
from torchsheaf.sheaf import Sheaf, encode

BATCH = 3
# Read as another operation, whose meaning does not hang on autograd or on the batch size.
READ_AS = {
    "aten.detach.default": "aten.alias.default",
    "aten.squeeze.default": "aten.squeeze.dims",
    "aten.view.default": "aten.reshape.default",
    "aten._unsafe_view.default": "aten.reshape.default",
}


@dataclass(frozen=True)
class Restriction(LinearMap):
    """All tail maps of one edge side by side: (u_p)_p ↦ Σ_p R_{e,p} u_p."""

    sheaf: Sheaf
    node: Node
    map: Composition
    sample: Tensor

    @property
    def domain(self) -> Space:  # type: ignore[override]
        return Space({p: self.sheaf.vertices[p].shape for p in self.node.parents})

    @property
    def codomain(self) -> Space:  # type: ignore[override]
        return Space({self.node.name: self.node.shape})

    @property
    def like(self) -> Tensor:
        return self.sample

    def apply(self, u: Cochain) -> Cochain:
        return Cochain({self.node.name: self.map.push(u)})

    def adjoint(self, v: Cochain) -> Cochain:
        return Cochain(self.map.pull(v[self.node.name])).select(self.domain.names)


@cache
def case(operation: str, dtype: torch.dtype, form: str = "unfused") -> tuple[Sheaf, Cochain]:
    """The example's sheaf, and a cochain that is not the forward pass."""
    example = EXAMPLES[operation]
    x = randn(11, BATCH, *example.shape, dtype=dtype)
    model = example.model().to(dtype)
    sheaf = encode(model, x, form=form, unused_parameters="allow")
    forward = sheaf.forward(x)
    noise = [0.3 * randn(i, *t.shape, dtype=dtype) for i, t in enumerate(forward.values())]
    moved = {n: t + e for (n, t), e in zip(forward.items(), noise, strict=True)}
    return sheaf, Cochain(moved)


def restrictions(sheaf: Sheaf, at: Cochain) -> list[Restriction]:
    maps = sheaf.linearise(at)
    sample = next(iter(at.values())).flatten(1)[:, 0]
    return [Restriction(sheaf, n, maps[n.name], sample) for n in sheaf.network.nodes]


def operation_names(sheaf: Sheaf) -> set[str]:
    inside = {op.target for n in sheaf.network.nodes for op in n.operations}
    named = {"getitem" if getattr(t, "__name__", "") == "getitem" else str(t) for t in inside}
    return named | {n.op for n in sheaf.network.nodes}


def test_every_example_has_a_rule() -> None:
    """That every rule has an example is test_rules.py's; these are whole networks around one."""
    assert set(EXAMPLES) <= set(known_operations())


@pytest.mark.parametrize("operation", EXAMPLES)
def test_the_example_runs_the_operation_and_equals_the_model(operation: str) -> None:
    sheaf, _ = case(operation, torch.float64)
    assert READ_AS.get(operation, operation) in operation_names(sheaf)
    x = randn(12, 5, *EXAMPLES[operation].shape)
    got = sheaf.at_batch(5).forward(x)[sheaf.outputs[0]]
    assert close(got, sheaf.network.model(x).reshape(got.shape))


@pytest.mark.parametrize("operation", EXAMPLES)
def test_restriction_maps_are_lawful(operation: str) -> None:
    sheaf, at = case(operation, torch.float64)
    for restriction in restrictions(sheaf, at):
        for law in LAWS:
            law(restriction)


@pytest.mark.parametrize("operation", EXAMPLES)
def test_a_batch_is_a_loop_over_samples(operation: str) -> None:
    sheaf, at = case(operation, torch.float64)
    for i, restriction in enumerate(restrictions(sheaf, at)):

        def alone(m: int, i: int = i) -> LinearMap:
            return restrictions(sheaf.at_batch(1), at.samples(slice(m, m + 1)))[i]

        is_one_map_per_sample(restriction, alone)


@pytest.mark.parametrize("operation", EXAMPLES)
def test_restriction_maps_are_the_jacobian(operation: str) -> None:
    """Against reverse-mode derivatives of the node's own map, one sample at a time."""
    sheaf, at = case(operation, torch.float64)
    for restriction in restrictions(sheaf, at):
        node, dense = restriction.node, restriction.to_dense()
        for m in range(BATCH):
            alone = sheaf.at_batch(1)
            own = next(n for n in alone.network.nodes if n.name == node.name)
            primals = [at[p][m : m + 1] for p in node.parents]

            def value(*parents: Tensor, own: Node = own, alone: Sheaf = alone) -> Tensor:
                given = dict(zip(own.parents, parents, strict=True))
                return alone.network.evaluate(own, given).flatten()

            blocks = torch.func.jacrev(value, tuple(range(len(primals))))(*primals)
            assert close(dense[m], torch.cat([b.flatten(1) for b in blocks], 1))


@pytest.mark.parametrize("operation", EXAMPLES)
def test_float32_stays_float32(operation: str) -> None:
    sheaf, at = case(operation, torch.float32)
    for restriction in restrictions(sheaf, at):
        keeps_dtype(restriction)
        is_adjoint(restriction)


GATES = [name for name in EXAMPLES if "relu" in name or "pool" in name and "max" in name]
GATES += ["aten.hardtanh.default", "aten.abs.default"]


@pytest.mark.parametrize("operation", GATES)
@pytest.mark.parametrize("form", ["unfused", "fused"])
def test_fused_and_unfused_gates_are_lawful(operation: str, form: str) -> None:
    sheaf, at = case(operation, torch.float64, form)
    for restriction in restrictions(sheaf, at):
        for law in LAWS:
            law(restriction)
