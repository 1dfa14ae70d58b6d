"""A checkpoint resumes its own run only: every other one is refused in words, and loses nothing."""

import copy
from pathlib import Path

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, StepLR
from torch.utils.data import DataLoader, TensorDataset

from tests.reference.networks import randn, relu_mlp
from torchsheaf.outcome import Outcome
from torchsheaf.train import EdgeRule, History, SheafTrainer, fit
from torchsheaf.train.losses import HuberLoss, Loss


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
