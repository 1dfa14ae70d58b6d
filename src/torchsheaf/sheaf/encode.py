"""nn.Module → Sheaf."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from torchsheaf.network import ExportedProgram, read_network, require_traceable
from torchsheaf.network.passing import by_name, require_positions
from torchsheaf.sheaf.sheaf import Sheaf

FORMS = ("unfused", "fused")


def encode(
    model: nn.Module | ExportedProgram,
    x: Tensor | Sequence[Tensor] | Mapping[str, Tensor],
    *,
    form: str = "unfused",
    unused_parameters: str = "error",
) -> Sheaf:
    """Read a feed-forward module as a cellular sheaf over its computation graph.

    `x` is an example batch `(batch, *shape)`, a tuple of them, or a dict by the names of the
    forward's arguments, in any order; batches of other sizes may be used later. `form="fused"`
    folds gates into the edges that use them. The sheaf looks the model's parameters up live, so it
    follows training.

    Raises `UnsupportedModel` naming every operation without a rule, every parameter that belongs
    to no edge (unless `unused_parameters="allow"`), data-dependent control flow, and training-mode
    batch-norm or dropout; ValueError for non-finite weights or input, and for an input on which the
    model itself fails.

    Cost: an export by torch and a few forward passes; seconds for large models.
    Source: Bosca & Ghrist 2026, section 3, extended to any DAG (docs/theory.md, T1).

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    >>> x = torch.randn(8, 2, dtype=torch.float64)
    >>> sheaf = encode(net, x)
    >>> bool(torch.allclose(sheaf.forward(x)["2"], net(x)))
    True
    """
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; write one of {', '.join(map(repr, FORMS))}")
    require_traceable(model)
    keywords: tuple[str, ...] = ()
    if isinstance(x, Mapping):
        x, keywords = by_name(model, x)
    elif isinstance(model, nn.Module):
        require_positions(model)
    if not isinstance(x, Tensor | Sequence):
        raise TypeError(f"input x is a {type(x).__name__}; pass a tensor (batch, *shape)")
    inputs = (x,) if isinstance(x, Tensor) else tuple(x)
    network = read_network(
        model, inputs, fused=form == "fused", unused_parameters=unused_parameters,
        keywords=keywords,
    )  # fmt: skip
    return Sheaf(network, form)
