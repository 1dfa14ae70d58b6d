"""Every number that a diagnosis reports, computed again from its definition."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.reference.networks import fill, randn, relu_mlp
from torchsheaf.boundary import Pin, Problem, hold
from torchsheaf.diagnose import (
    Discord,
    Evolution,
    Familiarity,
    agreement,
    discord,
    fault_profile,
    label_energy,
    nudged_discord,
    pathologies,
    prediction,
    spectra,
    watch,
)
from torchsheaf.diagnose.pathology import suspicious_labels, unstable_rate
from torchsheaf.harmonic import harmonic_extension
from torchsheaf.sheaf import encode
from torchsheaf.train import SheafTrainer
from torchsheaf.train.fit import Progressed


@pytest.fixture
def net() -> nn.Sequential:
    return relu_mlp([3, 6, 4], 1)


@pytest.fixture
def problem(net: nn.Sequential) -> Problem:
    x = randn(2, 7, 3)
    return hold(encode(net, x), x)


def dense_eigenvalues(problem: Problem, at: object = None) -> Tensor:
    c = problem.start("forward") if at is None else at
    return torch.linalg.eigvalsh(problem.laplacian(c).to_dense())


def test_agreement_reports_its_worst_sample(problem: Problem, net: nn.Sequential) -> None:
    forward = harmonic_extension(problem)
    expected = net(problem.values["input"]).detach()
    wrong = expected.clone()
    wrong[2, 1] += 1.0
    difference, second, energy, _, least = agreement(forward, wrong)
    size = float(wrong.abs().max())
    assert difference.value == pytest.approx(1 / size, rel=1e-9)
    assert second.value == pytest.approx(1 / size, rel=1e-5)
    assert energy.value == 0
    values = dense_eigenvalues(problem)
    assert least.value == pytest.approx(float(values[:, 0].min()), rel=1e-3)
    energies = torch.arange(7, dtype=torch.float64)
    moved = agreement(replace(forward, energy=energies), expected)
    assert [f.value for f in moved if "energy" in f.name] == [6.0]
    assert [f.holds for f in moved] == [True, True, False, True, True]


def test_a_pin_belongs_to_the_layer_of_its_vertex(problem: Problem) -> None:
    pinned = problem.pin(Pin("1", torch.zeros(7, 6).double(), weight=1.0))
    table = discord(pinned, problem.start("forward"))
    assert [e.layer for e in table.edges] == ["0", "0", "2", "0"]
    assert table.edges[-1].dim == 6


def test_a_table_names_the_edge_of_largest_mean_when_printed(problem: Problem) -> None:
    edges = discord(problem, problem.start("forward")).edges
    table = Discord(edges, torch.tensor([[9.0, 0.0, 1.0], [0.0, 0.0, 20.0]]))
    assert repr(table) == "Discord(2 samples, 3 edges; most at '2': 10.5)"


def test_evolution_as_numbers_for_a_logger(problem: Problem) -> None:
    edges = discord(problem, problem.start("forward")).edges
    looks = [torch.tensor([[1.0, 2.0, 3.0], [3.0, 4.0, 7.0]]), torch.ones(2, 3)]
    seen = Evolution(
        edges, [0, 1], gaps=[torch.tensor([1.0, 2.0, 3.0])] * 2, findings=[(), ()],
        tops=[torch.tensor([4.0, 8.0, 9.0])] * 2, tables=looks[::-1],
    )  # fmt: skip
    assert seen.scalars() == {
        "sheaf/gap": 2.0, "sheaf/top": 8.0, "sheaf/condition": 4.0,
        "discord/0": 2.0, "discord/1": 3.0, "discord/2": 5.0,
    }  # fmt: skip
    assert torch.equal(seen.discord[..., 1], looks[0].mT)
    assert torch.equal(seen.discord[..., 0], looks[1].mT)


def test_a_look_is_quartiles_over_samples_and_says_when(net: nn.Sequential) -> None:
    x = randn(3, 9, 3)
    monitor = watch(net, (x, None), samples=9, spectral=9, every=2)
    trainer = SheafTrainer(net, loss="l2", rule="first-order")
    for epoch in (4, 5):
        monitor(Progressed(epoch, trainer, {}))
    assert monitor.evolution.steps == [4]
    values = dense_eigenvalues(hold(encode(net, x), x)).numpy()
    for found, column in ((monitor.evolution.gap, 0), (monitor.evolution.top, -1)):
        expected = np.quantile(values[:, column], [0.25, 0.5, 0.75])
        assert found[0].numpy() == pytest.approx(expected, rel=1e-6)


def test_a_watch_leaves_every_module_in_its_mode() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 2))).train()
    model[1][0].eval()
    before = [m.training for m in model.modules()]
    watch(model, (torch.ones(5, 3), torch.arange(5) % 2))
    assert [m.training for m in model.modules()] == before
    assert not all(before)
    assert any(before)


def test_familiarity_is_a_mahalanobis_distance_calibrated_on_the_other_half() -> None:
    net, x = relu_mlp([3, 6, 4], 1), randn(5, 40, 3)
    sheaf = encode(net, x)
    problem = hold(sheaf, x)

    def distance(reference: Tensor, given: Tensor) -> np.ndarray:
        parts = []
        known, other = sheaf.forward(reference), sheaf.forward(given)
        for name in ("input", "0", "1", "2"):
            a, b = known[name].numpy(), other[name].numpy()
            c = np.cov(a.T, bias=True)
            s = 0.9 * c + 0.1 * np.trace(c) / len(c) * np.eye(len(c))
            d = b - a.mean(0)
            parts.append(np.einsum("mi,ij,mj->m", d, np.linalg.inv(s), d) / len(c))
        return np.mean(parts, 0)

    known = Familiarity.of(problem)
    other = randn(6, 30, 3)
    far = np.linspace(0.5, 4, 30)
    held = hold(sheaf, other * torch.from_numpy(far)[:, None])
    expected = distance(x, held.values["input"])
    assert known.distance(held.start("forward")).numpy() == pytest.approx(expected, rel=1e-9)
    limit = 1.5 * np.quantile(distance(x[::2], x[1::2]), 0.99)
    assert known.limit == pytest.approx(limit, rel=1e-9)
    finding = known.finding(held)
    foreign = expected > limit
    assert 0 < foreign.sum() < 30
    assert finding.value == pytest.approx(foreign.mean())
    worst = np.argsort(-expected)[: min(8, int(foreign.sum()))]
    assert f": {', '.join(map(str, worst))}" in finding.advice


def test_misfit_is_relative_to_the_references_size(problem: Problem) -> None:
    healthy = problem.start("forward").map(lambda t: 0.1 * t)
    profile = fault_profile(problem, healthy)
    c, model = healthy, problem.sheaf.network.model
    residuals = {"0": c["0"] - model[0](problem.values["input"] * 0.1), "1": c["1"] * 0,
                 "2": c["2"] - model[2](c["1"])}  # fmt: skip
    expected = {n: float(r.detach().norm() / c[n].norm()) for n, r in residuals.items()}
    assert dict(profile.ranked()) == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert [n for n, _ in profile.ranked()] == sorted(expected, key=expected.__getitem__)[::-1]


def test_label_energy_with_edge_weights_is_the_relaxed_energy_of_a_linear_network() -> None:
    net = fill(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1)), 2)
    x = randn(1, 6, 3)
    problem = hold(encode(net, x), x, weights={"0": 3.0, "1": 0.3})
    pinned = harmonic_extension(problem.pin(Pin("output", torch.zeros(6, 1).double())), tol=1e-12)
    found = label_energy(problem, torch.ones(6, dtype=torch.int64))
    torch.testing.assert_close(found.signed.abs(), pinned.energy)
    expected = discord(pinned).values  # weights that float32 would round
    torch.testing.assert_close(found.discord.values, expected, rtol=1e-11, atol=1e-14)


def test_the_rivals_are_those_of_largest_output(problem: Problem) -> None:
    y = torch.arange(7) % 4
    z = problem.start("forward")["2"]
    nearest = z.scatter(1, y[:, None], -torch.inf).argmax(1)
    one = label_energy(problem, y, rivals=1)
    assert torch.equal(one.rival, nearest)
    rows = torch.arange(7)
    torch.testing.assert_close(one.gap, z[rows, nearest] - z[rows, y])
    every = label_energy(problem, y)
    alone = torch.stack([label_energy(problem, y, rivals=k).signed for k in (1, 2, 3)], 1)
    assert bool((alone.diff(dim=1) >= 0).all())
    assert torch.equal(alone[:, -1], every.signed)
    assert bool((every.rival != y).all())
    torch.testing.assert_close(every.gap, z[rows, every.rival] - z[rows, y])
    assert bool((every.rival != nearest).any())


def test_what_the_labels_pull_on(problem: Problem) -> None:
    """Without labels the deviation from the mean; a probability against its label itself."""
    z = problem.start("forward")["2"]
    pulled = nudged_discord(problem)
    torch.testing.assert_close(pulled.column("2"), (z - z.mean(0)).square().sum(1))
    x = problem.values["input"]
    y = torch.arange(7) % 2
    for last, p in ((nn.Sigmoid(), lambda t: t), (nn.Identity(), torch.sigmoid)):
        one = fill(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1), last), 3)
        held = hold(encode(one, x), x)
        table = nudged_discord(held, y)
        expected = (y[:, None] - p(one(x).detach())).square()[:, 0]
        torch.testing.assert_close(table.values[:, -1], expected)


def test_a_prediction_has_an_input_only_where_it_lies_under_the_coordinates(
    problem: Problem,
) -> None:
    at = problem.start("random", torch.Generator().manual_seed(0))
    assert prediction(problem, at, "2").input is None
    given = prediction(problem, at, "1").input
    assert given is not None
    assert torch.equal(given, at["0"])


def test_spectra_at_a_cochain_in_batches(problem: Problem) -> None:
    at = problem.start("random", torch.Generator().manual_seed(0))
    whole, parts = (spectra(problem, at=at, tol=1e-9, numbers=60 * 16 * k) for k in (7, 3))
    values = dense_eigenvalues(problem, at)
    for found in (whole, parts):
        torch.testing.assert_close(found.gap, values[:, 0])
        torch.testing.assert_close(found.top, values[:, -1])
    passes = [
        spectra(problem.samples(torch.tensor([i])), tol=1e-9).smallest.passes for i in range(7)
    ]
    order = torch.tensor(passes).argsort()
    assert passes[order[0]] < passes[order[-1]]
    alone = spectra(problem.samples(order), tol=1e-9, numbers=60 * 16)
    assert alone.smallest.passes == max(passes)


def test_findings_of_signals_and_discord_by_hand(problem: Problem, net: nn.Sequential) -> None:
    x, y = problem.values["input"], torch.arange(7) % 4
    found = {f.name: f for f in pathologies(problem, y)}
    c = problem.start("forward")
    spread = {n: float(c[n].numpy().var(0).mean() / x.numpy().var(0).mean()) for n in ("0", "2")}
    assert found["vanishing signal"].value == pytest.approx(1 / min(spread.values()))
    assert found["exploding signal"].value == pytest.approx(max(spread.values()))
    d = nudged_discord(problem, y).mean
    ratio = float(d[0] / d[2])
    assert found["exploding discord from 2 back to 0"].value == pytest.approx(ratio)
    assert found["vanishing discord from 2 back to 0"].value == pytest.approx(1 / ratio)
    assert unstable_rate(0.1, 4.0, alpha=3.0).bound == pytest.approx(1 / 6)


def test_right_answers_of_a_saturated_output_are_not_stuck() -> None:
    net = nn.Sequential(nn.Linear(1, 1), nn.Sigmoid()).double()
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[0].bias.zero_()
    x = torch.tensor([[20.0], [-20.0], [18.0], [0.1]]).double()
    held = hold(encode(net, x), x)
    for y, share in (([1, 0, 1, 0], 0.0), ([1, 1, 0, 0], 0.5)):
        found = {f.name: f for f in pathologies(held, torch.tensor(y))}
        assert found["samples stuck behind 1"].value == share


def test_units_are_dead_where_every_sample_and_every_position_is_flat() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU()).double()
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).double().view(2, 1, 1, 2)
    with torch.no_grad():
        net[0].weight.view(-1).copy_(torch.tensor([1.0, -1.0, -1.0, -1.0]))
        net[0].bias.copy_(torch.tensor([0.0, 1.5, 2.5, -9.0]))  # flat: none, 3 of 4, sample 2, all
    dead = pathologies(hold(encode(net, x), x))[0]
    assert dead.value == 1
    assert "1[3]" in dead.advice


def test_labels_are_ranked_against_the_median_of_the_winning_energies() -> None:
    """One number per sample, an affine network: the energy of a label is z|z|/(2K), K = 1 + w²."""
    net = nn.Sequential(nn.Linear(1, 1)).double()
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[0].bias.zero_()
    x = torch.tensor([1, 1, 1, 1, 1, 1, 1, 9, 0.8, 1.5, 0.6]).double()[:, None]
    y = torch.tensor([1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0])
    finding = suspicious_labels(hold(encode(net, x), x), y)
    # the median energy is that of z = 1, so a label loses by half of it from z = √½ on
    assert finding.value == pytest.approx(2 / 11)
    assert "samples 9, 8:" in finding.advice
    few = suspicious_labels(hold(encode(net, x[4:]), x[4:]), y[4:])
    assert few.verdict.value != finding.verdict.value
    assert "57.1% of the labels only" in few.advice
