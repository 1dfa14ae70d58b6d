"""The trainer: fills `.grad` of every parameter from its own edge, for any torch optimiser."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchsheaf.outcome import ConvergenceError, Outcome
from torchsheaf.sheaf import Sheaf, encode
from torchsheaf.train.edge import EdgeRule
from torchsheaf.train.equilibrium import EquilibriumRule
from torchsheaf.train.first_order import FirstOrderRule
from torchsheaf.train.losses import Loss, loss_named
from torchsheaf.train.parallel import reduce_gradients
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

    `rule` is "edge" (recommended with cross-entropy), "first-order", "equilibrium", "recursive",
    or a rule object with its options. The model must be in the mode it is trained in but without
    batch statistics or active dropout (those are not functions of one sample). Under an
    initialised `torch.distributed` group the gradients are those of the global batch.

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
        loss: str | Loss = "cross_entropy",
        rule: str | LocalRule = "edge",
        reluctance: Reluctance | None = None,
    ) -> None:
        self.model = model
        self.loss = loss_named(loss)
        self.rule = self._rule(rule)
        self.reluctance = reluctance
        self._sheaf: Sheaf | None = None

    @staticmethod
    def _rule(rule: str | LocalRule) -> LocalRule:
        if isinstance(rule, LocalRule):
            return rule
        if rule not in RULES:
            raise ValueError(f"rule is {rule!r}; write one of {', '.join(map(repr, RULES))}")
        return RULES[rule]()

    @property
    def learnable(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained; frozen ones (requires_grad=False) are left alone."""
        found = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        if not found:
            raise ValueError("every parameter of this model is frozen; nothing can be trained")
        return found

    def sheaf(self, x: Tensor | Sequence[Tensor]) -> Sheaf:
        """The sheaf of the model, read once."""
        inputs = (x,) if isinstance(x, Tensor) else tuple(x)
        if self._sheaf is None:
            self._sheaf = encode(self.model, inputs)
        self._sheaf = self._sheaf.at_batch(inputs[0].shape[0])
        return self._sheaf

    @torch.no_grad()
    def local_gradients(self, x: Tensor | Sequence[Tensor], y: Tensor) -> Tensor:
        """Fill `.grad` of every learnable parameter; returns the mean loss of the forward pass.

        No autograd runs through the network: each edge uses its own local map. Raises
        `ConvergenceError` when the loss is not finite (weights and gradients stay as they were)
        and ValueError for wrong targets.
        """
        sheaf = self.sheaf(x)
        learnable = self.learnable
        values = sheaf.forward(x)
        output = sheaf.outputs[0]
        target = self.loss.target(values[output], y)
        potential = self.loss.potential(values[output], target)
        loss = potential.mean()
        if not bool(loss.isfinite()):
            raise ConvergenceError(
                Outcome.NONFINITE,
                f"the loss is {float(loss)}: lower the learning rate or check the data; the "
                "weights are as the last step left them",
            )
        batch = Batch(sheaf, values, target, potential, self.loss, output)
        self._store(reduce_gradients(self.rule.gradients(batch)), learnable)
        if self.reluctance is not None:
            self.reluctance.add_to(learnable)
        return loss

    def _store(self, found: LocalGradients, learnable: dict[str, nn.Parameter]) -> None:
        by_identity = {id(p): p for p in learnable.values()}
        sums: dict[int, Tensor] = {}
        for name, total in found.gradients.items():
            parameter = self._sheaf.network.state(name)  # type: ignore[union-attr]
            if id(parameter) in by_identity:
                mean = total / found.counts[name]
                key = id(parameter)
                sums[key] = sums[key] + mean if key in sums else mean
        for key, grad in sums.items():
            by_identity[key].grad = grad.reshape(by_identity[key].shape)
