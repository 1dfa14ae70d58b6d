"""The trainer: fills `.grad` of every parameter from its own edge, for any torch optimiser."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from torchsheaf.network.completeness import check_unused
from torchsheaf.outcome import ConvergenceError, Outcome
from torchsheaf.sheaf import Sheaf, encode
from torchsheaf.train.batches import inputs, tensors
from torchsheaf.train.edge import EdgeRule
from torchsheaf.train.equilibrium import EquilibriumRule
from torchsheaf.train.first_order import FirstOrderRule
from torchsheaf.train.losses import Loss, loss_named
from torchsheaf.train.parallel import is_parallel, reduce_gradients
from torchsheaf.train.recursive import RecursiveRule
from torchsheaf.train.reluctance import Reluctance
from torchsheaf.train.rule import Batch, LocalGradients, LocalRule

RULES: dict[str, type[LocalRule]] = {
    "equilibrium": EquilibriumRule,
    "first-order": FirstOrderRule,
    "edge": EdgeRule,
    "recursive": RecursiveRule,
}


class SheafTrainer:
    """Local gradients for a model: a drop-in for `loss.backward()`.

    `rule` is "edge" (recommended with cross-entropy), "first-order", "equilibrium", "recursive", or
    a rule object with its options. `unused_parameters="allow"` leaves parameters that do not reach
    the output without gradient; else they are refused, as by `encode`. `output` names the output
    vertex that the loss belongs to, where the model has several; parameters that it does not depend
    on get no gradient. `loss` is a name (see `loss_named`), a `Loss`, the torch module of the same
    meaning, or a function (z, y) ↦ one number per sample (`losses.FunctionLoss`). The model must be
    in the mode it is trained in but without batch statistics or active dropout (those are not
    functions of one sample). Under an initialised `torch.distributed` group the gradients are those
    of the global batch.

    >>> net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    >>> x, y = torch.randn(16, 2).double(), torch.randint(0, 3, (16,))
    >>> loss = SheafTrainer(net, loss="cross_entropy", rule="first-order").local_gradients(x, y)
    >>> ours = net[0].weight.grad.clone()
    >>> net.zero_grad(); nn.functional.cross_entropy(net(x), y).backward()
    >>> bool(torch.allclose(ours, net[0].weight.grad))
    True
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: str | Loss | nn.Module | Callable[[Tensor, Tensor], Tensor] = "cross_entropy",
        rule: str | LocalRule = "edge",
        reluctance: Reluctance | None = None,
        unused_parameters: str = "error",
        output: str | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is a {type(model).__name__}; pass an nn.Module")
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            raise TypeError(
                f"model is wrapped in {type(model).__name__}; pass model.module: the gradients of "
                "all processes are added up here"
            )
        if not isinstance(reluctance, Reluctance | None):
            raise TypeError(
                f"reluctance is a {type(reluctance).__name__}; write "
                f"torchsheaf.train.Reluctance({reluctance!r})"
            )
        check_unused(unused_parameters)
        self.model = model
        self.loss = loss_named(loss)
        self.rule = self._rule(rule)
        self.reluctance = reluctance
        self.unused_parameters = unused_parameters
        self.output = output
        self._sheaves: dict[tuple[tuple[nn.Module, bool], ...], dict[int, Sheaf]] = {}

    @staticmethod
    def _rule(rule: str | LocalRule) -> LocalRule:
        if isinstance(rule, LocalRule):
            return rule
        if not isinstance(rule, str) or rule not in RULES:
            raise ValueError(
                f"rule is {rule!r}; write one of {', '.join(map(repr, RULES))}, or a rule object "
                "such as EdgeRule()"
            )
        return RULES[rule]()

    @property
    def learnable(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained; frozen ones (requires_grad=False) are left alone."""
        found = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        if not found:
            raise ValueError(_ALL_FROZEN)
        return found

    def sheaf(self, x: Tensor | Sequence[Tensor]) -> Sheaf:
        """The sheaf of the model, read once per batch size where the model fixes that, else once.

        It is read anew when a module was replaced or has changed its mode.
        """
        xs = inputs(x)
        batch = xs[0].shape[0] if xs[0].ndim else 0
        # The modules themselves: the id of one that is gone may be that of its successor.
        modules = tuple((m, m.training) for m in self.model.modules())
        sheaves = self._sheaves.setdefault(modules, {})
        if not sheaves:
            first = encode(self.model, xs, unused_parameters=self.unused_parameters)
            first.output(self.output)  # refuses what is none, and none where there are several
            sheaves[batch] = first
        if batch not in sheaves:
            read = next(iter(sheaves.values()))
            sheaves[batch] = read.at_batch(batch, read.read_inputs(xs))
        return sheaves[batch]

    @torch.no_grad()
    def local_gradients(self, x: Tensor | Sequence[Tensor], y: Tensor) -> Tensor:
        """Fill `.grad` of every learnable parameter; returns the mean loss of the forward pass.

        No autograd runs through the network: each edge uses its own local map. Under data
        parallelism every process passes its shard, and the gradients are those of the whole batch.

        Raises `ConvergenceError` when the loss is not finite or a rule fails (weights and
        gradients stay as they were) and ValueError for wrong targets and under `torch.autocast`.
        """
        batch = self.batch(x, y)
        loss = batch.potential.mean()
        if not math.isfinite(loss.item()):
            raise ConvergenceError(
                Outcome.NONFINITE,
                f"the loss is {float(loss)}: lower the learning rate or check the data",
            )
        if not self.rule.parallel and is_parallel():
            raise ValueError(
                f"rule {self.rule.name!r} has a memory of its own samples and cannot be reduced "
                "over processes; write rule='edge', 'first-order' or 'equilibrium'"
            )
        if self.reluctance is not None:
            self.reluctance.check(self.learnable)
        self._store(batch.sheaf, reduce_gradients(self.rule.gradients(batch)))
        if self.reluctance is not None:
            self.reluctance.add_to(self.learnable)
        return loss

    @torch.no_grad()
    def batch(self, x: Tensor | Sequence[Tensor], y: Tensor) -> Batch:
        """The forward pass of a batch with its checked target and loss, as rules take it."""
        xs, y = tensors(x, y)
        if torch.is_autocast_enabled(xs[0].device.type):
            raise ValueError(
                "autocast is on, under which the values have another type than the weights and no "
                "edge can be solved or differentiated by itself; leave the `torch.autocast` block, "
                "or write model.bfloat16() and x.bfloat16() with rule='first-order'"
            )
        sheaf = self.sheaf(xs)
        self._check_precision(sheaf)
        back = self.rule.sweeps_back
        values, maps = sheaf.trace(xs) if back else (sheaf.forward(xs), {})
        output = sheaf.output(self.output)
        target = self.loss.target(values[output], y)
        potential = self.loss.potential(values[output], target)
        return Batch(sheaf, values, target, potential, self.loss, output, maps)

    @torch.no_grad()
    def forward(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """What the model itself returns; of several outputs the one that the loss belongs to."""
        xs = inputs(x)
        found = self.model(*xs)
        if isinstance(found, Tensor):
            return found
        sheaf = self.sheaf(xs)
        return sheaf.forward(xs)[sheaf.output(self.output)]

    def _check_precision(self, sheaf: Sheaf) -> None:
        dtype = sheaf.network.nodes[0].dtype
        if self.rule.solves and dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"rule {self.rule.name!r} solves linear systems, which torch does not do in "
                f"{dtype}; write rule='first-order', or make the model and its input float32"
            )

    @staticmethod
    def _store(sheaf: Sheaf, found: LocalGradients) -> None:
        means: dict[int, tuple[nn.Parameter, Tensor]] = {}
        for name, total in found.sums.items():
            parameter = sheaf.network.state(name)
            if isinstance(parameter, nn.Parameter) and parameter.requires_grad:
                # One parameter may be used under two names.
                known = means.get(id(parameter))
                means[id(parameter)] = (parameter, total if known is None else known[1] + total)
        if not means:
            raise ValueError(_ALL_FROZEN)
        parameters, sums = zip(*means.values(), strict=True)
        for parameter, grad in zip(parameters, torch._foreach_div(sums, found.count), strict=True):
            # laid out as the parameter: PyTorch's fused optimisers read both by one stride
            if grad.stride() != parameter.stride():
                grad = torch.empty_like(parameter).copy_(grad.reshape(parameter.shape))
            parameter.grad = grad


_ALL_FROZEN = "every parameter of this model is frozen; nothing can be trained"
