"""The batch of a trace: its symbol, sizes that depend on it, and where it lies in a value."""

from collections.abc import Callable, Mapping
from typing import Any

import sympy
import torch
from torch import Tensor

from torchsheaf.network.errors import Unreadable
from torchsheaf.network.layout import PROBE_BATCH, Layout, Stalk, candidates, probe, settle
from torchsheaf.network.operation import Operation, Size


class Batch:
    """One symbol (or one number) for the batch size, taken from the inputs in turn."""

    def __init__(self, fixed: int | None) -> None:
        self._size: int | sympy.Symbol | None = fixed
        self._fixed = fixed
        self._same: dict[Any, Any] = {}

    def meet(self, size: Any) -> None:
        """The first axis of an input; inputs that never meet have symbols of their own."""
        if isinstance(size, int):
            self._size = size if self._size is None else self._size
            return
        symbol = size.node.expr
        self._size = symbol if self._size is None else self._size
        self._same[symbol] = self._size

    def size(self, value: int | torch.SymInt) -> int | Size:
        """A traced number, as a function of the batch size where it depends on that."""
        expr = self._expr(value)
        if isinstance(expr, int) or not expr.free_symbols:
            return int(expr)
        function = sympy.lambdify(self._size, expr, modules="math")
        return Size(lambda b: int(function(b)), str(expr))

    def layout(
        self,
        value: Tensor,
        operations: tuple[Operation, ...],
        stalks: Mapping[str, Stalk],
        state: Callable[[str], Tensor],
        *,
        guess: bool = False,
    ) -> tuple[Layout, tuple[int, ...]]:
        """Where the batch lies in a value, and the stalk's shape.

        `guess`: take the first of several ways, without asking the operations. Raises `Unreadable`.
        """
        sizes = [self._expr(s) for s in value.shape]
        assert self._size is not None
        if any(isinstance(s, sympy.Expr) and s.free_symbols - {self._size} for s in sizes):
            raise Unreadable(
                "its shape depends on the values of a tensor (a boolean index, say); index with "
                "positions that are made once: mask.nonzero().squeeze(1)"
            )
        found = list(candidates(sizes, self._size))
        if not found:
            raise Unreadable(f"its value has shape {tuple(value.shape)}, with no batch axis in it")
        layout: Layout | None = found[0]
        if len(found) > 1 and not guess:
            batch = self._fixed or PROBE_BATCH
            layout = settle(found, probe(operations, stalks, state, batch), batch)
        if layout is None:
            raise Unreadable("it mixes the samples of a batch; a sheaf is one per sample")
        return layout, layout.shape(sizes)

    def _expr(self, size: int | torch.SymInt) -> Any:
        merged = {s: b for s, b in self._same.items() if s != b}
        return size if isinstance(size, int) else size.node.expr.subs(merged)
