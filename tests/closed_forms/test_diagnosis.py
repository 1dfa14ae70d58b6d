"""Diagnostics against dense algebra and against what their definitions force."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.reference.networks import fill, randn
from torchsheaf.boundary import Pin, Problem, hold
from torchsheaf.diagnose import (
    agreement,
    discord,
    fault_profile,
    label_energy,
    nudged_discord,
    prediction,
    spectra,
    tension_correction,
    watch,
)
from torchsheaf.diagnose.spectra import direction_stability
from torchsheaf.figures import evolution_heatmap, prediction_figure, spectral_evolution_figure
from torchsheaf.harmonic import harmonic_extension
from torchsheaf.report import analyse, beside, render
from torchsheaf.report.against_section import parting
from torchsheaf.sheaf import encode
from torchsheaf.train import SheafTrainer, fit


@pytest.fixture(scope="module")
def held() -> tuple[Problem, nn.Sequential]:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3)
    ).double()
    x = torch.randn(12, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return hold(encode(net, x), x), net


@pytest.mark.parametrize(("labels", "margin"), [("any", 0.3), ("winning", 0.0)])
def test_label_energy_is_the_constrained_least_squares_minimum(held, labels, margin) -> None:
    problem, net = held
    outputs = problem.start("forward")["4"]
    y = torch.arange(12) % 3 if labels == "any" else outputs.argmax(1)
    found = label_energy(problem, y, margin=margin)
    assert labels == "any" or bool((found.signed < 0).all())
    inverse = torch.linalg.inv(problem.coboundary(problem.start("forward")).to_dense())
    k = (inverse @ inverse.mT)[:, -3:, -3:]
    z = problem.start("forward")["4"]
    for m in range(12):
        energies = []
        for j in set(range(3)) - {int(y[m])}:
            u = torch.zeros(3, dtype=torch.float64)
            u[y[m]], u[j] = 1.0, -1.0
            gap = margin - u @ z[m]
            energies.append(0.5 * gap * gap.abs() / (u @ k[m] @ u))
        assert float(found.signed[m]) == pytest.approx(float(max(energies)), rel=1e-10)
    assert torch.allclose(found.discord.total, 2 * found.signed.abs())


@pytest.mark.parametrize("squash", [nn.Sigmoid, nn.Hardsigmoid])
def test_label_energy_of_a_probability_is_that_of_reaching_one_half(squash) -> None:
    net = fill(nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 1), squash()), 3)
    x = randn(1, 12, 4)
    problem = hold(encode(net, x), x)
    output = problem.start("forward")["3"][:, 0]
    y = torch.arange(12) % 2
    found = label_energy(problem, y)
    inverse = torch.linalg.inv(problem.coboundary(problem.start("forward")).to_dense())
    k = inverse[:, -1].square().sum(1)
    size = 0.5 * (0.5 - output) ** 2 / k
    assert torch.allclose(found.signed, torch.where((output > 0.5).long() == y, -size, size))


def test_label_energy_is_what_a_pin_costs_while_the_pattern_stays() -> None:
    """A linear network has one pattern: the energy of the relaxed problem is exactly this."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1)).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    problem = hold(encode(net, x), x)
    pinned = harmonic_extension(problem.pin(Pin("output", torch.zeros(6, 1, dtype=torch.float64))))
    found = label_energy(problem, torch.ones(6, dtype=torch.int64))
    assert torch.allclose(pinned.energy, found.signed.abs())
    assert torch.allclose(discord(pinned).values, found.discord.values)


@pytest.mark.parametrize(
    ("labels", "message"),
    [(torch.zeros(12), "class numbers"), (torch.full((12,), 3), "0 … 2"),
     (torch.zeros(5, dtype=torch.int64), "one label per sample")],
)  # fmt: skip
def test_label_energy_refuses_labels_that_do_not_fit(held, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        label_energy(held[0], labels)


def test_an_inactive_unit_has_a_zero_weight_row_and_a_gate_residual(held) -> None:
    """The corrected signature of a dead unit: it is the weight edge's row that vanishes."""
    problem, net = held
    y = torch.randn(12, 3, dtype=torch.float64)
    ext = harmonic_extension(problem.pin(Pin("output", y)))
    off = ext.cochain["2"] < -1e-6
    assert bool(off.any())
    assert float(ext.residual["2"][off].abs().max()) < 1e-7
    back = ext.residual["4"] @ net[4].weight
    assert torch.allclose(ext.residual["3"][off], back[off].detach(), atol=1e-6)


def test_spectra_in_batches_equal_dense_eigenpairs(held) -> None:
    problem, _ = held
    found = spectra(problem, tol=1e-9, numbers=60 * problem.free.dim * 5)  # 5 + 5 + 2 samples
    dense = torch.linalg.eigh(problem.laplacian(problem.start("forward")).to_dense())
    assert torch.allclose(found.gap, dense.eigenvalues[:, 0])
    assert torch.allclose(found.top, dense.eigenvalues[:, -1])
    for vectors, exact in ((found.smallest.vectors, 0), (found.largest.vectors, -1)):
        cosine = (vectors[..., 0] * dense.eigenvectors[..., exact]).sum(1).abs()
        assert torch.allclose(cosine, torch.ones_like(cosine), atol=1e-6)
    total = sum(found.fiedler_energy.values())
    assert torch.allclose(total, torch.ones_like(total))
    unit = found.unit_energy("3")
    assert torch.allclose(unit.sum(1), found.top_energy["3"])


def test_direction_stability_ignores_signs_and_averages_pairs() -> None:
    v = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    assert direction_stability(v) == pytest.approx(1 / 3)


def test_fault_profile_names_every_faulty_step_and_no_other(held) -> None:
    problem, net = held
    healthy = problem.start("forward")
    state = {k: v.clone() for k, v in net.state_dict().items()}
    try:
        with torch.no_grad():
            net[0].weight[2] *= 1.5
            net[4].bias.copy_(net[4].bias.roll(1))
        profile = fault_profile(problem, healthy)
    finally:
        net.load_state_dict(state)
    assert {name for name, misfit in profile.ranked() if misfit > 1e-12} == {"0", "4"}
    assert [f.holds for f in profile.findings(1e-6)] == [False, True, True, True, False]
    with pytest.raises(ValueError, match="no value for vertex"):
        fault_profile(problem, healthy.select(["input", "0"]))


def test_tension_of_the_forward_pass_changes_nothing_and_tension_is_added(held) -> None:
    problem, _ = held
    forward = problem.start("forward")
    assert float(tension_correction(problem, forward, problem).shift.abs().max()) == 0
    moved = {**forward, "4": forward["4"] + 2.0}
    found = tension_correction(problem, type(forward)(moved), problem)
    assert torch.allclose(found.shift, torch.full_like(found.shift, 2.0))


def test_prediction_squares_sum_to_discord_and_can_be_drawn(held) -> None:
    problem, _ = held
    at = problem.start("random", torch.Generator().manual_seed(0))
    table = discord(problem, at)
    for edge in ("2", "3"):
        view = prediction(problem, at, edge)
        assert torch.allclose(view.residual.square().sum(1), table.column(edge))
        assert len(prediction_figure(view).axes) == 2
    with pytest.raises(ValueError, match="no edge named"):
        prediction(problem, at, "9")


class Writer:
    def __init__(self) -> None:
        self.seen: list[tuple[str, float, int]] = []

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.seen.append((tag, value, step))


def batch_normalised() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))


def test_watch_does_not_change_an_ordinary_training_run() -> None:
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(2))
    y = (x.sum(1) > 0).long()

    def train(watched: bool):
        torch.manual_seed(3)
        net = batch_normalised()
        step = torch.optim.Adam(net.parameters(), 0.05)
        writer = Writer()
        monitor = watch(net, (x, y), samples=32, spectral=4, writer=writer) if watched else None
        for _ in range(4):
            step.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            step.step()
            if monitor is not None:
                monitor()
        return net, monitor, writer

    plain, _, _ = train(False)
    net, monitor, writer = train(True)
    assert all(m.training for m in net.modules())
    for a, b in zip(plain.state_dict().values(), net.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    seen = monitor.evolution
    assert seen.discord.shape == (len(seen.edges), 32, 4)
    net.eval()
    now = hold(encode(net, x[:4]), x[:32])  # the live weights, read afresh
    assert torch.allclose(seen.discord[..., -1].mT.float(), nudged_discord(now, y[:32]).values)
    assert {step for _, _, step in writer.seen} == {0, 1, 2, 3}
    assert np.isfinite([value for _, value, _ in writer.seen]).all()
    assert evolution_heatmap(seen).axes
    assert spectral_evolution_figure(seen).axes


@pytest.mark.parametrize("own", [True, False])
def test_watch_draws_nothing_that_the_loop_would_draw(own: bool) -> None:
    x, y = torch.randn(24, 2), torch.arange(24) % 2
    source = torch.Generator().manual_seed(3)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, y), 8, shuffle=True, generator=source if own else None
    )
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    before = torch.get_rng_state(), source.get_state()
    watch(net, loader)
    after = torch.get_rng_state(), source.get_state()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_watch_refuses_a_spectrum_in_half_precision_before_the_loop() -> None:
    net, x = nn.Sequential(nn.Linear(2, 2), nn.ReLU()).bfloat16(), torch.randn(8, 2).bfloat16()
    with pytest.raises(ValueError, match="Lanczos needs float32: write spectral=0"):
        watch(net, (x, None))
    monitor = watch(net, (x, None), spectral=0)
    monitor()
    assert monitor.evolution.steps == [0]
    edge = prediction(hold(monitor.sheaf, x), hold(monitor.sheaf, x).start("random"), "1")
    assert len(prediction_figure(edge).axes) == 2


def test_watch_is_a_callback_of_fit_and_reads_loaders() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 2))
    x = torch.randn(30, 2)
    y = (x[:, 0] > 0).long()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)
    monitor = watch(net, loader, samples=20, spectral=0, every=2)
    trainer = SheafTrainer(net, loss="cross_entropy", rule="first-order")
    fit(trainer, (x, y), torch.optim.SGD(net.parameters(), 0.1), epochs=4, callbacks=[monitor],
        progress=False)  # fmt: skip
    assert monitor.evolution.steps == [0, 2]
    assert monitor.evolution.discord.shape[1] == 20
    with pytest.raises(ValueError, match="empty"):
        watch(net, [])


def test_report_shows_verdicts_and_two_models_side_by_side(held) -> None:
    problem, net = held
    x = problem.values["input"]
    y = problem.start("forward")["4"].argmax(1)
    healthy = analyse(net, x, y, title="healthy", max_samples=8)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    with torch.no_grad():
        net[2].bias[1] = -1e3
    try:
        suspect = beside(analyse(net, x, y, title="<suspect>", max_samples=8), healthy)
        ranked = parting(suspect, healthy).ranked()
        page = render(suspect)
    finally:
        net.load_state_dict(state)
    assert ranked[0][0] == "2"
    assert "dead units" in page
    assert "look at this" in page
    assert "Side by side" in page
    assert "<suspect>" not in page
    assert "Side by side" not in render(healthy)
    with pytest.raises(ValueError, match="different samples"):
        beside(analyse(net, x[4:], title="other"), healthy)


def test_a_map_that_jumps_is_not_held_against_the_uniqueness_of_critical_points() -> None:
    """T2 leaves jumps out: a descent may stop at one, which says nothing about the network."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 9), nn.Threshold(0.5, 0.0), nn.Linear(9, 2)).double()
    x = torch.randn(8, 3, dtype=torch.float64)
    problem = hold(encode(net, x), x)
    found = agreement(harmonic_extension(problem), net(x))
    assert all(f.holds for f in found)
    assert not any("random values" in f.name for f in found)


def test_a_page_does_not_call_fine_what_cannot_be_told() -> None:
    """An untrained network says nothing against labels: neither found nor excluded."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    y = (net(x).argmax(1) + torch.arange(40) % 3) % 3  # two in three wrong
    page = render(analyse(net, x, y))
    assert "cannot be told" in page
    assert "5 known faults were looked for; none was found." in page
    assert "None of 5 known faults" in page
    assert "are among the 40 that" not in page  # which are all
