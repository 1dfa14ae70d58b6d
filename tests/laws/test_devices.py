"""On a graphics card everything stays there: every main path on a card that is only pretended.

`PretendedCuda` refuses a call that mixes devices, as a real card does.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import torchsheaf as ts
from tests.reference.networks import randn, relu_mlp
from tests.reference.pretended_cuda import CARD, PretendedCuda
from torchsheaf import precision
from torchsheaf.linalg.three_term import three_term_lanczos
from torchsheaf.network.laws import check_rule
from torchsheaf.network.rules import rule_for
from torchsheaf.precision.arguments import read_formats, read_model
from torchsheaf.precision.conformance import conformance
from torchsheaf.precision.sensitivity import analyse
from torchsheaf.train import EquilibriumRule, JointEuler, RecursiveRule, SheafTrainer, fit

LABELS = torch.tensor([0, 1, 0, 1, 1])


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)
        self.out = nn.Linear(27, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.max_pool2d(self.norm(self.conv(x)).relu(), 2)
        return self.out(h.view(-1, 27))


class Attending(nn.Module):
    """A mask made on the input's device, and positions merged with the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.out = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(3, 3, dtype=torch.bool, device=x.device).triu(1)
        return self.out(self.attention(x, x, x, attn_mask=mask)[0].reshape(-1, 12))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x).mean(1))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: relu_mlp([3, 6, 6, 2], 0), (3,)),
    "smooth": (lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)), (3,)),
    "convolutional": (Convolutional, (1, 8, 8)),
    "attending": (Attending, (3, 4)),
    "encoder": (Encoder, (3, 4)),
}


@pytest.fixture
def cuda() -> PretendedCuda:
    return PretendedCuda()


def on_card(name: str, samples: int = 5) -> tuple[nn.Module, Tensor]:
    make, shape = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().double().eval()
    return model.to(CARD), randn(1, samples, *shape).to(CARD)


def pinned(name: str = "mlp", samples: int = 5) -> ts.Problem:
    model, x = on_card(name, samples)
    sheaf = ts.encode(model, x)
    return ts.hold(sheaf, x).pin(ts.Pin(sheaf.output(), torch.zeros(2, dtype=x.dtype)))


def test_the_pretended_card_refuses_what_a_real_one_does(cuda: PretendedCuda) -> None:
    with cuda:
        here, there = torch.ones(3), torch.ones(3, device="cuda")
        assert (here.device.type, there.device.type, there.is_cuda) == ("cpu", "cuda", True)
        assert (2 * there[:2]).device == there.new_zeros(1).device == there.cpu().to(CARD).device
        assert (there + torch.tensor(1.0)).device == there[torch.tensor([0])].device == CARD
        assert torch.vmap(lambda t: 2 * t)(there).device == CARD
        assert torch.func.vjp(lambda t: t.square(), there)[1](there)[0].device == CARD
        mixed: list[Callable[[], object]] = [
            lambda: here + there,
            lambda: torch.cat([here, there]),
            lambda: torch.stack([torch.tensor(1.0), there[0]]),
            lambda: torch.nn.functional.linear(there, here[None]),
            lambda: torch.isin(there, here),
            lambda: here[there.long()],
            lambda: torch.func.vjp(lambda t: t.square(), there)[1](here),
            lambda: torch.randn(2, device=CARD, generator=torch.Generator()),
            lambda: torch.randn(2, generator=cuda.generator()),
        ]
        for call in mixed:
            with pytest.raises(RuntimeError, match="device"):
                call()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        before = cuda.reads
        assert float(there.sum()) == 3.0
        assert float(here.sum()) == 3.0
        assert cuda.reads == before + 1


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("form", ["unfused", "fused"])
def test_encode_and_forward(cuda: PretendedCuda, name: str, form: str) -> None:
    with cuda:
        model, x = on_card(name)
        sheaf = ts.encode(model, x, form=form)
        values = sheaf.forward(x)
        assert {t.device for t in values.values()} == {CARD}
        assert torch.equal(values[sheaf.output()], model(x).detach())
        assert sheaf.trace(x)[0][sheaf.output()].device == CARD


@pytest.mark.parametrize("name", ["mlp", "smooth", "convolutional", "encoder"])
def test_a_held_output_settles(cuda: PretendedCuda, name: str) -> None:
    with cuda:
        problem = pinned(name)
        found = ts.harmonic_extension(problem, tol=1e-6, max_passes=400)
        assert found.outcome.ok
        assert {t.device for t in found.cochain.values()} == {CARD}
        assert {found.energy.device, found.gates.sliding.device} == {CARD}
        assert ts.discord(found).values.device == CARD


@pytest.mark.parametrize("solver", ["newton", "block descent"])
def test_solvers_and_several_starts(cuda: PretendedCuda, solver: str) -> None:
    with cuda:
        for generator in (None, cuda.generator(), torch.Generator().manual_seed(1)):
            found = ts.harmonic_extension(
                pinned(), solver=solver, starts=4, generator=generator, tol=1e-6, throw=False
            )
            assert found.energy.device == CARD


def test_a_net_without_gates_counts_none_of_them_for_each_sample(cuda: PretendedCuda) -> None:
    with cuda:
        gates = ts.stationarity(p := pinned("smooth"), p.start("forward")).gates
        assert (gates.sliding.shape, gates.sliding.device) == ((5,), CARD)
        assert gates.sliding.tolist() == [0] * 5


@pytest.mark.parametrize(
    ("method", "widths"),
    [
        ("exact", (3, 6, 6, 2)),  # regions are kept
        ("exact", (3, 12, 12, 2)),  # too many coordinates for that
        ("euler", (3, 4, 2)),
        ("ode", (3, 4, 2)),
    ],
)
def test_heat_flow(cuda: PretendedCuda, method: str, widths: tuple[int, ...]) -> None:
    with cuda:
        x = randn(1, 3, 3).to(CARD)
        problem = ts.hold(ts.encode(relu_mlp(widths, 0).to(CARD), x), x)
        problem = problem.pin(ts.Pin("output", torch.tensor([2.0, -1.0])))
        seeded = torch.Generator().manual_seed(0)
        flow = ts.heat_flow(problem, until=0.3, method=method, times=3, generator=seeded)
        assert flow.energy.device == CARD
        assert method == "ode" or len(flow.events) > 0


def test_spectra_from_a_generator_anywhere(cuda: PretendedCuda) -> None:
    with cuda:
        problem = pinned()
        assert ts.spectra(problem).gap.device == CARD
        for which in ("smallest", "largest"):
            for vectors in (True, False):
                for generator in (None, cuda.generator(), torch.Generator()):
                    found = ts.spectrum(
                        problem, which=which, vectors=vectors, generator=generator, throw=False
                    )
                    assert found.values.device == CARD
        seeded = [
            ts.spectrum(problem, generator=g, k=2).values
            for g in (cuda.generator(), torch.Generator().manual_seed(20260314))
        ]
        assert torch.equal(*seeded)


def test_diagnosis_with_labels_from_the_cpu(cuda: PretendedCuda) -> None:
    with cuda:
        model, x = on_card("mlp")
        sheaf = ts.encode(model, x)
        problem = ts.hold(sheaf, x)
        forward = problem.start("forward")
        assert ts.nudged_discord(problem, LABELS).values.device == CARD
        for y in (LABELS, randn(2, 5, 2), None):
            assert ts.pathologies(problem, y)
        assert ts.label_energy(problem, LABELS).signed.device == CARD
        assert ts.tension_correction(problem, forward, problem)
        assert ts.fault_profile(problem, forward).ranked()
        extension = ts.harmonic_extension(problem)
        for generator in (None, cuda.generator()):
            assert all(f.holds for f in ts.agreement(extension, model(x), generator=generator))
        familiar = ts.Familiarity.of(ts.hold(sheaf, randn(3, 30, 3).to(CARD)))
        assert familiar.distance(forward).device == CARD
        assert all(t.device == CARD for t in ts.counterfactual(sheaf, x, ts.Pin("2", 0.5)).effect)
        assert ts.nearest_consistent(sheaf, x, LABELS, weights=(1.0,)).prediction.shape == (5,)
        assert "cuda" in str(ts.report(model, x, LABELS))


@pytest.mark.parametrize(
    ("rule", "data"),
    [
        ("edge", "loader"), ("first-order", "loader"), ("equilibrium", "loader"),
        ("recursive", "loader"), ("first-order", "tensors"), ("first-order", "on the card"),
    ],
)  # fmt: skip
def test_fit_moves_batches_to_the_model(cuda: PretendedCuda, rule: str, data: str) -> None:
    """The same numbers as on the CPU, wherever the data and the generator are."""
    x, y = randn(4, 8, 3), torch.eye(2, dtype=torch.float64).repeat(4, 1)
    curves = []
    for place in ("cpu", CARD):
        with cuda:
            model = relu_mlp([3, 4, 2], 0).to(place)
            card = place == CARD and data == "on the card"
            pair = (x.to(CARD), y.to(CARD)) if card else (x, y)
            loader = DataLoader(TensorDataset(x, y), batch_size=4)
            history = fit(
                SheafTrainer(model, loss="l2", rule=rule),
                loader if data == "loader" else pair,
                torch.optim.SGD(model.parameters(), lr=0.1),
                epochs=2,
                batch_size=None if data == "loader" else 4,
                generator=cuda.generator() if card else torch.Generator().manual_seed(20260314),
                validation=(x, y),
                progress=False,
            )
            assert {p.device for p in model.parameters()} == {torch.device(place)}
            curves.append(history.records)
    assert curves[0] == curves[1]


@pytest.mark.parametrize("loss", ["l2", "l1", "huber", "bce", "cross_entropy"])
def test_targets_are_moved_to_the_output(cuda: PretendedCuda, loss: str) -> None:
    y = LABELS if loss == "cross_entropy" else randn(5, 5, 2).sigmoid()
    with cuda:
        model, x = on_card("mlp")
        trainer = SheafTrainer(model, loss=loss, rule="first-order")
        assert trainer.local_gradients(x, y).device == CARD


def test_watch_moves_a_loader_to_the_model(cuda: PretendedCuda) -> None:
    loader = DataLoader(TensorDataset(randn(6, 8, 3), torch.arange(8) % 2), batch_size=4)
    with cuda:
        monitor = ts.watch(on_card("mlp")[0], loader)
        monitor()
        assert monitor.evolution.steps == [0]


@pytest.mark.parametrize("rule", [RecursiveRule, lambda: EquilibriumRule(warm=True)])
def test_a_run_resumes_on_another_device(
    cuda: PretendedCuda, tmp_path: Path, rule: Callable[[], ts.train.LocalRule]
) -> None:
    x, y = randn(7, 6, 3), randn(8, 6, 2)
    records = []
    for places in (("cpu", "cpu"), ("cpu", CARD), (CARD, "cpu"), (CARD, CARD)):
        file = tmp_path / "-".join(map(str, places)).replace(":", "")
        for epochs, place in enumerate(places, start=1):
            with cuda:
                model = relu_mlp([3, 4, 2], 0).to(place)
                trainer = SheafTrainer(model, loss="l2", rule=rule())
                step = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
                history = fit(trainer, (x, y), step, epochs=epochs, checkpoint=file, progress=False)
        records.append(history.records)
    assert records[0] == records[1] == records[2] == records[3]


@pytest.mark.parametrize("rule", [RecursiveRule, lambda: EquilibriumRule(warm=True)])
def test_a_rule_remembers_after_its_model_has_moved(
    cuda: PretendedCuda, rule: Callable[[], ts.train.LocalRule]
) -> None:
    x, y = randn(7, 6, 3), randn(8, 6, 2)
    with cuda:
        model = relu_mlp([3, 4, 2], 0).to(CARD)
        trainer = SheafTrainer(model, loss="l2", rule=rule())
        trainer.local_gradients(x.to(CARD), y)
        model.to("cpu")
        assert trainer.local_gradients(x, y).device.type == "cpu"


def test_a_checkpoint_keeps_the_cards_random_state(
    cuda: PretendedCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y, restored = randn(7, 6, 3), randn(8, 6, 2), []
    monkeypatch.setattr(
        PretendedCuda, "_set_rng_state", staticmethod(lambda s, d="cuda": restored.append(str(d)))
    )
    for place, expected in ((CARD, []), (CARD, ["cuda:0"]), ("cpu", [])):
        restored.clear()
        with cuda:
            model = relu_mlp([3, 4, 2], 0).to(place)
            step = torch.optim.SGD(model.parameters(), lr=0.1)
            loop = fit(
                SheafTrainer(model, loss="l2", rule="first-order"), (x, y), step, epochs=1,
                checkpoint=tmp_path / "run", progress=False,
            )  # fmt: skip
        assert len(loop.records) == 1
        resumed = [d for d in restored if d == "cuda:0"][: len(expected)]
        assert resumed == expected
        if place == "cpu":
            assert restored == []


def test_joint_flow_draws_from_a_generator_anywhere(cuda: PretendedCuda) -> None:
    with cuda:
        net = relu_mlp([3, 4, 2], 0)
        x, y = randn(1, 5, 3), randn(2, 5, 2)
        flow = JointEuler()
        for source in (cuda.generator(), torch.Generator()):
            state = flow.start(net.to(CARD), x.to(CARD), y, generators=[source])
            assert flow.run(state, 3).w[0].device == CARD


@pytest.mark.parametrize("name", ["mlp", "convolutional", "encoder"])
def test_precision(cuda: PretendedCuda, name: str) -> None:
    with cuda:
        model, x = on_card(name, 2)
        model, x = model.float(), x.float()
        plan = precision.plan(model, x, budget=1e-2, generator=cuda.generator())
        assert plan.assignment
        assert precision.refute(model, x, "bf16", 1e-9).refuted


def test_kernels_are_checked_on_the_card(cuda: PretendedCuda) -> None:
    with cuda:
        for generator in (None, cuda.generator()):
            found = conformance(
                ("fp32", "bf16"), device="cuda", operators=("mm", "exp"), generator=generator
            )
            assert not found.missing


def test_a_rule_is_checked_on_examples_from_the_card(cuda: PretendedCuda) -> None:
    with cuda:
        x, w, b = (randn(i, *s).to(CARD) for i, s in enumerate([(2, 3), (4, 3), (4,)]))
        linear = rule_for("aten.linear.default")
        assert linear is not None
        check_rule(linear, torch.ops.aten.linear.default, (x, w, b))


def test_finiteness_is_one_wait(cuda: PretendedCuda) -> None:
    with cuda:
        x = torch.tensor([1.0, -torch.inf], device=CARD)
        before = cuda.reads
        assert not ts.cochain.is_finite(x)
        assert cuda.reads == before + 1


def test_waits_of_an_epoch(cuda: PretendedCuda) -> None:
    """A batch is waited for twice: is its input finite, and is its loss; its labels on the CPU
    cost nothing, and the epoch's sum of losses is read at its end."""
    counts = []
    with cuda:
        for batches in (2, 6):
            x, y = randn(1, 4 * batches, 3), torch.arange(4 * batches) % 2
            model = relu_mlp([3, 4, 2], 0).to(CARD)
            before = cuda.reads
            fit(
                SheafTrainer(model, rule="first-order"), (x, y),
                torch.optim.SGD(model.parameters(), lr=0.1), epochs=1, batch_size=4, progress=False,
            )  # fmt: skip
            counts.append(cuda.reads - before)
    assert (counts[1] - counts[0]) / 4 == 2


def test_waits_of_the_short_recurrence(cuda: PretendedCuda) -> None:
    """One per product, whatever the batch."""
    with cuda:
        weights = torch.linspace(1, 2, 40, dtype=torch.float64, device=CARD)
        start = randn(1, 7, 40).to(CARD)
        before = cuda.reads
        found = three_term_lanczos(lambda v: weights * v, start, tol=1e-9)
        assert cuda.reads - before == found.products
        assert bool((found.values - 2).abs().max() < 1e-6)


def test_waits_of_a_probe(cuda: PretendedCuda) -> None:
    """One per probe, whatever the number of operations."""
    with cuda:
        model, x = on_card("mlp")
        flow = read_model(model, x)
        formats = read_formats(("fp32", "bf16"))
        counts = []
        for probes in (2, 6):
            before = cuda.reads
            analyse(flow, (x,), formats, probes=probes)
            counts.append(cuda.reads - before)
    assert counts[1] - counts[0] == 4
