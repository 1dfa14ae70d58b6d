"""Second derivatives of smooth edges: what Gauss–Newton leaves out of the Hessian."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from torchsheaf.harmonic.reduction import Layout
from torchsheaf.network import Composition, Network, Node


class Curvature:
    """dc ↦ ∇²⟨p, f(·)⟩ dc summed over the smooth edges, the pull p on their values held fixed.

    Built by reverse over reverse differentiation, once per step; each product is one more local
    reverse pass, or f''(x) p · dc where a node acts on every entry alone. Operations that torch
    cannot differentiate twice are left to Gauss–Newton.
    """

    def __init__(
        self, layout: Layout, network: Network, maps: Mapping[str, Composition],
        point: Mapping[str, Tensor], pull: Tensor,
    ) -> None:  # fmt: skip
        self._layout = layout
        self._parts: list[tuple[tuple[str, ...], Callable[..., Sequence[Tensor]]]] = []
        for cell in layout.cells:
            node = cell.node
            parents = tuple(p for p in node.parents if p in layout.slots)
            if node.piecewise_affine or not parents:
                continue
            on_value = pull[:, cell.rows].reshape(-1, *layout.shapes[node.name])
            product = _hessian(network, node, point, parents, on_value)
            if product is not None and maps[node.name].entrywise:
                product = _entrywise(*product((torch.ones_like(point[parents[0]]),)))
            if product is not None:
                self._parts.append((parents, product))

    def __bool__(self) -> bool:
        return bool(self._parts)

    def add(self, on_c: Tensor, dc: Tensor) -> Tensor:
        """on_c plus the curvature's product with dc."""
        layout = self._layout
        for parents, product in self._parts:
            blocks = [dc[:, layout.slots[p]].reshape(-1, *layout.shapes[p]) for p in parents]
            for parent, g in zip(parents, product(tuple(blocks)), strict=True):
                on_c[:, layout.slots[parent]] += g.reshape(g.shape[0], -1)
        return on_c


def _hessian(
    network: Network,
    node: Node,
    point: Mapping[str, Tensor],
    parents: tuple[str, ...],
    pull: Tensor,
) -> Callable[..., Sequence[Tensor]] | None:
    rest = {p: point[p] for p in node.parents if p not in parents}

    def value(*given: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels cannot be differentiated twice
            return network.evaluate(node, rest | dict(zip(parents, given, strict=True)))

    def gradient(*given: Tensor) -> tuple[Tensor, ...]:
        return torch.func.vjp(value, *given)[1](pull)

    try:
        inputs = tuple(point[p].contiguous() for p in parents)
        product: Callable[..., Sequence[Tensor]] = torch.func.vjp(gradient, *inputs)[1]
        product(tuple(torch.zeros_like(point[p]) for p in parents))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError):
        return None
    return product


def _entrywise(diagonal: Tensor) -> Callable[..., Sequence[Tensor]]:
    return lambda blocks: (diagonal * blocks[0],)
