"""The mutant runner itself, on a small project: what is caught, what survives, what is refused."""

from pathlib import Path

import pytest

from tests import mutants

SOURCE = "def area(r):\n    return 3 * r * r\n"
TESTS = "from torchsheaf.disc import area\n\n\ndef test_area():\n    assert area({at}) == {is_}\n"


def entry(**changes: str) -> str:
    fields = {
        "file": "disc.py",
        "original": "3 * r * r",
        "mutated": "3 * r",
        "why": "area is quadratic",
        **changes,
    }
    lines = [f'{key} = "{value}"' for key, value in fields.items()]
    return "\n".join(["[[mutant]]", *lines, 'tests = ["test_disc.py"]', ""])


def project(folder: Path, listing: str, *, at: int = 2, is_: int = 12) -> Path:
    package = folder / "src" / "torchsheaf"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "disc.py").write_text(SOURCE)
    (folder / "test_disc.py").write_text(TESTS.format(at=at, is_=is_))
    (folder / "tests").mkdir()
    (folder / "tests" / "mutants.toml").write_text(listing)
    return folder


def test_a_noticed_mutant_is_caught_and_the_tree_is_left_alone(tmp_path: Path) -> None:
    root = project(tmp_path, entry())
    before = {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}
    assert mutants.main([], root) == mutants.CAUGHT
    assert {file: file.read_bytes() for file in root.rglob("*") if file.is_file()} == before


def test_an_unnoticed_mutant_survives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # At r = 1 the square makes no difference, so these tests are blind to the change.
    root = project(tmp_path, entry(), at=1, is_=3)
    assert mutants.main([], root) == mutants.SURVIVED
    assert "area is quadratic" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("listing", "is_", "message"),
    [
        (entry(original="4 * r"), 12, "occurs 0 times"),
        (entry(original="r"), 12, "times, not once"),
        (entry(file="ring.py"), 12, "no such file"),
        (entry(mutated="3 * r * r"), 12, "changes nothing"),
        (entry(colour="red"), 12, "colour"),
        (entry(), 13, "fail without any mutant"),
        ("", 12, "no mutants to try"),
    ],
)
def test_a_wrong_list_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], listing: str, is_: int, message: str
) -> None:
    root = project(tmp_path, listing, is_=is_)
    assert mutants.main([], root) == mutants.BAD_LIST
    assert message in capsys.readouterr().err


def test_every_listed_mutant_can_be_applied(tmp_path: Path) -> None:
    """The list keeps up with the code; whether the mutants are caught is for `make mutants`."""
    for mutant in mutants.read_list(mutants.ROOT / "tests" / "mutants.toml"):
        package = mutants.ROOT / "src" / "torchsheaf"
        text = (package / mutant.file).read_text(encoding="utf-8")
        assert text.count(mutant.original) == 1, mutant
        assert all((mutants.ROOT / test.split("::")[0]).exists() for test in mutant.tests), mutant
