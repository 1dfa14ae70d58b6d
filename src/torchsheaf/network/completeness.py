"""Nothing is skipped silently: every parameter claimed, every value equal to the model's."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from torchsheaf.network.errors import Offender, UnsupportedModel
from torchsheaf.network.network import Network
from torchsheaf.network.passing import split


def check_unused(unused: str) -> None:
    """Raise ValueError unless `unused` is one of the two choices."""
    if unused not in ("error", "allow"):
        raise ValueError(f'unused_parameters is {unused!r}; write "error" or "allow"')


def check_complete(network: Network, model: nn.Module, unused: str = "error") -> None:
    """Raise `UnsupportedModel` naming every parameter that no node uses (unless allowed)."""
    check_unused(unused)
    claimed = {s for node in network.nodes for s in node.states}
    shared = {id(network.state(name)) for name in claimed}
    missing = [
        Offender(name, name.rpartition(".")[0], "", "no vertex is computed from it")
        for name, tensor in model.named_parameters()
        if name not in claimed and id(tensor) not in shared
    ]
    if missing and unused == "error":
        raise UnsupportedModel(
            f'{len(missing)} parameter(s) belong to no edge; pass unused_parameters="allow" '
            "if that is meant",
            missing,
        )


@contextmanager
def layer_by_layer() -> Iterator[None]:
    """Transformers compute what their layers say: torch's fused kernels put 0 at padded places."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def check_still(network: Network, changed: set[str]) -> None:
    """Raise `UnsupportedModel` when the model's forward rewrites a buffer that its values read."""
    for node in network.nodes:
        for name in sorted(changed & set(node.states)):
            raise UnsupportedModel(
                "the model changes whenever it is called, so it is no function of its input; call "
                "model.eval() first",
                [Offender(node.op, node.module, node.source, f"forward rewrites {name!r}")],
            )


@torch.no_grad()
def run(
    model: nn.Module, inputs: Sequence[Tensor], keywords: Sequence[str] = ()
) -> tuple[Any, set[str]]:
    """What the model returns, and the names of the buffers that it rewrites; nothing is changed.

    Inputs, buffers (batch statistics) and the random state stay as they are. Raises ValueError
    saying what the model was given where it fails on it.
    """
    buffers = {name: t.clone() for name, t in model.named_buffers()}
    devices = {x.device for x in inputs if x.is_cuda}
    try:
        with torch.random.fork_rng(devices):
            first, named = split(tuple(x.clone() for x in inputs), keywords)
            returned = torch.func.functional_call(model, buffers, first, named)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        came = ", ".join(f"{tuple(x.shape)} of {x.dtype} on {x.device}" for x in inputs)
        floats = [t for t in model.parameters() if t.is_floating_point()]
        types = dict.fromkeys(f"{t.dtype} on {t.device}" for t in floats)
        weights = f"; the weights are {', '.join(types)}" if types else ""
        raise ValueError(
            f"the model itself does not accept this input, which has shape {came}{weights}: "
            f"{type(error).__name__}: {error}"
        ) from error
    return returned, {n for n, t in model.named_buffers() if not torch.equal(t, buffers[n])}


@torch.no_grad()
def check_apart(network: Network, inputs: Sequence[Tensor]) -> None:
    """Raise `UnsupportedModel` when a sample's values depend on another sample of its batch."""
    first, generator = inputs[0].shape[0], torch.Generator().manual_seed(0)
    if network.fixed_batch is None:
        size = min(first, 2)
        pair = [torch.cat([x, _another(x, generator)]) if first == 1 else x[:size] for x in inputs]
    elif first == 1:
        return
    else:
        pair = list(inputs)
    whole = _values(network, pair)
    for kept, others in ((0, slice(1, None)), (-1, slice(0, -1))):
        # vertex by vertex, since a later map (a norm, a dead gate) may hide what was mixed before
        changed = {name: x.clone() for name, x in whole.items()}
        for x in changed.values():
            x[others] = _another(x[others], generator)
        for node in network.nodes:
            if not _same(network.evaluate(node, changed)[kept], whole[node.name][kept]):
                raise UnsupportedModel(
                    "the samples of a batch see each other, so there is no sheaf per sample",
                    [Offender(node.op, node.module, node.source, "it mixes the batch axis")],
                )


def _another(x: Tensor, generator: torch.Generator) -> Tensor:
    """Halfway from x to random numbers in [0, 1] (of an integer input: the same values, moved).

    Numbers of their own for every entry: a common shift and scale would go through a layer norm
    unseen.
    """
    if not x.is_floating_point():
        return x.flip(tuple(range(x.ndim)))
    return 0.5 * x + 0.5 * torch.rand(x.shape, generator=generator).to(x)


def _same(ours: Tensor, theirs: Tensor) -> bool:
    """Equal to rounding of the finite numbers' size, with infinities and NaN at the same places."""
    finite = theirs[theirs.isfinite()].abs()
    scale = max(1.0, float(finite.max())) if finite.numel() else 1.0
    tol = 64 * torch.finfo(ours.dtype).eps ** 0.75 * scale
    return ours.shape == theirs.shape and torch.allclose(
        ours, theirs.to(ours.dtype), rtol=0, atol=tol, equal_nan=True
    )


def _values(network: Network, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Every vertex's value; raises `UnsupportedModel` where one has not the shape of the trace."""
    values = dict(zip(network.inputs, inputs, strict=True))
    for node in network.nodes:
        values[node.name] = network.evaluate(node, values)
        if values[node.name].shape[1:] != node.shape:
            raise UnsupportedModel(
                "a traced shape does not hold at run time",
                [Offender(node.op, node.module, node.source, f"expected {node.shape}")],
            )
    return values


@torch.no_grad()
def check_faithful(network: Network, returned: Any, inputs: Sequence[Tensor]) -> None:
    """Raise `UnsupportedModel` when substitution through the nodes is not what the model returned.

    `returned` is what `run(model, inputs)` returned.
    """
    expected = torch.utils._pytree.tree_leaves(returned)
    values = _values(network, inputs)
    for name, position in zip(network.readout, network.positions, strict=True):
        if not _same(values[name], expected[position]):
            raise UnsupportedModel(
                f"output {name!r} read from the graph differs from model(x): the model is "
                "random, in training mode, or mutates a view that the trace cannot follow"
            )
