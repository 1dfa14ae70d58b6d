"""Exact relabellings, folded into the edge that uses them, and operations of the shape alone."""

from collections.abc import Mapping
from typing import Any

from torchsheaf.network.differential import Differential, Reshaping
from torchsheaf.network.rules.rule import Kind, Rule, Site, argument, training_flag


def _in_order(site: Site) -> Differential | None:
    name = site.name_at(0)
    if name is None or len(site.operands) != 1:
        return None
    return Reshaping(name, site.operands[name].shape, site.function)


_RESHAPE = Rule(Kind.RESHAPE)
_SHAPE_ONLY = Rule(Kind.RESHAPE, shortcut=_in_order)
_CONSTANT = Rule(Kind.RESHAPE, constant=True)


def _dropout(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """Dropout of nothing is the identity in either mode."""
    rate = argument(args, kwargs, 1, "p", 0.5)
    return training_flag(2, "train", "dropout")(args, kwargs) if rate else None


_DROPOUT = Rule(Kind.RESHAPE, refuse=_dropout)

RELABELLINGS: dict[str, Rule] = {
    "getitem": _RESHAPE,
    "aten.detach.default": Rule(Kind.RESHAPE, stops=True),
    **{
        f"aten.{name}": Rule(Kind.RESHAPE, shaped_by=(1,))
        for name in (
            "view_as.default", "reshape_as.default", "expand_as.default", "type_as.default",
            "to.other",
        )
    },
    **{
        f"aten.{name}.default": _DROPOUT
        for name in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
    },
    **{
        f"aten.{name}": _RESHAPE
        for name in (
            "permute.default",
            "transpose.int", "t.default", "mT.default", "slice.Tensor", "select.int",
            "expand.default", "repeat.default", "repeat_interleave.self_int", "contiguous.default",
            "clone.default", "alias.default",
            "lift_fresh_copy.default", "movedim.int", "movedim.intlist", "swapaxes.default",
            "split.Tensor", "split.sizes", "split_with_sizes.default", "tensor_split.sections",
            "chunk.default", "unbind.int", "unsafe_chunk.default", "unsafe_split.Tensor",
            "narrow.default", "roll.default", "flip.default", "rot90.default", "index.Tensor",
            "index_select.default", "gather.default", "take_along_dim.default", "diagonal.default",
            "unfold.default", "im2col.default", "pixel_shuffle.default",
            "pixel_unshuffle.default", "channel_shuffle.default", "tile.default",
            "atleast_1d.default", "_to_copy.default", "to.dtype", "to.dtype_layout", "to.device",
            "broadcast_to.default",
        )
    },
    **{
        f"aten.{name}": _SHAPE_ONLY
        for name in (
            "view.default", "reshape.default", "_unsafe_view.default", "flatten.using_ints",
            "unflatten.int", "squeeze.dim", "squeeze.dims", "squeeze.default", "unsqueeze.default",
        )
    },
    **{
        f"aten.{name}": _CONSTANT
        for name in (
            "zeros_like.default", "ones_like.default", "full_like.default",
            "new_zeros.default", "new_ones.default", "new_full.default",
        )
    },
}  # fmt: skip
