"""docs/errata.md against its scripts: each claim is refuted, each printed number comes out."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from reproduce.errata.__main__ import ENTRIES, main

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "errata.md").read_text(encoding="utf-8")
CONSOLE = re.compile(r"```console\n\$ python -m reproduce\.errata (\S+)\n(.*?)\n```", re.DOTALL)
PRINTED = dict(CONSOLE.findall(PAGE))
NUMBER = re.compile(r"-?\d[\d,]*\.?\d*(?:e[+-]?\d+)?")
# Below this a number is rounding noise, which another processor may print otherwise.
NOISE = 1e-9
# Below this it is an error of single precision, which depends on the order of summation.
ROUNDING, FACTOR = 1e-6, 2.0
# Training runs and counts of switches depend on rounding more than closed forms do.
TOLERANCE = 0.15


def words(text: str) -> list[str]:
    return NUMBER.sub("#", text).split()


def numbers(text: str) -> list[float]:
    return [float(found.replace(",", "").rstrip(".")) for found in NUMBER.findall(text)]


def same(ours: float, page: float) -> bool:
    if abs(ours) < NOISE and abs(page) < NOISE:
        return True
    if 0 < ours < ROUNDING and 0 < page < ROUNDING:
        return 1 / FACTOR <= ours / page <= FACTOR
    return abs(ours - page) <= TOLERANCE * max(abs(ours), abs(page))


def test_page_and_scripts_name_the_same_entries():
    assert set(PRINTED) == set(ENTRIES)
    assert len(CONSOLE.findall(PAGE)) == len(PRINTED)


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_claim_is_refuted_with_the_numbers_on_the_page(name):
    text, refuted = ENTRIES[name].report()
    assert refuted, text
    assert words(text) == words(PRINTED[name])
    pairs = list(zip(numbers(text), numbers(PRINTED[name]), strict=True))
    assert all(same(ours, page) for ours, page in pairs), text


def test_comparison_notices_a_changed_number():
    assert same(1.111, 1.11)
    assert same(3e-15, 8e-17)
    assert not same(1.111, 0.851)
    assert not same(1e-3, 0.0)
    assert same(4.0e-8, 2.8e-8)
    assert not same(9e-8, 2.8e-8)


def test_command_line_runs_by_name_prefix_and_list(capsys):
    assert main(["lab04", "lab14.shape"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("verdict:  refuted") == 2
    assert main(["--list"]) == 0
    assert "lab12.sign" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no erratum is called 'lab99'"):
        main(["lab99"])


def test_command_runs_from_a_fresh_process():
    done = subprocess.run(
        [sys.executable, "-m", "reproduce.errata", "ch08.homogeneous"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "refuted" in done.stdout
