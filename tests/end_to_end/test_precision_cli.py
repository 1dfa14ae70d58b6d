"""`torchsheaf precision` from the command line: tables, files, codes, demonstrations."""

import json
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from torchsheaf.cli.exits import Exit
from torchsheaf.cli.failures import CommandFailed
from torchsheaf.cli.precision import precision, split
from torchsheaf.precision import check_certificate

FACTORY = """
import torch
from torch import nn

def small():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 4))
    return net, torch.randn(16, 6)

def hostile():
    net = nn.Sequential()
    net.add_module("<b>x</b>", nn.Linear(6, 3))
    torch.manual_seed(0)
    return net, torch.randn(4, 6)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("factories")
    (path / "precision_factories.py").write_text(FACTORY)
    sys.path.insert(0, str(path))
    return path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(precision, list(arguments))


def test_a_target_is_planned_with_files_beside_it(folder: Path) -> None:
    files = [str(folder / n) for n in ("c.json", "plan", "plan.html")]
    done = run(
        "precision_factories:small", "--budget", "5e-3", "--holdout", "0.5",
        "--certificate", files[0], "--figures", files[1], "--html", files[2],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    for word in ("operation", "predicted", "measured", "held out", "cost", "sections"):
        assert word in done.output
    assert any(
        "PROVED" in s for s in check_certificate.check(json.loads(Path(files[0]).read_text()))
    )
    for end in ("-error.svg", "-graph.svg"):
        assert Path(files[1] + end).read_text().lstrip().startswith("<?xml")
    page = Path(files[2]).read_text()
    assert "How few bits each step needs" in page
    assert "<script src" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    checked = run("check", files[0])
    assert checked.exit_code == 0
    assert "ACCEPTED" in checked.output


def test_json_is_plain_and_complete(folder: Path) -> None:
    done = run("plan", "precision_factories:small", "--budget", "1e-2", "--json", "--pin", "0=fp32")
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert data["measured"] <= data["budget"]
    assert data["assignment"]["0"] == "fp32"
    assert sum(b["share"] for b in data["blame"]) == pytest.approx(1.0)


def test_names_from_a_model_are_escaped_on_the_page(folder: Path) -> None:
    from precision_factories import hostile  # type: ignore[import-not-found]

    from torchsheaf.precision import plan
    from torchsheaf.report.precision_section import precision_page

    page = precision_page(plan(*hostile(), budget=1e-1), "<i>title</i>")
    assert "<b>x</b>" not in page
    assert "&lt;b&gt;x&lt;/b&gt;" in page
    assert "<i>title" not in page


def test_a_changed_certificate_is_refused_with_a_code(folder: Path) -> None:
    path = folder / "changed.json"
    assert (
        run("precision_factories:small", "--budget", "1e-2", "--certificate", str(path)).exit_code
        == 0
    )
    data = json.loads(path.read_text())
    data["claims"]["gap"] = "1/7"
    path.write_text(json.dumps(data))
    done = run("check", str(path))
    assert isinstance(done.exception, CommandFailed)
    assert done.exception.code == 9
    assert f"REJECTED {path}: " in str(done.exception)


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "3", '{"schema": "other"}', "\x00\xff"])
def test_what_is_no_certificate_is_refused_by_its_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(content, encoding="latin-1")
    done = run("check", str(path))
    assert isinstance(done.exception, CommandFailed)
    assert str(path) in str(done.exception)
    assert done.exception.code == (Exit.CHECK_FAILED if "schema" in content else Exit.BAD_TARGET)


@pytest.mark.parametrize("option", ["--certificate", "--figures", "--html"])
def test_where_nothing_can_be_written_is_noticed_before_the_planning(
    tmp_path: Path, option: str
) -> None:
    # The target does not exist: whatever comes first is what is noticed.
    done = run("nowhere:net", "--budget", "1", option, str(tmp_path / "absent" / "x"))
    assert isinstance(done.exception, CommandFailed)
    assert done.exception.code == Exit.CANNOT_WRITE
    assert option in str(done.exception)


def test_where_no_profile_can_be_written_is_noticed_before_the_timing(tmp_path: Path) -> None:
    done = run("profile", str(tmp_path / "absent" / "x.json"))
    assert isinstance(done.exception, CommandFailed)
    assert "does not exist" in str(done.exception)


def test_conformance_prints_the_count_and_every_check_on_request() -> None:
    done = run("conformance", "--formats", "bf16", "--all")
    assert done.exit_code == 0, done.output
    assert "0 fail" in done.output
    assert "65,536" in done.output


def test_a_profile_is_measured_and_used(folder: Path) -> None:
    path = str(folder / "here.json")
    assert run("profile", path).exit_code == 0
    done = run("precision_factories:small", "--budget", "1e-2", "--profile", path)
    assert done.exit_code == 0, done.output
    assert "'here'" in done.output


@pytest.mark.parametrize("name", ["pathological", "feed-forward"])
def test_demonstrations_run(name: str) -> None:
    done = run("demo", name)
    assert done.exit_code == 0, done.output
    assert "largest error" in done.output
    if name == "pathological":
        assert "overflow: the exact result of exp" in done.output
        assert "off the grid" in done.output


def test_the_headline_is_true_uniform_fails_and_a_mixture_works() -> None:
    from torchsheaf.precision.demos import pathological
    from torchsheaf.precision.problem import AssignmentProblem

    demo = pathological()
    assert all(r.refuted for r in demo.refutations)
    assert {r.proofs[0].kind for r in demo.refutations} == {"overflow", "grid"}
    assert all(p.recheck() for r in demo.refutations for p in r.proofs)
    mixed = demo.plans[8e-3]
    assert set(mixed.assignment.values()) == {"fp16", "bf16"}
    assert mixed.measured.value <= 8e-3
    problem: AssignmentProblem = mixed.problem
    assert all(len(set(s)) <= 2 for s in problem.stalks.values())


def test_training_demonstrations_are_accurate_in_the_planned_formats() -> None:
    from torchsheaf.precision.demos import images, transformer

    pictures = images(steps=60)
    plain = next(w for w in pictures.ways if w.name == "uniform fp32")
    planned = [w for w in pictures.ways if w.name.startswith("plan")]
    assert plain.accuracy is not None
    assert plain.accuracy > 0.8
    assert planned
    for w in planned:
        assert w.accuracy is not None
        assert abs(w.accuracy - plain.accuracy) < 0.02
        assert w.error > 0, "executed in low precision, not fp32 under another name"
        assert w.memory_mb < 0.7 * plain.memory_mb
    attention = transformer(steps=160)
    best = next(w for w in attention.ways if w.name == "uniform fp32")
    assert best.accuracy is not None
    assert best.accuracy > 0.9
    assert any(w.accuracy == best.accuracy for w in attention.ways if w.name.startswith("plan"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("demo", "nothing"), "is not one of"),
        (("demo", "transformer", "--data", "mnist"), "belongs to"),
        (("precision_factories:small",), "Missing option '--budget'"),
        (("precision_factories:small", "--budget", "1", "--norm", "l7"), "is not one of"),
        (("precision_factories:small", "--budget", "1", "--pin", "fp32"), "NAME=FORMAT"),
        (("precision_factories:small", "--budget", "1", "--holdout", "0.2"), "write 0.5 or more"),
        (("precision_factories:small", "--budget", "0"), "'--budget': budget is 0.0; write a posi"),
        (("precision_factories:small", "--budget", "nan"), "'--budget': budget is nan"),
        (("precision_factories:small", "--budget", "1", "--probes", "0"), "'--probes'"),
        (
            ("precision_factories:small", "--budget", "1", "--formats", "int8"),
            "'--formats': format",
        ),
    ],
)
def test_wrong_command_lines_say_what_to_write(
    folder: Path, arguments: tuple[str, ...], words: str
) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert words in done.output


def test_splitting_keeps_whole_batches() -> None:
    import torch

    used, kept = split((torch.arange(10),), 0.7)
    assert used[0].tolist() == [0, 1, 2]
    assert kept[0].tolist() == [3, 4, 5, 6, 7, 8]
    assert split((torch.arange(10),), 0.0)[1] is None


def test_inputs_without_a_shared_batch_axis_are_not_split() -> None:
    import torch

    single = (torch.tensor(0.5), torch.arange(10))
    assert split(single, 0.0) == (single, None)
    for inputs in (single, (torch.zeros(4, 2), torch.zeros(2)), (torch.zeros(0, 2),)):
        with pytest.raises(click.BadParameter, match="--holdout"):
            split(inputs, 0.5)


@pytest.mark.parametrize("device", ["nowhere", "meta", "cuda:77"])
def test_a_device_that_cannot_be_used_is_refused(tmp_path: Path, device: str) -> None:
    for words in (("conformance",), ("profile", str(tmp_path / "x.json"))):
        done = run(*words, "--device", device)
        assert isinstance(done.exception, ValueError)
        assert f"device is '{device}', which cannot be used here" in str(done.exception)
    assert not list(tmp_path.iterdir())
