"""`torchsheaf relax` from the outside: numbers, pictures, refusals."""

import json

import pytest
from click.testing import CliRunner
from PIL import Image

from torchsheaf.cli import main
from torchsheaf.cli.exits import Exit

MODEL = """
import torch

def net():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    return model.double(), torch.randn(6, 2, dtype=torch.float64)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "relaxing_model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_relax_prints_numbers_and_draws(here):
    done = CliRunner().invoke(
        main, ["relax", "relaxing_model:net", "--samples", "3", "--out", "pictures", "--json"]
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.output[done.output.index("{") :])
    assert found["method"] == "exact"
    assert found["stationary samples"] == 3
    assert found["worst stationarity"] <= 1e-10
    assert found["output - forward pass"] < 1e-7
    names = {p.name for p in (here / "pictures").iterdir()}
    assert names == {
        "energy.png", "energy-by-kind.png", "energy-by-layer.png", "output.png", "pattern.png",
        "relaxation.gif",
    }  # fmt: skip
    with Image.open(here / "pictures" / "relaxation.gif") as movie:
        assert movie.n_frames > 10


def test_relax_with_the_output_held_reports_slides(here):
    done = CliRunner().invoke(main, ["relax", "relaxing_model:net", "--hold-output"])
    assert done.exit_code == 0, done.output
    assert "stationary samples     6" in done.output


def test_relax_refuses_a_step_above_the_bound(here):
    done = CliRunner().invoke(
        main, ["relax", "relaxing_model:net", "--method", "euler", "--dt", "9", "--until", "1"]
    )
    assert done.exit_code != 0


@pytest.mark.parametrize("taken", ["output.png", "relaxation.gif"])
def test_relax_says_which_picture_it_cannot_write(here, taken):
    (here / "pictures" / taken).mkdir(parents=True)
    arguments = ["--until", "1", "--samples", "1", "--out", "pictures"]
    done = CliRunner().invoke(main, ["relax", "relaxing_model:net", *arguments])
    assert done.exit_code == Exit.CANNOT_WRITE, done.output
    assert f"cannot write pictures/{taken}: " in done.output


@pytest.mark.parametrize("folder", ["relaxing_model.py", "relaxing_model.py/pictures"])
def test_relax_notices_before_the_run_that_it_cannot_write(here, folder, monkeypatch):
    monkeypatch.setattr("torchsheaf.flow.heat_flow", None)  # it must not come to this
    done = CliRunner().invoke(main, ["relax", "relaxing_model:net", "--out", folder])
    assert done.exit_code in (Exit.USAGE, Exit.CANNOT_WRITE), done.output
    assert "relaxing_model.py" in done.output
