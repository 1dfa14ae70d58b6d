"""A graphics card that is not there: CPU tensors that say they are on one, and may not be mixed.

Numbers are computed on the CPU as ever; every storage is marked with the device that its tensors
would be on, `tensor.device` reads that mark, and a call whose tensors lie on different devices
fails as on a real card. Reads of single values (`float(x)`, `.tolist()`, `.cpu()`), for which a
card would have to be waited for, are counted in `reads`.

    with PretendedCuda() as cuda:
        model, x = model.to(cuda.device), x.to(cuda.device)
        ...

What it cannot know: kernels that a card lacks, its memory, and its rounding. torch.export runs
on the CPU, and its graph is moved to the card afterwards.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

CARD, CPU = torch.device("cuda", 0), torch.device("cpu")

_GETTERS = {
    torch.Tensor.device.__get__: lambda home: home,
    torch.Tensor.is_cuda.__get__: lambda home: home == CARD,
    torch.Tensor.is_cpu.__get__: lambda home: home == CPU,
}
_READS = {
    "item", "tolist", "__bool__", "__float__", "__int__", "__index__", "cpu", "nonzero", "equal",
    "allclose", "is_nonzero", "unique", "masked_select", "repeat_interleave",
}  # fmt: skip
# Copies between devices; and what only looks at tensors, or at their indices, which may be on the
# CPU.
_FREE = {
    "copy_", "_foreach_copy_", "result_type", "__getitem__", "__setitem__", "save", "__set__",
    "is_same_size", "__format__", "__repr__", "_has_compatible_shallow_copy_type",
}  # fmt: skip
_COPIES = {"to", "cpu", "cuda", "as_tensor"}
# Where a CPU tensor without axes counts as a number; what else takes none is not told apart.
_NUMBERS = {
    "add", "sub", "rsub", "mul", "div", "pow", "eq", "ne", "lt", "le", "gt", "ge", "where",
    "maximum", "minimum", "clamp", "masked_fill", "fill", "addcmul", "logical_and", "logical_or",
    "true_divide", "bitwise_and", "bitwise_or", "atan2", "copysign", "__and__", "__or__", "xlogy",
}  # fmt: skip


class CardGenerator(torch.Generator):
    """A generator that says it is on the card."""

    @property
    def device(self) -> torch.device:
        return CARD


class PretendedCuda(TorchFunctionMode):
    """Marks storages with a device and refuses calls that mix two."""

    device = CARD

    def __init__(self) -> None:
        super().__init__()
        # The weak references keep a storage's address from being given to another one.
        self._marks: dict[int, tuple[torch.device, StorageWeakRef]] = {}
        self.reads = 0

    def __enter__(self) -> "PretendedCuda":
        self._patches = ExitStack()
        for name in ("get_rng_state", "set_rng_state", "synchronize", "current_device"):
            self._patches.enter_context(patch.object(torch.cuda, name, getattr(self, "_" + name)))
        for owner, name in ((torch.export, "export"), (ExportedProgram, "run_decompositions")):
            self._patches.enter_context(
                patch.object(owner, name, self._unseen(getattr(owner, name)))
            )
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()

    def generator(self) -> torch.Generator:
        """A generator on the card."""
        return CardGenerator().manual_seed(20260314)

    def home(self, tensor: Tensor) -> torch.device:
        """The device that a tensor is taken to be on."""
        found = self._marks.get(self._storage(tensor))
        return CPU if found is None else found[0]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _GETTERS:
            return _GETTERS[func](self.home(args[0]))
        name = getattr(func, "__name__", "").partition(".")[0]
        seen = args[:1] if name == "__deepcopy__" else (args, kwargs)  # not what is copied already
        tensors = [t for t in tree_leaves(seen) if isinstance(t, Tensor)]
        wanted, args = self._destination(name, args, kwargs)
        on_card = [t for t in tensors if self.home(t) == CARD]
        if on_card and name in _READS:
            self.reads += 1
        if on_card and name in ("numpy", "__array__"):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu()")
        if wanted is None:
            self._refuse_mixed(name, func, args, tensors, on_card)
            wanted = CARD if on_card else CPU
            if name in ("__getitem__", "copy_", "__setitem__", "_foreach_copy_"):
                wanted = self.home(tree_leaves(args)[0])
        self._refuse_generator(kwargs.get("generator"), wanted)
        result = func(*args, **kwargs)
        held = {self._storage(t) for t in tensors}
        for t in tree_leaves(result):
            if isinstance(t, Tensor):
                if self._storage(t) in held and self.home(t) != wanted and name in _COPIES:
                    result = t = t.clone()  # a copy, though on the CPU it would be none
                if self._storage(t) not in held:
                    self._mark(t, wanted)
        return result

    def _destination(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[torch.device | None, tuple[Any, ...]]:
        """The device that is asked for, and the arguments without it."""
        if name in ("cpu", "cuda"):
            return (CPU if name == "cpu" else CARD), args
        if name == "to" and len(args) > 1 and isinstance(args[1], Tensor):
            return self.home(args[1]), args
        found = kwargs.get("device")
        if found is not None:
            kwargs["device"] = CPU
        if name == "to":
            places = [i for i, a in enumerate(args) if isinstance(a, str | torch.device)]
            for i in places:
                found, args = args[i], (*args[:i], CPU, *args[i + 1 :])
        if name in ("tensor", "as_tensor") and found is None and isinstance(args[0], Tensor):
            return self.home(args[0]), args
        if found is not None:
            return (CARD if torch.device(found).type == "cuda" else CPU), args
        return (CPU if name == "tensor" else None), args

    def _refuse_mixed(
        self, name: str, func: Any, args: tuple[Any, ...], tensors: list[Tensor],
        on_card: list[Tensor],
    ) -> None:  # fmt: skip
        if not on_card or len(on_card) == len(tensors):
            return
        if name in ("__getitem__", "__setitem__") and self.home(args[0]) == CPU:
            index = [t for t in tree_leaves(args[1]) if isinstance(t, Tensor)]
            if not any(self.home(t) == CARD and t.ndim for t in index):
                return
            raise RuntimeError("indices should be either on cpu or on the same device as (cpu)")
        if name in _FREE and not (func == torch.Tensor.grad.__set__):
            return
        plain = name.strip("_").removeprefix("r").removeprefix("i")
        if {name, name.rstrip("_"), plain, name.strip("_")} & _NUMBERS and all(
            t.ndim == 0 for t in tensors if self.home(t) == CPU
        ):
            return
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, "
            f"cuda:0 and cpu! ({name} of {[(str(self.home(t)), tuple(t.shape)) for t in tensors]})"
        )

    def _refuse_generator(self, generator: Any, home: torch.device) -> None:
        if isinstance(generator, torch.Generator) and generator.device.type != home.type:
            raise RuntimeError(
                f"Expected a '{home.type}' device type for generator but found "
                f"'{generator.device.type}'"
            )

    def _storage(self, tensor: Tensor) -> int:
        functorch = torch._C._functorch
        while functorch.is_functorch_wrapped_tensor(tensor):
            tensor = functorch.get_unwrapped(tensor)
        return int(tensor.untyped_storage()._cdata)

    def _mark(self, tensor: Tensor, home: torch.device) -> None:
        functorch = torch._C._functorch
        while functorch.is_functorch_wrapped_tensor(tensor):
            tensor = functorch.get_unwrapped(tensor)
        storage = tensor.untyped_storage()
        self._marks[int(storage._cdata)] = home, StorageWeakRef(storage)

    def _unseen(self, call: Any) -> Any:
        """A tracer, run without this mode; what it made is moved to where its inputs are."""

        def traced(first: Any, *args: Any, **kwargs: Any) -> Any:
            held = [*first.parameters()] if isinstance(first, torch.nn.Module) else []
            held += [t for t in tree_leaves(args) if isinstance(t, Tensor)]
            on_card = any(self.home(t) == CARD for t in held) or hasattr(first, "on_card")
            with self._asleep():
                if isinstance(first, ExportedProgram):
                    _place_graph(first, CPU)
                program = call(first, *args, **kwargs)
                if on_card:
                    program.on_card = True
                    _place_graph(program, CARD)
            constants = [*program.constants.values(), *program.graph_module.buffers()]
            for t in constants if on_card else ():
                if isinstance(t, Tensor) and self.home(t) == CPU:
                    self._mark(t, CARD)
            return program

        return traced

    @contextmanager
    def _asleep(self) -> Iterator[None]:
        TorchFunctionMode.__exit__(self, None, None, None)
        try:
            yield
        finally:
            TorchFunctionMode.__enter__(self)

    @staticmethod
    def _get_rng_state(device: Any = "cuda") -> Tensor:
        return torch.zeros(16, dtype=torch.uint8)

    @staticmethod
    def _set_rng_state(state: Tensor, device: Any = "cuda") -> None:
        if state.shape != (16,):
            raise RuntimeError("RNG state is wrong size")

    @staticmethod
    def _synchronize(device: Any = None) -> None:
        pass

    @staticmethod
    def _current_device() -> int:
        return 0


def _place_graph(program: ExportedProgram, device: torch.device) -> None:
    """Write a device into every node of a traced graph."""
    for module in program.graph_module.modules():
        graph = getattr(module, "graph", None)
        for node in graph.nodes if isinstance(graph, torch.fx.Graph) else ():
            if "device" in node.kwargs:
                node.kwargs = {**node.kwargs, "device": device}
            node.args = tuple(device if isinstance(a, torch.device) else a for a in node.args)
            for t in tree_leaves(node.meta.get("val")):
                if isinstance(t, FakeTensor):
                    t.fake_device = device
