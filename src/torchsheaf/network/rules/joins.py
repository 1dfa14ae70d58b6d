"""Joins: operations of several activations, additive (constant blocks) or multiplicative."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from torchsheaf.network.differential import Attention, Combination, Differential, Product, Tangent
from torchsheaf.network.rules.affine import pointwise
from torchsheaf.network.rules.rule import Kind, Rule, Shortcut, Site, argument


def _sum(sign: float) -> Shortcut:
    def shortcut(site: Site) -> Differential | None:
        if site.kwargs:
            return None
        first, second, args = site.name_at(0), site.name_at(1), site.args
        if first and second and first != second:
            if args[0].shape != args[1].shape:
                return None
            return Combination({first: 1.0, second: sign})
        return pointwise(site)

    return shortcut


def _product(site: Site) -> Differential | None:
    first, second, args = site.name_at(0), site.name_at(1), site.args
    if len(site.operands) == 1:
        return pointwise(site)
    if first and second:
        return Product(first, second, args[0], args[1])
    return None


def _attention(site: Site) -> Differential:
    """Closed forms for the common call; the fused kernels have no forward mode, so others go
    through torch's composed one.
    """
    names = [site.name_at(i) for i in range(3)]
    q, k, v = site.args[:3]
    one_lead = len({q.shape[:-2], k.shape[:-2], v.shape[:-2]}) == 1
    plain = one_lead and not site.kwargs.get("enable_gqa")
    if not plain or set(site.operands) != {n for n in names if n}:
        return Tangent(partial(_composed, site), site.operands)
    mask, causal = site.argument(3, "attn_mask"), bool(site.argument(5, "is_causal", False))
    return Attention(
        (names[0], names[1], names[2]), q, k, v, mask, causal, site.kwargs.get("scale")
    )


def _composed(site: Site, *values: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return site.function(*values)


def _no_dropout(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    if rate := argument(args, kwargs, 4, "dropout_p"):
        return f"attention with dropout {rate} draws random numbers: call model.eval() first"
    return None


_ADDITIVE = Rule(Kind.AFFINE, additive=True)
_EITHER = Rule(Kind.SMOOTH, linear_in=(0, 1))

JOINS: dict[str, Rule] = {
    "aten.add.Tensor": Rule(Kind.AFFINE, additive=True, shortcut=_sum(1.0)),
    "aten.sub.Tensor": Rule(Kind.AFFINE, additive=True, shortcut=_sum(-1.0)),
    "aten.rsub.Tensor": _ADDITIVE,
    "aten.cat.default": _ADDITIVE,
    "aten.stack.default": _ADDITIVE,
    "aten.where.self": _ADDITIVE,
    "aten.where.ScalarSelf": _ADDITIVE,
    "aten.where.ScalarOther": _ADDITIVE,
    "aten.masked_fill.Tensor": _ADDITIVE,
    "aten.masked_scatter.default": _ADDITIVE,
    "aten.index_put.default": _ADDITIVE,
    "aten.index_add.default": _ADDITIVE,
    "aten.index_copy.default": _ADDITIVE,
    "aten.scatter.src": _ADDITIVE,
    "aten.scatter.value": _ADDITIVE,
    "aten.scatter_add.default": _ADDITIVE,
    "aten.slice_scatter.default": _ADDITIVE,
    "aten.select_scatter.default": _ADDITIVE,
    "aten.diagonal_scatter.default": _ADDITIVE,
    "aten.copy.default": _ADDITIVE,
    "aten.mul.Tensor": Rule(Kind.SMOOTH, linear_in=(0, 1), shortcut=_product),
    "aten.div.Tensor": Rule(Kind.SMOOTH, linear_in=(0,), shortcut=pointwise),
    "aten.matmul.default": _EITHER,
    "aten.mm.default": _EITHER,
    "aten.bmm.default": _EITHER,
    "aten.mv.default": _EITHER,
    "aten.outer.default": _EITHER,
    "aten.einsum.default": Rule(Kind.SMOOTH, linear_in=(1,)),
    "aten.addcmul.default": Rule(Kind.SMOOTH),
    "aten.addcdiv.default": Rule(Kind.SMOOTH),
    "aten.lerp.Scalar": _ADDITIVE,
    "aten.lerp.Tensor": Rule(Kind.SMOOTH),
    "aten.scaled_dot_product_attention.default": Rule(
        Kind.SMOOTH, linear_in=(2,), shortcut=_attention, refuse=_no_dropout
    ),
    "aten.cosine_similarity.default": Rule(Kind.SMOOTH),
}
