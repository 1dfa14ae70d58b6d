"""Files are written whole or not at all, by every part of the package, as readable as any other."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from torch import nn

import torchsheaf as ts
from tests.reference.networks import randn, relu_mlp
from torchsheaf.cli.failures import CommandFailed
from torchsheaf.cli.relax import draw
from torchsheaf.cli.train import _save
from torchsheaf.figures.flow import flow_animation
from torchsheaf.file import write_file, write_text
from torchsheaf.precision.certificate import save_certificate
from torchsheaf.train.checkpoint import save_checkpoint


def pictures(path: Path) -> None:
    x = randn(1, 2, 2)
    problem = ts.hold(ts.encode(relu_mlp([2, 3, 1], 1), x), x)
    flow = ts.heat_flow(problem, until=1.0, times=3, record="states")
    flow_animation(flow, path.with_suffix(".gif"), frames=2)


WRITERS: dict[str, Callable[[Path], object]] = {
    "page": lambda p: write_text(p, "page"),
    "checkpoint": lambda p: save_checkpoint({"torchsheaf.fit": 1}, p),
    "weights": lambda p: _save(nn.Linear(2, 1), p),
    "certificate": lambda p: save_certificate({"schema": 1}, p),
    "animation": pictures,
}


@pytest.fixture
def umask() -> Iterator[int]:
    old = os.umask(0o027)
    yield 0o027
    os.umask(old)


@pytest.mark.parametrize("writer", WRITERS)
def test_permissions_are_those_of_a_plain_file(tmp_path: Path, umask: int, writer: str) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    WRITERS[writer](tmp_path / "ours")
    (ours,) = (f for f in tmp_path.iterdir() if f.stem == "ours")
    assert ours.stat().st_mode == plain.stat().st_mode
    ours.chmod(0o600)  # and those of the file that was there, as a plain open() leaves them
    WRITERS[writer](tmp_path / "ours")
    assert ours.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("writer", WRITERS)
def test_a_failed_write_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    WRITERS[writer](tmp_path / "ours")
    (ours,) = tmp_path.iterdir()
    before = ours.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises((OSError, CommandFailed), match="No space"):
        WRITERS[writer](tmp_path / "ours")
    assert [f.name for f in tmp_path.iterdir()] == [ours.name]
    assert ours.read_bytes() == before


def test_two_runs_do_not_write_into_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"

    def slow(part: Path) -> None:
        part.write_text("slow")
        write_text(path, "fast")
        assert part.read_text() == "slow"
        assert part.suffix == ".json"  # what draws pictures goes by the name's end

    write_file(path, slow)
    assert path.read_text() == "slow"
    assert [f.name for f in tmp_path.iterdir()] == ["a.json"]


def test_pictures_of_a_flow_are_written_whole(tmp_path: Path) -> None:
    x = randn(1, 2, 2)
    model = relu_mlp([2, 3, 1], 1)
    problem = ts.hold(ts.encode(model, x), x)
    flow = ts.heat_flow(problem, until=1.0, times=3, record="states")
    written = draw(flow, tmp_path, problem.start("forward"))
    assert sorted(written) == sorted(str(f) for f in tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"write a name that ends in \.gif"):
        flow_animation(flow, tmp_path / "flow.mp4")
