"""`torchsheaf train` from end to end, in process."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from torchsheaf.cli import main
from torchsheaf.cli.exits import Exit
from torchsheaf.examples.paper_tasks import PAPER_TASKS

MODULE = """
import torch
from torch import nn
def model():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=g)
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    for p in net.parameters():
        nn.init.normal_(p, 0, 0.5, generator=g)
    return net, x, (x[:, 0] > 0).long()
def unlabelled():
    net, x, y = model()
    return net, x
class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(3, 2), nn.Linear(1, 2)
    def forward(self, a, b):
        return self.one(a) + self.other(b)
def two_inputs():
    net, x, y = model()
    return Two(), (x, x[:, :1]), y
def data():
    net, x, y = model()
    return x[:30], y[:30], x[30:], y[30:]
def wrong():
    return 3
def broken():
    return {}["x"]
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine_to_train.py").write_text(MODULE)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["train", "--no-progress", *arguments])


def found(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    ("rule", "epochs"), [("edge", 5), ("first-order", 5), ("recursive", 1), ("equilibrium", 4)]
)
def test_a_users_model_and_data_with_every_rule(rule: str, epochs: int, here: Path) -> None:
    out = run(
        "mine_to_train:model", "--data", "mine_to_train:data", "--rule", rule, "--epochs",
        str(epochs), "--batch-size", "10", "--json", "--save", "out.safetensors",
    )  # fmt: skip
    report = found(out)
    assert report["rule"] == rule
    assert report["loss"] == "cross_entropy"
    assert report["final_on"] == "held-out data"
    assert set(report["final"]) == {"loss", "accuracy"}
    assert report["outcome"] == "completed"
    assert len(report["records"]) == epochs
    if epochs > 1:
        assert report["records"][-1]["loss"] < report["records"][0]["loss"]
    saved = load_file(here / "out.safetensors")
    assert saved["0.weight"].shape == (8, 3)
    assert not list(here.glob("*.part"))


@pytest.mark.parametrize("task", PAPER_TASKS)
def test_the_papers_tasks(task: str, here: Path) -> None:
    report = found(run(task, "--epochs", "3", "--rule", "first-order", "--json"))
    assert report["records"][-1]["loss"] < report["records"][0]["loss"]
    assert report["loss"] == PAPER_TASKS[task].loss


def test_digits_reach_ninety_five_per_cent_in_two_epochs(here: Path) -> None:
    report = found(run("digits", "--epochs", "2", "--json"))
    assert report["final"]["accuracy"] > 0.95
    text = run("digits", "--epochs", "1")
    assert text.exit_code == 0
    assert "forward pass on held-out data: loss" in text.stdout


def test_an_interrupted_run_resumes_to_the_same_weights(here: Path) -> None:
    common = ["mine_to_train:model", "--batch-size", "10", "--json"]
    whole = found(run(*common, "--epochs", "4", "--save", "whole.safetensors"))
    found(run(*common, "--epochs", "2", "--checkpoint", "run.pt"))
    rest = found(
        run(*common, "--epochs", "4", "--checkpoint", "run.pt", "--save", "rest.safetensors")
    )
    assert rest["records"] == whole["records"]
    a, b = load_file(here / "whole.safetensors"), load_file(here / "rest.safetensors")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert (rest["resumed after"], rest["epochs now"]) == (2, 2)
    again = found(run(*common, "--epochs", "1", "--checkpoint", "run.pt", "--restart"))
    assert (again["epochs"], again["resumed after"]) == (1, 0)


def test_what_was_resumed_is_said(here: Path) -> None:
    """A second call trains no epoch more, whatever its seed, and says so."""
    common = [
        "mine_to_train:model",
        "--epochs",
        "2",
        "--checkpoint",
        "run.pt",
        "--batch-size",
        "10",
    ]
    assert "resumed" not in run(*common).output
    again = run(*common)
    assert "resumed run.pt after epoch 2: 0 epochs trained now" in again.stderr
    assert "raise it, or --restart" in again.stderr
    assert "2 epochs, completed" in again.stdout
    more = run(*common, "--epochs", "3", "--seed", "7")
    assert "after epoch 2: 1 epochs trained now; the file's seed 0 goes on, not --seed 7" in (
        more.stderr
    )
    other = run(*common, "--batch-size", "20")
    assert other.exit_code == Exit.BAD_INPUT
    assert "written with batch size 10, and this run has 20" in " ".join(other.stderr.split())


def test_a_resumed_run_keeps_the_split_of_its_seed(here: Path) -> None:
    common = ["digits", "--checkpoint", "run.pt", "--epochs", "1", "--json"]
    first, again = (found(run(*common, "--seed", seed)) for seed in ("3", "4"))
    assert first["final"] == again["final"]
    assert again["seed"] == 3


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["mine_to_train:unlabelled"], Exit.BAD_TARGET, "no labels"),
        (["mine_to_train:model", "--data", "mine_to_train:none"], Exit.BAD_TARGET, "--data"),
        (["mine_to_train:model", "--data", "mine_to_train:wrong"], Exit.BAD_TARGET, "a int"),
        (["nowhere:model"], Exit.BAD_TARGET, "no module"),
        (["mine_to_train:model", "--loss", "l2"], Exit.BAD_INPUT, "targets have shape"),
        (["mine_to_train:model", "--rate", "-1"], Exit.USAGE, "not a positive finite"),
        (["digits", "--checkpoint", "missing/run.pt"], Exit.CANNOT_WRITE, "does not exist"),
        (["mine_to_train:model", "--data", "mine_to_train:broken"], Exit.BAD_TARGET, "KeyError"),
        (["mine_to_train:model", "--data", ":"], Exit.BAD_TARGET, "--data is ':'"),
        (["mine_to_train:model", "--rate", "inf"], Exit.USAGE, "not a positive finite"),
        (["mine_to_train:model", "--checkpoint", "a.safetensors", "--save", "a.safetensors"],
         Exit.USAGE, "both name a.safetensors"),
        (["mine_to_train:model", "--checkpoint", "run.safetensors"],
         Exit.BAD_INPUT, "write run.pt"),
        (["mine_to_train:model", "--save", "weights.pt"], Exit.USAGE, "ends in .safetensors"),
        (["paraboloid", "--rule", "first-order", "--optimizer", "sgd", "--rate", "1e200"],
         Exit.NOT_CONVERGED, "non-finite"),
    ],
)  # fmt: skip
def test_failures_have_a_message_and_a_code(
    arguments: list[str], code: Exit, words: str, here: Path
) -> None:
    result = run(*arguments, "--epochs", "3")
    assert result.exit_code == code, result.output
    assert words in " ".join(result.output.split())


def test_a_model_of_two_inputs_is_trained_on_its_own_labels(here: Path) -> None:
    records = found(run("mine_to_train:two_inputs", "--epochs", "5", "--json"))["records"]
    assert records[-1]["loss"] < 0.9 * records[0]["loss"]


@pytest.mark.parametrize("task", ["paraboloid", "digits"])
def test_a_task_starts_from_the_weights_that_it_saved(task: str, here: Path) -> None:
    common = [task, "--epochs", "1", "--json"]
    first = found(run(*common, "--save", "kept.safetensors"))
    again = found(run(*common, "--weights", "kept.safetensors"))
    assert again["records"][0]["loss"] < first["records"][0]["loss"]


@pytest.mark.parametrize(
    ("option", "name"), [("--checkpoint", "kept.pt"), ("--save", "kept.safetensors")]
)
def test_a_full_disk_is_a_file_that_cannot_be_written(
    option: str, name: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    result = run("mine_to_train:model", "--epochs", "1", option, name)
    assert result.exit_code == Exit.CANNOT_WRITE, result.output
    assert f"cannot write {name}: No space left on device" in result.output
