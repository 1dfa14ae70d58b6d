"""Bars: shown after a while, to whom it may concern, and never two at once."""

import io
from contextlib import nullcontext

import pytest
import torch
from rich.console import Console
from rich.live import Live
from torch import nn

import torchsheaf as ts
from tests.reference.networks import fill, randn
from torchsheaf import progress
from torchsheaf.harmonic import extension
from torchsheaf.harmonic.block_descent import BlockDescent
from torchsheaf.harmonic.newton import Newton


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal would show, at once."""
    shown = io.StringIO()
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    console = Console(file=shown, force_terminal=True, width=80)
    monkeypatch.setattr(progress, "standard_error", lambda: console)
    return shown


def held(activation: nn.Module) -> ts.Problem:
    model = fill(nn.Sequential(nn.Linear(3, 6), activation, nn.Linear(6, 2)), 0)
    x = randn(1, 40, 3)
    return ts.hold(ts.encode(model, x), x).pin(ts.Pin("output", 2 * randn(2, 40, 2)))


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Tanh()])
def test_a_relaxation_shows_the_share_of_samples_at_rest(
    terminal: io.StringIO, activation: nn.Module
) -> None:
    ts.harmonic_extension(held(activation), progress=True)
    assert "samples at rest" in terminal.getvalue()
    assert "100%" in terminal.getvalue()


def test_without_a_terminal_or_when_refused_nothing_is_shown(terminal: io.StringIO) -> None:
    ts.harmonic_extension(held(nn.ReLU()), progress=False)
    ts.harmonic_extension(held(nn.ReLU()))  # the standard error of a test is no terminal
    assert terminal.getvalue() == ""


def test_a_short_run_shows_nothing(terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 1000.0)
    ts.harmonic_extension(held(nn.ReLU()), progress=True)
    assert terminal.getvalue() == ""


def test_inside_another_bar_it_does_no_harm(terminal: io.StringIO) -> None:
    with (
        Live("the command's own", console=progress.standard_error()),
        progress.progress_bar(True, "inner") as tell,
    ):
        tell(0.5)
        tell(1.0)
    assert "the command's own" in terminal.getvalue()


@pytest.mark.parametrize("solver", [Newton(), BlockDescent()])
def test_the_share_rises_from_start_to_end(solver: Newton | BlockDescent) -> None:
    problem, shares = held(nn.ReLU()), []
    found = solver.solve(problem, problem.start("forward"), 1e-8, 20_000, shares.append)
    assert found.outcome.ok
    assert shares == sorted(shares)
    assert len(set(shares)) > 1
    assert shares[-1] == 1


def test_several_starts_share_one_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    monkeypatch.setattr(extension, "progress_bar", lambda show, name: nullcontext(shares.append))
    ts.harmonic_extension(held(nn.ReLU()), starts=3, generator=torch.Generator().manual_seed(0))
    assert shares == sorted(shares)
    assert shares[-1] == 1
