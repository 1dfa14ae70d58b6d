"""A checkpoint resumes its own run only: every other one is refused in words, and loses nothing."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LRScheduler, StepLR
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from tests.reference.networks import randn, relu_mlp
from torchsheaf.outcome import Outcome
from torchsheaf.train import EdgeRule, EquilibriumRule, History, Reluctance, SheafTrainer, fit
from torchsheaf.train.losses import FunctionLoss, HuberLoss, Loss, PowerLoss
from torchsheaf.train.settings import difference, settings


def rings(n: int = 96) -> tuple[torch.Tensor, torch.Tensor]:
    x = randn(1, n, 2)
    return x, (x.norm(dim=1) > 1.1).long()


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    x, y = rings(32)
    net = relu_mlp([2, 6, 2], 1)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    file = tmp_path / "run.pt"
    fit(SheafTrainer(net), (x, y), optimiser, epochs=1, checkpoint=file, progress=False)
    with pytest.raises(ValueError, match="written with rule 'edge'"):
        fit(
            SheafTrainer(net, rule="first-order"), (x, y), optimiser, epochs=2, checkpoint=file,
            progress=False,
        )  # fmt: skip
    other = relu_mlp([2, 7, 2], 1)
    with pytest.raises(ValueError, match="does not fit this model"):
        fit(
            SheafTrainer(other), (x, y), torch.optim.SGD(other.parameters(), lr=0.1), epochs=2,
            checkpoint=file, progress=False,
        )  # fmt: skip
    file.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        fit(SheafTrainer(net), (x, y), optimiser, epochs=2, checkpoint=file, progress=False)


def test_a_checkpoint_of_another_rate_is_refused(tmp_path: Path) -> None:
    file, net = tmp_path / "run.pt", relu_mlp([2, 8, 2], 1)
    trainer = SheafTrainer(net, rule="first-order")

    def run(rate: float, epochs: int) -> None:
        step = torch.optim.SGD(net.parameters(), lr=rate)
        fit(trainer, rings(), step, epochs=epochs, checkpoint=file, progress=False)

    run(0.1, 1)
    loader = DataLoader(TensorDataset(*rings()), shuffle=True, generator=torch.Generator())
    with pytest.raises(ValueError, match="written with other data"):
        fit(
            trainer, loader, torch.optim.SGD(net.parameters(), lr=0.1), epochs=2, checkpoint=file,
            progress=False,
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"written with lr=0\.1, and this run has lr=0\.01"):
        run(0.01, 2)
    run(0.1, 2)


def test_a_checkpoint_of_another_batch_size_or_number_of_samples_is_refused(tmp_path: Path) -> None:
    file, net = tmp_path / "run.pt", relu_mlp([2, 8, 2], 1)
    trainer = SheafTrainer(net, rule="first-order")

    def run(data: object, epochs: int, size: int | None = None) -> History:
        step = torch.optim.SGD(net.parameters(), lr=0.1)
        return fit(
            trainer, data, step, epochs=epochs, batch_size=size, checkpoint=file, progress=False
        )  # type: ignore[arg-type]

    assert run(rings(), 1, 32).resumed == 0
    with pytest.raises(ValueError, match="with batch size 32, and this run has 16; pass resume"):
        run(rings(), 2, 16)
    with pytest.raises(ValueError, match="with samples 96, and this run has 48; pass resume"):
        run(rings(48), 2, 32)
    again = run(rings(), 1, 32)
    assert (again.epochs, again.resumed, again.outcome) == (1, 1, Outcome.COMPLETED)
    file.unlink()
    run(rings(), 1, 1000)  # no more than there are
    assert run(rings(), 2).resumed == 1
    file.unlink()
    loader = DataLoader(TensorDataset(*rings()), batch_size=32)
    run(loader, 1)
    with pytest.raises(ValueError, match="with batch size 32, and this run has 16"):
        run(DataLoader(TensorDataset(*rings()), batch_size=16), 2)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ("step", None, "scheduler 'StepLR', and this run has 'none'"),
        (None, "step", "scheduler 'none', and this run has 'StepLR'"),
        ("step", "cosine", "scheduler 'StepLR', and this run has 'CosineAnnealingLR'"),
    ],
)
def test_a_checkpoint_of_another_scheduler_is_refused(
    first: str | None, second: str | None, words: str, tmp_path: Path
) -> None:
    file, net = tmp_path / "run.pt", relu_mlp([2, 8, 2], 1)
    trainer = SheafTrainer(net, rule="first-order")

    def run(kind: str | None, epochs: int) -> None:
        step = torch.optim.SGD(net.parameters(), lr=0.1)
        made: dict[str, LRScheduler] = {
            "step": StepLR(step, 1),
            "cosine": CosineAnnealingLR(step, 4),
        }
        fit(
            trainer, rings(), step, epochs=epochs, checkpoint=file, progress=False,
            scheduler=made[kind] if kind else None,
        )  # fmt: skip

    run(first, 1)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=words):
        run(second, 2)
    assert all(torch.equal(net.state_dict()[k], before[k]) for k in before)
    run(first, 2)


SETTINGS = [
    (EdgeRule(group=4), EdgeRule(group=8), "cross_entropy", "cross_entropy", "group=4.*group=8"),
    ("edge", EdgeRule(damping=0.5), "cross_entropy", "cross_entropy", "damping=0.01.*damping=0.5"),
    ("edge", "edge", HuberLoss(1.0), HuberLoss(0.1), "delta=1.0.*delta=0.1"),
]


@pytest.mark.parametrize(("rule", "other", "loss", "other_loss", "words"), SETTINGS)
def test_a_checkpoint_of_other_settings_of_rule_or_loss_is_refused(
    rule: str | EdgeRule, other: str | EdgeRule, loss: str | Loss, other_loss: str | Loss,
    words: str, tmp_path: Path,
) -> None:  # fmt: skip
    net, (x, y) = relu_mlp([2, 8, 2], 1), rings()
    step = torch.optim.SGD(net.parameters(), lr=0.1)
    data = (x, y if loss == "cross_entropy" else x)

    def run(rule: str | EdgeRule, loss: str | Loss, epochs: int) -> None:
        fit(
            SheafTrainer(net, rule=rule, loss=loss), data, step, epochs=epochs, progress=False,
            checkpoint=tmp_path / "run.pt",
        )  # fmt: skip

    run(rule, loss, 1)
    with pytest.raises(ValueError, match=words):
        run(other, other_loss, 2)
    run(rule, loss, 2)


def test_a_folder_is_no_checkpoint_and_is_noticed_before_training(tmp_path: Path) -> None:
    net = relu_mlp([2, 8, 2], 1)
    before = copy.deepcopy(net.state_dict())
    step = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="checkpoint is .* a folder; write a file name"):
        fit(
            SheafTrainer(net), rings(), step, epochs=1, checkpoint=tmp_path, resume=False,
            progress=False,
        )  # fmt: skip
    assert all(torch.equal(net.state_dict()[k], before[k]) for k in before)


@dataclass(frozen=True, eq=False)
class Weighted(Loss):
    """½ Σ w (z − y)² f, f a function: settings that do not print as what they are."""

    w: Tensor
    f: Callable[[Tensor], Tensor]
    name: str = "weighted"
    curvature: float = 1.0

    def potential(self, z: Tensor, y: Tensor) -> Tensor:
        return (0.5 * self.w * (z - y).square()).sum(1)

    def gradient(self, z: Tensor, y: Tensor) -> Tensor:
        return self.w * (z - y)


def wide_run(file: Path, loss: Loss, epochs: int, **options: Any) -> History:
    """A model of 1,200 outputs: torch prints no more than the ends of such a tensor."""
    net = torch.nn.Linear(2, 1200).double()
    step = torch.optim.SGD(net.parameters(), lr=0.001)
    trainer = SheafTrainer(net, loss=loss, rule="first-order", **options)
    data = (randn(1, 4, 2), randn(2, 4, 1200))
    return fit(trainer, data, step, epochs=epochs, checkpoint=file, progress=False)


def test_settings_are_compared_by_value_not_as_they_print(tmp_path: Path) -> None:
    w, other = torch.ones(1200).double(), torch.ones(1200).double()
    other[600] = 2
    assert repr(w) == repr(other)
    file = tmp_path / "run.pt"
    wide_run(file, Weighted(w, lambda z: z), 1)
    # a function prints with its address, which no second process has again
    assert wide_run(file, Weighted(w.clone(), lambda z: z), 2).resumed == 1
    with pytest.raises(ValueError, match=r"loss settings w='float64 \(1200,\).* has w='float64"):
        wide_run(file, Weighted(other, lambda z: z), 3)
    file.unlink()
    wide_run(file, PowerLoss(2), 1)
    assert wide_run(file, PowerLoss(np.float64(2.0)), 2).resumed == 1


class TwoHeads(torch.nn.Module):
    """Outputs "a" and "b"."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (torch.nn.Linear(2, 2, dtype=torch.float64) for _ in "ab")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(x), self.b(x)


def test_a_checkpoint_of_another_reluctance_or_output_is_refused(tmp_path: Path) -> None:
    file, loss = tmp_path / "run.pt", HuberLoss()
    wide_run(file, loss, 1, reluctance=Reluctance(0.1))
    assert wide_run(file, loss, 2, reluctance=Reluctance(0.1)).resumed == 1
    with pytest.raises(ValueError, match=r"strength=0\.1, and this run has strength=0\.2"):
        wide_run(file, loss, 3, reluctance=Reluctance(0.2))
    with pytest.raises(ValueError, match="reluctance 'some', and this run has 'none'"):
        wide_run(file, loss, 3)
    file.unlink()

    def run(output: str, epochs: int) -> None:
        net = TwoHeads()
        step = torch.optim.SGD(net.parameters(), lr=0.1)
        trainer = SheafTrainer(net, output=output, rule="first-order")
        fit(trainer, rings(), step, epochs=epochs, checkpoint=file, progress=False)

    run("a", 1)
    with pytest.raises(ValueError, match="output 'a', and this run has 'b'"):
        run("b", 2)


@pytest.mark.parametrize(("damping", "fits"), [(0.01, True), (0.5, False)])
def test_a_file_that_keeps_settings_as_they_print_is_read(
    damping: float, fits: bool, tmp_path: Path
) -> None:
    net, file = relu_mlp([2, 8, 2], 1), tmp_path / "run.pt"

    def run(rule: EdgeRule, epochs: int) -> History:
        step = torch.optim.SGD(net.parameters(), lr=0.1)
        trainer = SheafTrainer(net, rule=rule)
        return fit(trainer, rings(), step, epochs=epochs, checkpoint=file, progress=False)

    run(EdgeRule(), 1)
    state = torch.load(file, weights_only=True)
    del state["settings"]
    old = {
        "torchsheaf.fit": 1,
        "name of rule settings": "EdgeRule(damping=0.01, group=64, name='edge')",
        "name of loss settings": "CrossEntropy(name='cross_entropy', curvature=0.5)",
    }
    torch.save(state | old, file)
    if fits:
        assert run(EdgeRule(damping), 2).resumed == 1
    else:
        with pytest.raises(ValueError, match=r"damping=0\.01.*damping=0\.5"):
            run(EdgeRule(damping), 2)


def test_numbers_of_numpy_leave_a_readable_file(tmp_path: Path) -> None:
    net, file = relu_mlp([2, 8, 2], 1), tmp_path / "run.pt"

    def run(epochs: int) -> History:
        step = torch.optim.Adam(net.parameters(), lr=np.logspace(-3, -1, 3)[1])
        trainer = SheafTrainer(net, rule="first-order")
        return fit(
            trainer, rings(), step, epochs=epochs, checkpoint=file, progress=False,
            scheduler=ExponentialLR(step, np.float64(0.9)),
        )  # fmt: skip

    run(1)
    assert run(2).resumed == 1


class Unkept(torch.optim.SGD):
    """An optimiser whose state holds an object that no checkpoint may contain."""

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"path": Path("a")}


def test_a_state_that_could_not_be_read_back_is_refused_when_it_is_written(tmp_path: Path) -> None:
    net, file = relu_mlp([2, 8, 2], 1), tmp_path / "run.pt"
    step = Unkept(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"optimizer, scheduler or rule holds pathlib"):
        fit(SheafTrainer(net), rings(), step, epochs=1, checkpoint=file, progress=False)
    assert not list(tmp_path.iterdir())


def test_a_batch_sampler_of_its_own_generator_resumes_exactly(tmp_path: Path) -> None:
    def run(epochs: int, file: Path | None) -> list[Tensor]:
        net, source = relu_mlp([2, 6, 2], 1), torch.Generator().manual_seed(3)
        order = BatchSampler(RandomSampler(range(96), generator=source), 32, drop_last=True)
        step = torch.optim.SGD(net.parameters(), lr=0.1)
        fit(
            SheafTrainer(net), DataLoader(TensorDataset(*rings()), batch_sampler=order), step,
            epochs=epochs, checkpoint=file, progress=False,
        )  # fmt: skip
        return list(net.parameters())

    whole = run(4, None)
    run(2, tmp_path / "run.pt")
    resumed = run(4, tmp_path / "run.pt")
    assert all(torch.equal(p, q) for p, q in zip(whole, resumed, strict=True))


def test_settings_differ_where_their_values_do() -> None:
    def told(value: object) -> Any:
        return settings(FunctionLoss(partial(torch.add, other=value)))

    equal = [
        (float("nan"), np.float64("nan")), (2, np.int64(2)), ((1, 2.0), [1, 2]), (1j, [0.0, 1.0]),
        (torch.tensor(3.0), 3), (torch.ones(2, 3), np.ones((2, 3), dtype=np.float32)),
        ({"b": 1, "a": {3, 2}}, {"a": {2, 3}, "b": 1}), (HuberLoss(0.5), HuberLoss(delta=0.5)),
    ]  # fmt: skip
    for one, other in equal:
        assert difference(told(one), told(other)) is None, one
    unlike = [
        (1.0, float("nan")), (torch.ones(2, 3), torch.ones(3, 2)), ([1, 2], [1, 2, 3]),
        (torch.zeros(2), torch.zeros(2).double()), ({"a": 1}, {"b": 1}), (True, None),
        (torch.zeros(2), torch.tensor([0.0, 1.0])), (HuberLoss(0.5), HuberLoss(0.6)),
    ]  # fmt: skip
    for one, other in unlike:
        assert difference(told(one), told(other)) is not None, one
    assert difference({"new": 1}, {"old": 2}) is None  # of another version of the library
    warm = EquilibriumRule(warm=True)
    warm.memory["input"] = torch.ones(2)
    assert difference(settings(EquilibriumRule(warm=True)), settings(warm)) is None
    assert "memory" not in settings(warm)
