"""The discord table and the agreement findings against sums written out by hand."""

import math

import pandas
import pytest
import torch
from torch import nn

import torchsheaf as ts
from torchsheaf.diagnose.agreement import agreement
from torchsheaf.diagnose.findings import Verdict, above, at_most, noted


@pytest.fixture
def net(generator: torch.Generator) -> nn.Sequential:
    made = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 1)).double()
    for p in made.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return made


def test_discord_in_the_papers_normalisation(
    net: nn.Sequential, generator: torch.Generator
) -> None:
    """d_e = mean over samples of ‖r_e‖²: no ½, no division by width, no edge weight."""
    x = torch.randn(7, 2, generator=generator, dtype=torch.float64)
    sheaf = ts.encode(net, x)
    weighted = ts.hold(sheaf, x, weights={"0": 3.0})
    c = weighted.start("random", generator)
    table = ts.discord(weighted, c)
    w1, b1, w2, b2 = net[0].weight, net[0].bias, net[2].weight, net[2].bias
    z, a, out = c["0"], c["1"], c["2"]
    by_hand = {
        "0": (z - x @ w1.T - b1).square().sum(1),
        "1": (a - z.clamp_min(0)).square().sum(1),
        "2": (out - a @ w2.T - b2).square().sum(1),
    }
    for name, values in by_hand.items():
        torch.testing.assert_close(table.column(name), values.detach())
    mean = torch.stack([v.mean() for v in by_hand.values()]).detach()
    torch.testing.assert_close(table.mean, mean)
    torch.testing.assert_close(table.share, mean / mean.sum())
    torch.testing.assert_close(table.per_coordinate, mean / torch.tensor([6.0, 6, 1]).double())
    # A layer is a weight edge with the gates after it, as in the paper's tables.
    assert set(table.by_layer) == {"0", "2"}
    torch.testing.assert_close(table.by_layer["0"], (by_hand["0"] + by_hand["1"]).detach())
    torch.testing.assert_close(table.by_kind["gate"], by_hand["1"].detach())
    assert [e.kind for e in table.edges] == ["affine", "gate", "affine"]


def test_total_is_twice_the_energy_and_pins_have_their_row(
    net: nn.Sequential, generator: torch.Generator
) -> None:
    x = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    wanted = torch.randn(5, 1, generator=generator, dtype=torch.float64)
    problem = ts.hold(ts.encode(net, x), x)
    hard = ts.harmonic_extension(problem.pin(ts.Pin("2", wanted)))
    torch.testing.assert_close(ts.discord(hard).total, 2 * hard.energy)
    soft = ts.harmonic_extension(problem.pin(ts.Pin("2", wanted, weight=1.0)))
    table = ts.discord(soft)
    assert (table.edges[-1].name, table.edges[-1].kind, table.edges[-1].layer) == (
        "pin:2",
        "pin",
        "2",
    )
    torch.testing.assert_close(table.column("pin:2"), (soft.output - wanted).square().sum(1))
    torch.testing.assert_close(table.total, 2 * soft.energy)
    # A soft pin pulls less than a hard one.
    assert bool((soft.energy <= hard.energy + 1e-12).all())


def test_worst_samples_come_first(net: nn.Sequential, generator: torch.Generator) -> None:
    x = torch.randn(9, 2, generator=generator, dtype=torch.float64)
    problem = ts.hold(ts.encode(net, x), x)
    table = ts.discord(problem, problem.start("random", generator))
    order = sorted(range(9), key=lambda i: -float(table.total[i]))
    assert table.worst(4).tolist() == order[:4]


def test_pandas_has_one_row_per_sample_and_edge(
    net: nn.Sequential, generator: torch.Generator
) -> None:
    x = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    problem = ts.hold(ts.encode(net, x), x)
    table = ts.discord(problem, problem.start("random", generator))
    frame = table.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert len(frame) == 4 * 3
    pivot = frame.pivot(index="sample", columns="edge", values="discord").to_numpy()
    assert pivot == pytest.approx(table.values.numpy())
    assert frame.groupby("sample")["share"].sum().to_numpy() == pytest.approx(1.0)


def test_a_forward_pass_has_no_discord(net: nn.Sequential) -> None:
    x = torch.ones(3, 2, dtype=torch.float64)
    table = ts.discord(ts.harmonic_extension(ts.hold(ts.encode(net, x), x)))
    assert float(table.values.abs().max()) == 0.0
    assert float(table.share.abs().max()) == 0.0
    assert (table.to_pandas()["share"] == 0).all()


def test_discord_refuses_what_it_cannot_read(net: nn.Sequential) -> None:
    x = torch.ones(3, 2, dtype=torch.float64)
    problem = ts.hold(ts.encode(net, x), x)
    with pytest.raises(TypeError, match="needs the cochain"):
        ts.discord(problem)
    with pytest.raises(TypeError, match="got Tensor"):
        ts.discord(x)  # type: ignore[arg-type]
    table = ts.discord(problem, problem.start("forward"))
    with pytest.raises(KeyError, match="no edge named 'nine'"):
        table.column("nine")


def test_agreement_notices_a_wrong_output(net: nn.Sequential) -> None:
    """The same check that passes on the model's output fails on a slightly wrong one."""
    x = torch.ones(3, 2, dtype=torch.float64)
    forward = ts.harmonic_extension(ts.hold(ts.encode(net, x), x))
    with torch.no_grad():
        right, wrong = net(x), net(x) * (1 + 1e-9)
    assert all(f.holds for f in agreement(forward, right))
    failed = [f.name for f in agreement(forward, wrong) if not f.holds]
    assert failed == ["largest difference to the model's output, relative"]
    with pytest.raises(ValueError, match="expected has shape"):
        agreement(forward, right[:2])
    with pytest.raises(ValueError, match="input held and nothing else"):
        agreement(ts.harmonic_extension(forward.problem.pin(ts.Pin("2", right + 1))), right)


def test_agreement_assembles_or_says_that_it_does_not(net: nn.Sequential) -> None:
    x = torch.ones(3, 2, dtype=torch.float64)
    forward = ts.harmonic_extension(ts.hold(ts.encode(net, x), x))
    expected = forward.output
    names = [f.name for f in agreement(forward, expected)]
    assert any("assembled for 3 samples" in name for name in names)
    large = agreement(forward, expected, assemble_up_to=0)
    (structural,) = [f for f in large if "triangular order" in f.name]
    assert structural.value == 0
    assert "not assembled" in structural.advice


def test_a_bound_is_kept_or_not() -> None:
    said = {"source": "s", "advice": "a"}
    assert at_most("n", 1.0, 1.0, **said).verdict is Verdict.HOLDS
    assert at_most("n", 1.1, 1.0, **said).verdict is Verdict.FAILS
    assert above("n", 0.0, 0.0, **said).verdict is Verdict.FAILS
    assert above("n", 1e-9, 0.0, **said).holds
    assert noted("n", 5.0, **said).verdict is Verdict.NOTED
    for make in (at_most, above):
        assert not make("n", math.nan, 1.0, **said).holds
    assert not noted("n", math.nan, **said).holds
