"""Nothing is skipped silently: every parameter claimed, every value equal to the model's."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchsheaf.network.errors import Offender, UnsupportedModel
from torchsheaf.network.network import Network


def check_complete(network: Network, model: nn.Module, unused: str = "error") -> None:
    """Raise `UnsupportedModel` naming every parameter that no node uses (unless allowed)."""
    if unused not in ("error", "allow"):
        raise ValueError(f'unused_parameters is {unused!r}; write "error" or "allow"')
    claimed = {s for node in network.nodes for s in node.states}
    shared = {id(network.state(name)) for name in claimed}
    missing = [
        Offender(name, name.rpartition(".")[0], "", "this parameter does not reach the output")
        for name, tensor in model.named_parameters()
        if name not in claimed and id(tensor) not in shared
    ]
    if missing and unused == "error":
        raise UnsupportedModel(
            f'{len(missing)} parameter(s) belong to no edge; pass unused_parameters="allow" '
            "if that is meant",
            missing,
        )


@torch.no_grad()
def check_faithful(network: Network, model: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Raise `UnsupportedModel` when substitution through the nodes is not `model(*inputs)`."""
    expected = torch.utils._pytree.tree_leaves(model(*inputs))
    values = dict(zip(network.inputs, inputs, strict=True))
    for node in network.nodes:
        values[node.name] = network.evaluate(node, values)
        if values[node.name].shape[1:] != node.shape:
            raise UnsupportedModel(
                "a traced shape does not hold at run time",
                [Offender(node.op, node.module, node.source, f"expected {node.shape}")],
            )
    got = [values[name] for name in network.readout]
    tol = 64 * torch.finfo(got[0].dtype).eps ** 0.75
    for name, ours, position in zip(network.readout, got, network.positions, strict=True):
        theirs = expected[position]
        scale = theirs.abs().max().clamp_min(1)
        if ours.shape != theirs.shape or bool((ours - theirs).abs().max() > tol * scale):
            raise UnsupportedModel(
                f"output {name!r} read from the graph differs from model(x): the model is "
                "random, in training mode, or mutates a view that the trace cannot follow"
            )
