"""The command line as a person uses it, judged by what it prints and returns."""

import ast
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn

import torchsheaf
from torchsheaf.cli import VERBS, Exit, choices, main
from torchsheaf.cli.loading import TARGET_HELP
from torchsheaf.examples import EXAMPLES
from torchsheaf.examples.paper_tasks import PAPER_TASKS
from torchsheaf.file import write_text
from torchsheaf.network.target import FORMS as TARGETS
from torchsheaf.outcome import ConvergenceError, Outcome
from torchsheaf.precision import FORMATS
from torchsheaf.precision.demos import DEMOS
from torchsheaf.precision.measure import NORMS
from torchsheaf.precision.profile import shipped_profiles
from torchsheaf.report.labels import HOLDS
from torchsheaf.sheaf.encode import FORMS
from torchsheaf.train.trainer import RULES

MODULE = """
import torch
from torch import nn

def small():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.ones(5, 3)

def bare():
    return nn.Linear(3, 2)

def wrong_input():
    return nn.Linear(3, 2), "x"

def unsupported():
    class Signs(nn.Module):
        def forward(self, x):
            return torch.sign(x)
    return Signs(), torch.randn(4, 3)

def broken():
    return nn.Sequential(nn.Linear(3, 4)), torch.full((5, 3), float("nan"))

number = 3
"""


def run(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-c", "from torchsheaf.cli import main; main()", *arguments],
        capture_output=True, text=True, cwd=folder, env=environment, timeout=240,
    )  # fmt: skip


def test_help_and_a_wrong_word_import_no_command() -> None:
    code = (
        "import sys\nfrom torchsheaf.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: status = end.code\n"
        "mine = [m for m in sys.modules if m.startswith('torchsheaf.cli.')]\n"
        "assert set(mine) == {'torchsheaf.cli.exits', 'torchsheaf.cli.failures'}, mine\n"
        "sys.exit(status)"
    )
    for word, status in (("--help", 0), ("trian", int(Exit.USAGE))):
        found = subprocess.run([sys.executable, "-c", code, word], capture_output=True, text=True)
        assert found.returncode == status, found.stderr
        if word == "--help":
            assert "Train a model by local rules" in found.stdout


QUICK = [
    (["--help"], 0), (["--version"], 0), (["trian"], 2), (["--nope"], 2),
    *(([verb, "--help"], 0) for verb in VERBS),
    (["precision", "plan", "--help"], 0), (["precision", "demo", "--help"], 0),
    (["pin"], 2), (["pin", "digits-mlp"], 2), (["report"], 2), (["relax", "--method", "magic"], 2),
    (["train", "digits", "--rule", "magic"], 2), (["inspect", "--form", "round"], 2),
    (["precision", "digits-mlp"], 2), (["precision", "demo", "nope"], 2),
]  # fmt: skip


def test_help_and_usage_errors_do_not_import_torch() -> None:
    code = (
        "import json, sys\nimport torchsheaf\nfrom torchsheaf.cli import main\n"
        "for words, status in json.loads(sys.argv[1]):\n"
        "    try: main(words)\n"
        "    except SystemExit as end: assert end.code == status, (words, end.code)\n"
        "    late = {'torch', 'matplotlib', 'scipy', 'numpy'} & set(sys.modules)\n"
        "    assert not late, (words, late)\n"
    )
    command = [sys.executable, "-c", code, json.dumps(QUICK)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_words_of_the_options_are_those_of_the_library() -> None:
    assert sorted(EXAMPLES) == list(choices.EXAMPLES)
    assert choices.TASKS == (*PAPER_TASKS, "digits")
    assert (choices.FORMS, choices.HOLDS, choices.NORMS) == (FORMS, HOLDS, NORMS)
    assert choices.RULES == tuple(RULES)
    assert choices.FORMATS == tuple(FORMATS)
    assert list(choices.PROFILES) == shipped_profiles()
    assert list(choices.DEMOS) == sorted(DEMOS)
    assert f"TARGET is {TARGETS}." == TARGET_HELP


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--vertex", "nope"], "no vertex named 'nope'"),
        (["--vertex", "relu1", "--index", "99"], "out of range"),
        (["--vertex", "relu1", "--sample", "9999"], "--sample is 9999"),
    ],
)
def test_what_a_shipped_example_cannot_do_is_refused_before_it_is_trained(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchsheaf.examples.example._fit", lambda *given: pytest.fail("trained"))
    found = CliRunner().invoke(main, ["pin", "digits-mlp", "--value", "1", *arguments])
    assert found.exit_code == Exit.BAD_INPUT
    assert words in " ".join(found.output.split())
    cells = CliRunner().invoke(main, ["inspect", "digits-mlp"])
    assert cells.exit_code == 0


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "nets.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    return tmp_path


def invoke(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def test_the_package_does_not_import_what_only_pages_and_plans_need() -> None:
    code = (
        "import sys, torchsheaf as ts; ts.encode, ts.watch, ts.fit; "
        "late = ('matplotlib', 'scipy', 'networkx', 'torchsheaf.precision'); "
        "print([m for m in late if m in sys.modules]); "
        "print(callable(ts.precision.plan), callable(ts.report), 'precision' in dir(ts))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "True True True"]
    with pytest.raises(AttributeError, match="no attribute 'precison'"):
        torchsheaf.precison  # noqa: B018


def test_every_public_name_is_imported_when_asked_for() -> None:
    """What type checkers read, the table behind it and what `import *` gives are the same."""
    tree = ast.parse(Path(torchsheaf.__file__).read_text(encoding="utf-8"))
    read = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name == alias.asname and alias.name != "precision"
    }
    assert read == torchsheaf.HOMES
    assert all(getattr(torchsheaf, name).__name__ == name for name in torchsheaf.__all__)
    assert set(torchsheaf.__all__) == set(read) < set(dir(torchsheaf))
    # To type checkers __getattr__ would give every name, and an __all__ that is computed none.
    seen = {getattr(t, "id", "") for n in tree.body for t in getattr(n, "targets", ())}
    seen |= {getattr(n, "name", "") for n in tree.body}
    assert "HOMES" in seen
    assert not seen & {"__getattr__", "__all__"}


@pytest.mark.parametrize("name", ["precison", "boundary.pin", "", "_hidden"])
def test_what_is_no_public_name_is_said_as_of_any_module(name: str) -> None:
    with pytest.raises(AttributeError, match=f"no attribute '{name}'"):
        getattr(torchsheaf, name)


def test_the_report_stays_a_function_whatever_is_imported_before() -> None:
    code = (
        "from torchsheaf.report import analyse; import torchsheaf as ts; import inspect; "
        "from torchsheaf import report; import torchsheaf.report.page; "
        "assert inspect.isfunction(ts.report) and ts.report is report; ts.figures, ts.linalg"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_the_demo_writes_a_page_and_ends_with_its_findings(tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    done = run("demo", "--out", str(out), folder=tmp_path)
    assert done.returncode == Exit.OK, done.stderr
    page = out.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert page.rstrip().endswith("</html>")
    # stdout: the findings and, last, the path; everything that moves is on stderr.
    assert done.stdout.strip().splitlines()[-1] == f"The page: {out}"
    assert "classified as labelled" in " ".join(done.stdout.split())
    assert "training" in done.stderr
    assert list(tmp_path.iterdir()) == [out]


def test_the_package_runs_as_a_module() -> None:
    line = [sys.executable, "-m", "torchsheaf", "--help"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert "inspect" in done.stdout
    assert "precision" in done.stdout


def test_inspect_prints_every_cell(folder: Path) -> None:
    done = run("inspect", "nets:small", folder=folder)
    assert done.returncode == Exit.OK, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.strip()]
    assert ["0", "affine", "linear", "input", "4", "4", "16"] in rows
    assert ["1", "gate", "relu", "0", "4", "4"] in rows
    assert "4 vertices, 3 edges" in done.stdout
    assert "10 free coordinates; 26 parameters" in done.stdout


def test_inspect_json_says_the_same(folder: Path) -> None:
    code, out, _ = invoke("inspect", "nets:small", "--json")
    assert code == Exit.OK
    cells = json.loads(out)
    assert [v["name"] for v in cells["vertices"]] == ["input", "0", "1", "2"]
    assert [e["kind"] for e in cells["edges"]] == ["affine", "gate", "affine"]
    assert cells["edges"][0]["parameters"] == {"0.weight": [4, 3], "0.bias": [4]}
    assert cells["edges"][2]["parents"] == ["1"]
    assert cells["outputs"] == ["2"]


def test_the_fused_form_has_no_gates(folder: Path) -> None:
    _, out, _ = invoke("inspect", "nets:small", "--json", "--form", "fused")
    assert [v["name"] for v in json.loads(out)["vertices"]] == ["input", "0", "2"]


@pytest.mark.parametrize("budget", ["0", "-1", "nan", "inf", "much"])
def test_report_refuses_a_budget_when_it_reads_the_command_line(budget: str) -> None:
    code, _, error = invoke("report", "nowhere:net", "--budget", budget)
    assert code == Exit.USAGE
    assert "--budget" in error


def test_report_without_a_plan_within_the_budget_says_why_on_the_page(folder: Path) -> None:
    torch.manual_seed(0)  # some weights leave every ReLU at zero, and then nothing is rounded
    code, out, error = invoke("report", "nets:small", "-o", "page.html", "--budget", "1e-12")
    assert code == 0, error
    assert "not on the page, precision: no section meets the budget 1e-12" in " ".join(out.split())
    page = Path("page.html").read_text("utf-8")
    assert "How few bits each step needs" in page
    assert "no section meets the budget 1e-12" in page


def test_report_of_an_exported_program(folder: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    torch.export.save(
        torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},)),
        folder / "net.pt2",
    )
    code, out, error = invoke("report", "net.pt2", "-o", "page.html")
    assert code == Exit.OK, error
    assert "labels" in out  # the section that is not there is named
    assert "<h1>net.pt2</h1>" in (folder / "page.html").read_text(encoding="utf-8")


def test_weights_are_used(folder: Path) -> None:
    state = {
        "0.weight": torch.zeros(4, 3), "0.bias": torch.ones(4),
        "2.weight": torch.zeros(2, 4), "2.bias": torch.tensor([7.0, 8.0]),
    }  # fmt: skip
    save_file(state, folder / "w.safetensors")
    torch.save(state, folder / "w.pt")
    from torchsheaf.network.target import load_target

    for name in ("w.safetensors", "w.pt"):
        model, inputs, _ = load_target("nets:small", folder / name)
        assert isinstance(model, nn.Module)
        assert torch.equal(model(*inputs), torch.tensor([[7.0, 8.0]]).expand(5, 2))
    code, _, _ = invoke("inspect", "nets:small", "--weights", "w.safetensors")
    assert code == Exit.OK


class Payload:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_weights_are_never_unpickled(folder: Path) -> None:
    torch.save({"0.weight": Payload(folder / "hit")}, folder / "evil.pt")
    code, _, error = invoke("inspect", "nets:small", "--weights", "evil.pt")
    assert code == Exit.BAD_TARGET
    assert "pickled objects" in error
    assert not (folder / "hit").exists()


@pytest.mark.parametrize("member", ["data/constants/opaque_obj_0", "data/aotinductor/model/x.so"])
def test_an_archive_with_foreign_members_is_refused(folder: Path, member: str) -> None:
    import zipfile

    with zipfile.ZipFile(folder / "evil.pt2", "w") as archive:
        archive.writestr("evil/archive_format", "pt2")
        archive.writestr(f"evil/{member}", b"\x80\x04.")
    code, _, error = invoke("inspect", "evil.pt2")
    assert code == Exit.BAD_TARGET
    assert member in error.replace("\n", "")


def test_an_archive_is_never_unpickled(folder: Path) -> None:
    """torch.export.load falls back to full unpickling of the example inputs; ours must not."""
    import io
    import zipfile

    program = torch.export.export(nn.Linear(2, 2), (torch.randn(3, 2),))
    torch.export.save(program, folder / "good.pt2")
    buffer = io.BytesIO()
    torch.save((Payload(folder / "hit"),), buffer)
    with (
        zipfile.ZipFile(folder / "good.pt2") as good,
        zipfile.ZipFile(folder / "evil.pt2", "w") as evil,
    ):
        for name in good.namelist():
            swapped = "sample_inputs" in name
            evil.writestr(name, buffer.getvalue() if swapped else good.read(name))
    code, _, error = invoke("inspect", "evil.pt2")
    assert code == Exit.BAD_TARGET, error
    assert not (folder / "hit").exists()


def test_a_size_that_is_code_is_refused(folder: Path) -> None:
    import zipfile

    expression = "__import__('os').mkdir('hit')"
    with zipfile.ZipFile(folder / "evil.pt2", "w") as archive:
        archive.writestr("evil/archive_format", "pt2")
        archive.writestr("evil/models/model.json", json.dumps({"expr_str": expression}))
    code, _, error = invoke("inspect", "evil.pt2")
    assert code == Exit.BAD_TARGET
    assert "not arithmetic" in error
    assert not (folder / "hit").exists()


FAILURES = [
    (["inspect", "no-such-example"], Exit.BAD_TARGET, "digits-mlp"),
    (["inspect", "missing.pt2"], Exit.BAD_TARGET, "cannot read missing.pt2"),
    (["inspect", "nets.pt2"], Exit.BAD_TARGET, "not a .pt2 archive"),
    (["inspect", "absent_package:f"], Exit.BAD_TARGET, "no module 'absent_package'"),
    (["inspect", "nets:absent"], Exit.BAD_TARGET, "has no 'absent'"),
    (["inspect", "nets:number"], Exit.BAD_TARGET, "int"),
    (["inspect", "nets:bare"], Exit.BAD_TARGET, "(model, x)"),
    (["inspect", "nets:wrong_input"], Exit.BAD_TARGET, "returned a str as its input"),
    (["inspect", "nets:unsupported"], Exit.UNSUPPORTED_MODEL, "sign"),
    (["inspect", "nets:broken"], Exit.BAD_INPUT, "NaN"),
    (["inspect", "nets:small", "--weights", "w.pt"], Exit.BAD_TARGET, "cannot read w.pt"),
    (["inspect", "nets:small", "--weights", "nets.py"], Exit.BAD_TARGET, "nets.py"),
    (["report", "nets:small", "--nearest", "9"], Exit.BAD_INPUT, "2 classes, numbered 0 … 1"),
    (["report", "nets:small", "--samples", "0"], Exit.USAGE, "'--samples': 0 is not in"),
    (
        ["report", "nets:small", "--budget", "-1"],
        Exit.USAGE,
        "budget is -1.0; write a positive number",
    ),
    (["report", "nets:small", "-o", "absent/page.html"], Exit.CANNOT_WRITE, "does not exist"),
    (["reproduce"], Exit.NO_CHECKOUT, "clone the repository"),
    (["lab", "09"], Exit.NO_CHECKOUT, "clone the repository"),
    (["inspect"], Exit.USAGE, "Missing argument"),
    (["no-such-verb"], Exit.USAGE, "No such command"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), FAILURES)
def test_failures_have_a_message_and_a_code(
    folder: Path, arguments: list[str], code: Exit, message: str
) -> None:
    (folder / "nets.pt2").write_text("no archive", encoding="utf-8")
    got, out, error = invoke(*arguments)
    assert got == code, error
    assert message in error
    assert "Traceback" not in error
    assert out == ""


@pytest.mark.parametrize("body", ["raise KeyError('lost')", "raise SystemExit(7)", "def f(: pass"])
def test_a_target_that_fails_is_a_bad_target(folder: Path, body: str) -> None:
    (folder / "failing.py").write_text(body)
    (folder / "made.py").write_text(f"def f(needed):\n    pass\n\ndef g():\n    {body}\n")
    names = ["failing:f", "made:f", "made:g"] if "def f(:" not in body else ["failing:f"]
    for target in names:
        run = subprocess.run(
            [sys.executable, "-m", "torchsheaf", "inspect", target], cwd=folder,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert run.returncode == Exit.BAD_TARGET, run.stderr
        assert "failed: " in run.stderr


def test_debug_adds_the_traceback(folder: Path) -> None:
    code, _, error = invoke("--debug", "inspect", "nets:unsupported")
    assert code == Exit.UNSUPPORTED_MODEL
    assert "Traceback" in error


def test_a_failed_write_leaves_the_old_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = write_text(folder / "page.html", "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_text(page, "new")
    assert page.read_text(encoding="utf-8") == "old"
    assert {f.name for f in folder.iterdir()} == {"nets.py", "page.html"}


def test_the_checkout_lists_its_scripts() -> None:
    root = Path(__file__).parents[2]
    if not (root / "reproduce").is_dir():
        pytest.skip("no reproduce/ in this tree")
    done = run("reproduce", folder=root)
    assert done.returncode == Exit.OK, done.stderr
    names = done.stdout.split()
    assert {"flow", "errata", "induction/measure"} <= set(names)
    assert "errata/entry" not in names, "a part of a script is not one"
    for name in names:
        assert find_spec(f"reproduce.{name.replace('/', '.')}"), name


def test_a_script_of_the_checkout_takes_its_own_options() -> None:
    root = Path(__file__).parents[2]
    if not (root / "reproduce").is_dir():
        pytest.skip("no reproduce/ in this tree")
    done = run("reproduce", "errata", "ch08.homogeneous", folder=root)
    assert done.returncode == Exit.OK, done.stderr
    assert "refuted" in done.stdout
    listed = run("reproduce", "errata", "--list", folder=root)
    assert listed.returncode == Exit.OK, listed.stderr
    assert "ch08.homogeneous" in listed.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A source checkout with a package of scripts and a notebook that draws."""
    (tmp_path / "src" / "torchsheaf").mkdir(parents=True)
    parts = tmp_path / "reproduce" / "study"
    parts.mkdir(parents=True)
    for folder in (parts.parent, parts):
        (folder / "__init__.py").write_text("")
    (parts / "numbers.py").write_text("VALUE = 42\n")
    (parts / "__main__.py").write_text(
        "import sys\nfrom reproduce.study.numbers import VALUE\nprint(VALUE, *sys.argv[1:])\n"
    )
    return tmp_path


def test_a_script_of_the_checkout_may_import_its_neighbours(checkout: Path) -> None:
    listed = run("reproduce", folder=checkout)
    assert listed.stdout.split() == ["study"]
    done = run("reproduce", "study", "all", folder=checkout)
    assert done.returncode == Exit.OK, done.stderr
    assert done.stdout.split() == ["42", "all"]


def test_a_notebook_keeps_its_pictures(checkout: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    source = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    (checkout / "labs").mkdir()
    nbformat.write(notebook, checkout / "labs" / "drawing.ipynb")
    done = run("lab", "drawing", folder=checkout)
    assert done.returncode == Exit.OK, done.stderr
    outputs = nbformat.read(checkout / "labs" / "drawing.ipynb", 4).cells[0].outputs
    assert ["image/png" in o.data for o in outputs if o.output_type == "display_data"] == [True]


def test_every_exit_code_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    for code in Exit:
        assert f"| {code.value} | `{code.name}` | {code.meaning} |" in page
    for example in EXAMPLES.values():
        assert f"| `{example.name}` | {example.summary} |" in page


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), Exit.INTERRUPTED, "interrupted"),
        (ConvergenceError(Outcome.STALLED, "worst 1e-3"), Exit.NOT_CONVERGED, "worst 1e-3"),
        (ZeroDivisionError("by zero"), Exit.UNEXPECTED, "ZeroDivisionError: by zero"),
        (TypeError("x is a list"), Exit.BAD_INPUT, "x is a list"),
        (PermissionError(13, "Permission denied", "w.pt"), Exit.BAD_TARGET, "cannot read w.pt"),
    ],
)
def test_every_error_has_its_code(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: Exit, message: str
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(sys.modules["torchsheaf.cli.inspect"], "load", fails)
    got, _, shown = invoke("inspect", "nets:small")
    assert got == code
    assert message in shown
    assert ("--debug" in shown) == (code is Exit.UNEXPECTED)
