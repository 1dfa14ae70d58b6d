"""The authors' published runs, repeated with their seeds: the printed digits."""

import json

import pytest

from reproduce.flow import RESULTS, RUNS, euler_run

RUN = {r.name: r for r in RUNS}
WRITTEN = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else {}


@pytest.mark.slow
def test_figure_6_is_repeated_to_its_printed_digits():
    """[2,4,1], seed 7: discord 10.30 → 1.35e-8 → 9.3e-16, crossings at steps 50 and 65."""
    run = RUN["figure 6"]
    found = euler_run(run)
    assert f"{found['discord at start']:.2f}" == "10.30"
    assert f"{found['discord at 5000']:.2e}" == "1.35e-08"
    assert f"{found['discord']:.1e}" == "9.3e-16"
    assert found["crossing steps"] == [50, 65]
    assert found["output"] == [pytest.approx(-0.710566, abs=5e-7)]
    exact = found["limit"]
    assert exact["crossing times"] == pytest.approx([0.50, 0.65], abs=0.01)
    assert exact["error"] < 1e-8


def test_the_committed_results_cover_the_short_runs():
    """The runs of 60,000 steps take minutes and may be missing; these may not."""
    short = {"figure 6", "notebook 1, [2,4,1]", "notebook 1, batch of 5"}
    assert short <= set(WRITTEN) <= set(RUN)


@pytest.mark.parametrize("name", sorted(WRITTEN))
def test_the_committed_results_match_the_printed_digits(name):
    """reproduce/results/flow.json holds every run; iteration counts are equal, not close."""
    measured, published = WRITTEN[name]["measured"], RUN[name].published
    assert WRITTEN[name]["published"] == published
    if "iterations" in published:
        assert measured["iterations"] == published["iterations"]
    # Three printed digits, and two.
    for key, digits in (("discord", 5e-3), ("error", 5e-2)):
        if key in published:
            assert measured[key] == pytest.approx(published[key], rel=digits)
    if "crossings seen" in published:
        assert measured["crossings seen"] == published["crossings seen"]
    if "crossings" in published:
        assert len(measured["crossings seen"]) == published["crossings"]
        assert measured["crossings seen"][-1] == published["last crossing"]
    for key in ("output", "forward"):
        if key in published:
            assert measured[key] == [pytest.approx(published[key], abs=5.1e-7)]
    assert measured["limit"]["error"] < 1e-6
