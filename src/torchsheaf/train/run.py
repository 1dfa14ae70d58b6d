"""Which run a checkpoint belongs to: what is trained, how, and on how much."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from torchsheaf.train.settings import difference, plain, settings
from torchsheaf.train.trainer import SheafTrainer


@dataclass(frozen=True)
class Run:
    """The names and settings that a resumed run must share with its checkpoint.

    Settings are compared as `torchsheaf.train.settings` keeps them, those of the optimiser only
    without a scheduler, which changes them.
    """

    trainer: SheafTrainer
    optimizer: Optimizer
    scheduler: LRScheduler | None
    sizes: Mapping[str, object]

    @cached_property
    def heading(self) -> dict[str, Any]:
        """What a checkpoint says about its run, beside the state."""
        named = {f"name of {k}": v for k, v in {**self._names(), **self.sizes}.items()}
        return {"torchsheaf.fit": 2, **named, "settings": self._settings()}

    def refuse_another(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError where the checkpoint is that of another run."""
        self._compare(self._names(), state)
        self._compare(self.sizes, state)
        if "settings" not in state:  # format 1 kept them as they print
            printed = {f"{k} settings": repr(v) for k, v in self._chosen().items()}
            self._compare({k: v for k, v in printed.items() if state.get(f"name of {k}")}, state)
        for key, mine in self._settings().items():
            if found := difference(state.get("settings", {}).get(key, {}), mine):
                raise _another(f"{key} settings {found[0]}", found[1])
        if self.scheduler is None:
            groups = self.optimizer.param_groups
            for its, now in zip(state["optimizer"]["param_groups"], groups, strict=False):
                if found := difference(_settings_of_group(its), _settings_of_group(now)):
                    raise _another(*found)

    def _names(self) -> dict[str, object]:
        trainer, scheduler = self.trainer, self.scheduler
        output = {} if trainer.output is None else {"output": trainer.output}
        return {
            **output,
            "rule": trainer.rule.name,
            "loss": trainer.loss.name,
            "reluctance": "none" if trainer.reluctance is None else "some",
            "optimizer": type(self.optimizer).__name__,
            "scheduler": "none" if scheduler is None else type(scheduler).__name__,
        }

    def _chosen(self) -> dict[str, object]:
        return {
            "rule": self.trainer.rule,
            "loss": self.trainer.loss,
            "reluctance": self.trainer.reluctance,
        }

    def _settings(self) -> dict[str, dict[str, object]]:
        return {key: settings(chosen) for key, chosen in self._chosen().items()}

    @staticmethod
    def _compare(names: Mapping[str, object], state: Mapping[str, Any]) -> None:
        for key, mine in names.items():
            if (its := state.get(f"name of {key}", mine)) != mine:
                raise _another(f"{key} {its!r}", repr(mine))


def _settings_of_group(group: Mapping[str, Any]) -> dict[str, object]:
    return {k: plain(v) for k, v in group.items() if k != "params"}


def _another(its: str, mine: str) -> ValueError:
    return ValueError(
        f"the checkpoint was written with {its}, and this run has {mine}; "
        "pass resume=False (--restart) or another file"
    )
