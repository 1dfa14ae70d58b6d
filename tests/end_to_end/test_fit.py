"""The loop from end to end: any optimiser, exact resume, and every way that a run can go wrong."""

import copy
import math
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from tests.reference.networks import TwoInputs, fill, randn, relu_mlp
from torchsheaf.outcome import ConvergenceError, Outcome
from torchsheaf.train import EquilibriumRule, RecursiveRule, Reluctance, SheafTrainer, fit
from torchsheaf.train.fit import Progressed
from torchsheaf.train.validation import evaluate


def rings(n: int = 96) -> tuple[Tensor, Tensor]:
    x = randn(1, n, 2)
    return x, (x.norm(dim=1) > 1.1).long()


def trained(net: nn.Module, **options: object) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


OPTIMISERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "SGD": lambda m: torch.optim.SGD(m.parameters(), lr=0.5, momentum=0.9, nesterov=True),
    "Adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.02),
    "AdamW": lambda m: torch.optim.AdamW(m.parameters(), lr=0.02),
    "RMSprop": lambda m: torch.optim.RMSprop(m.parameters(), lr=0.01),
    "Adagrad": lambda m: torch.optim.Adagrad(m.parameters(), lr=0.1),
    "Rprop": lambda m: torch.optim.Rprop(m.parameters()),
    "LBFGS": lambda m: torch.optim.LBFGS(m.parameters(), lr=0.5),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_any_torch_optimiser_trains(name: str) -> None:
    net = relu_mlp([2, 16, 2], 1)
    trainer = SheafTrainer(net, rule="first-order")
    history = fit(trainer, rings(), OPTIMISERS[name](net), epochs=25, progress=False)
    assert history.losses[-1] < 0.8 * history.losses[0]


def test_validation_early_stop_callbacks_scheduler_and_clipping() -> None:
    x, y = rings(160)
    net = relu_mlp([2, 16, 2], 1)
    optimiser = torch.optim.SGD(net.parameters(), lr=2.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimiser, 5, 0.1)
    seen: list[tuple[int, float, float]] = []

    def look(p: Progressed) -> None:
        norm = torch.cat([q.grad.flatten() for q in p.trainer.model.parameters()]).norm()
        seen.append((p.epoch, float(norm), optimiser.param_groups[0]["lr"]))

    history = fit(
        SheafTrainer(net, rule="edge"), (x[:96], y[:96]), optimiser, epochs=400, batch_size=32,
        validation=(x[96:], y[96:]), scheduler=scheduler, clip=0.05, patience=3, callbacks=[look],
        progress=False,
    )  # fmt: skip
    assert history.outcome is Outcome.STOPPED_EARLY
    assert history.epochs == len(history.records) == len(seen) < 400
    assert all(norm <= 0.05 + 1e-9 for _, norm, _ in seen)
    assert seen[6][2] == pytest.approx(0.2)
    losses = [r["validation_loss"] for r in history.records]
    assert min(losses) == losses[-4]
    with torch.no_grad():  # validation is that of the plain forward pass
        accuracy = float((net(x[96:]).argmax(1) == y[96:]).double().mean())
    assert history.records[-1]["accuracy"] == pytest.approx(accuracy)


@pytest.mark.parametrize("rule", ["edge", "recursive", "equilibrium"])
def test_resume_gives_the_numbers_of_an_uninterrupted_run(rule: str, tmp_path: Path) -> None:
    x, y = rings()

    def start() -> tuple[SheafTrainer, torch.optim.Optimizer, DataLoader[tuple[Tensor, ...]]]:
        net = relu_mlp([2, 6, 2], 1)
        chosen = {
            "recursive": RecursiveRule(),
            "equilibrium": EquilibriumRule(max_passes=2, warm=True),
        }
        trainer = SheafTrainer(net, rule=chosen.get(rule, rule))
        loader = DataLoader(
            TensorDataset(x, y), batch_size=48, shuffle=True,
            generator=torch.Generator().manual_seed(5),
        )  # fmt: skip
        return trainer, torch.optim.Adam(net.parameters(), lr=0.01), loader

    whole, step, loader = start()
    fit(whole, loader, step, epochs=4, progress=False)
    file = tmp_path / "run.pt"
    first, step, loader = start()
    fit(first, loader, step, epochs=2, progress=False, checkpoint=file)
    second, step, loader = start()
    with torch.no_grad():
        for p in second.model.parameters():
            p.mul_(0)  # everything must come from the file
    history = fit(second, loader, step, epochs=4, progress=False, checkpoint=file)
    assert len(history.records) == 4
    for p, q in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(p, q)


KILLED = """
import sys, time, torch
from torch import nn
from torchsheaf.train import SheafTrainer, fit
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))
x = torch.randn(96, 2); y = (x.norm(dim=1) > 1.1).long()
def slow(p):
    print("epoch", p.epoch, flush=True)
    time.sleep(float(sys.argv[2]))
fit(SheafTrainer(net), (x, y), torch.optim.Adam(net.parameters(), lr=.01), epochs=12, batch_size=32,
    checkpoint=sys.argv[1], callbacks=[slow], progress=False)
torch.save(net.state_dict(), sys.argv[1] + ".final")
"""


def test_kill_dash_nine_and_resume_is_bit_identical(tmp_path: Path) -> None:
    def command(file: str, pause: str) -> list[str]:
        return [sys.executable, "-c", KILLED, str(tmp_path / file), pause]

    subprocess.run(command("whole", "0"), check=True, capture_output=True)
    process = subprocess.Popen(command("cut", "0.3"), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "epoch 5":
            process.send_signal(signal.SIGKILL)  # in the middle of an epoch's end
            break
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert not (tmp_path / "cut.final").exists()
    resumed = subprocess.run(command("cut", "0"), check=True, capture_output=True, text=True)
    assert "epoch 0" not in resumed.stdout
    a, b = (torch.load(tmp_path / f"{n}.final", weights_only=True) for n in ("whole", "cut"))
    assert all(torch.equal(a[k], b[k]) for k in a)


# ---- ways to go wrong: a clear error, and the weights of the last whole epoch


def test_a_loss_that_is_not_a_number_restores_the_last_epoch() -> None:
    net = relu_mlp([2, 8, 1], 1)
    x, y = randn(1, 32, 2), randn(2, 32, 1)
    good: list[list[Tensor]] = []

    def poison(p: Progressed) -> None:
        good.append([q.detach().clone() for q in net.parameters()])
        if p.epoch == 2:
            p.trainer.loss = Broken()

    optimiser = torch.optim.SGD(net.parameters(), lr=0.01)
    trainer = SheafTrainer(net, loss="l2", rule="first-order")
    with pytest.raises(ConvergenceError, match="the loss is nan") as caught:
        fit(trainer, (x, y), optimiser, epochs=9, batch_size=8, callbacks=[poison], progress=False)
    assert caught.value.outcome is Outcome.NONFINITE
    for p, q in zip(net.parameters(), good[-1], strict=True):
        assert torch.equal(p, q)


class Broken(type(SheafTrainer(nn.Linear(1, 1), loss="l2").loss)):  # type: ignore[misc]
    """A loss that turns into NaN."""

    def potential(self, z: Tensor, y: Tensor) -> Tensor:
        return super().potential(z, y) * math.nan


@pytest.mark.parametrize("throw", [True, False])
def test_an_exploding_rate_ends_in_an_outcome_with_finite_weights(
    throw: bool, tmp_path: Path
) -> None:
    net = relu_mlp([2, 8, 1], 1)
    x, y = randn(1, 32, 2), randn(2, 32, 1)
    start = copy.deepcopy(net.state_dict())
    optimiser = torch.optim.SGD(net.parameters(), lr=1e120)
    trainer = SheafTrainer(net, loss="l2", rule="first-order")
    options = {"epochs": 50, "progress": False, "checkpoint": tmp_path / "c", "throw": throw}
    if throw:
        with pytest.raises(ConvergenceError):
            fit(trainer, (x, y), optimiser, **options)
    else:
        assert fit(trainer, (x, y), optimiser, **options).outcome is Outcome.NONFINITE
    assert all(bool(p.isfinite().all()) for p in net.parameters())
    if (tmp_path / "c").exists():
        start = torch.load(tmp_path / "c", weights_only=True)["model"]
    assert all(torch.equal(net.state_dict()[k], start[k]) for k in start)


def test_an_interruption_leaves_the_last_whole_epoch() -> None:
    """Ctrl-C between two batches of the third epoch; the run then goes on as if nothing was."""
    x, y = rings()

    def start() -> tuple[SheafTrainer, torch.optim.Optimizer, torch.Generator]:
        net = relu_mlp([2, 6, 2], 1)
        step = torch.optim.Adam(net.parameters(), lr=0.01)
        return SheafTrainer(net), step, torch.Generator().manual_seed(3)

    def go(parts: tuple[SheafTrainer, torch.optim.Optimizer, torch.Generator], n: int) -> None:
        trainer, step, order = parts
        fit(trainer, (x, y), step, epochs=n, batch_size=32, generator=order, progress=False)

    whole, cut = start(), start()
    go(whole, 4)
    go(cut, 2)
    before = copy.deepcopy(cut[0].model.state_dict())
    steps: list[int] = []

    def interrupt(*_: object) -> None:
        steps.append(1)
        if len(steps) == 2:
            raise KeyboardInterrupt

    hook = cut[1].register_step_post_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        go(cut, 1)
    hook.remove()
    assert all(torch.equal(cut[0].model.state_dict()[k], before[k]) for k in before)
    go(cut, 2)
    for p, q in zip(whole[0].model.parameters(), cut[0].model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_an_epoch_costs_the_same_however_many_came_before() -> None:
    """Counted in calls: keeping the state must not copy the whole history every time."""
    x, y = rings(8)
    net = relu_mlp([2, 4, 2], 1)
    calls, counts = [0], []

    def count(frame: object, event: str, argument: object) -> None:
        calls[0] += event == "call"

    def look(_: Progressed) -> None:
        counts.append(calls[0])
        calls[0] = 0

    step = torch.optim.SGD(net.parameters(), lr=0.01)
    trainer = SheafTrainer(net, rule="first-order")
    before = sys.getprofile()
    sys.setprofile(count)
    try:
        fit(trainer, (x, y), step, epochs=60, callbacks=[look], progress=False)
    finally:
        sys.setprofile(before)
    assert counts[-1] <= counts[9] + 20


def test_a_sampler_that_orders_by_the_epoch_is_told_it() -> None:
    data = TensorDataset(*rings(8))
    sampler = DistributedSampler(data, num_replicas=2, rank=0, shuffle=True)
    expected = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        expected.append(list(sampler))
    sampler.set_epoch(0)
    orders: list[list[int]] = []

    class Noted(DistributedSampler[object]):
        def __iter__(self) -> Iterator[int]:
            orders.append(list(super().__iter__()))
            return iter(orders[-1])

    net = relu_mlp([2, 6, 2], 1)
    loader = DataLoader(data, batch_size=2, sampler=Noted(data, num_replicas=2, rank=0))
    step = torch.optim.SGD(net.parameters(), lr=0.1)
    fit(SheafTrainer(net), loader, step, epochs=3, progress=False)
    assert orders == expected
    assert orders[0] != orders[1]


def test_an_empty_loader_is_named() -> None:
    net = relu_mlp([2, 4, 2], 1)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    trainer = SheafTrainer(net)
    nothing: TensorDataset = TensorDataset(torch.zeros(0, 2), torch.zeros(0))
    with pytest.raises(ValueError, match="loader is empty"):
        fit(trainer, DataLoader(nothing), optimiser, epochs=1, progress=False)
    with pytest.raises(ValueError, match="data is empty"):
        fit(trainer, (torch.zeros(0, 2), torch.zeros(0)), optimiser, epochs=1, progress=False)


@pytest.mark.parametrize("label", [-1, 2, 100])
def test_labels_out_of_range_name_the_range_and_leave_the_weights(label: int) -> None:
    net = relu_mlp([2, 4, 2], 1)
    before = trained(net)
    x, y = rings(32)
    y[17] = label
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"labels lie in .* classes 0 … 1"):
        fit(SheafTrainer(net), (x, y), optimiser, epochs=1, batch_size=4, progress=False)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize("rule", ["first-order", "edge", "recursive"])
def test_frozen_parameters_stay_and_a_wholly_frozen_model_is_refused(rule: str) -> None:
    net = relu_mlp([2, 6, 2], 1)
    for p in net[0].parameters():
        p.requires_grad_(False)
    before = trained(net)
    x, y = rings(32)
    trainer = SheafTrainer(net, rule=rule)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    fit(trainer, (x, y), optimiser, epochs=2, progress=False)
    assert torch.equal(net[0].weight, before[0])
    assert net[0].weight.grad is None
    assert not torch.equal(net[2].weight, before[2])
    for p in net.parameters():
        p.requires_grad_(False)
    with pytest.raises(ValueError, match="every parameter of this model is frozen"):
        SheafTrainer(net, rule=rule).local_gradients(x, y)


def test_an_indefinite_recursive_state_is_an_outcome_and_changes_nothing() -> None:
    net = relu_mlp([2, 6, 2], 1)
    rule = RecursiveRule()
    trainer = SheafTrainer(net, rule=rule)
    x, y = rings(32)
    trainer.local_gradients(x, y)
    rule.inverse_moments["0.weight"][1, 1] = -1.0
    kept = {n: t.clone() for n, t in rule.inverse_moments.items()}
    before = trained(net)
    optimiser = torch.optim.SGD(net.parameters(), lr=1.0)
    with pytest.raises(ConvergenceError, match=r"recursive state of '0.weight' lost definiteness"):
        fit(trainer, (x, y), optimiser, epochs=1, progress=False)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    assert all(torch.equal(rule.inverse_moments[n], t) for n, t in kept.items())
    with pytest.raises(ConvergenceError):  # and without the loop, which restores what was
        trainer.local_gradients(x, y)
    assert all(torch.equal(rule.inverse_moments[n], t) for n, t in kept.items())


def test_reluctance_is_weight_decay_or_a_pull_to_the_reference() -> None:
    x, y = rings(32)
    net = relu_mlp([2, 6, 2], 1)
    SheafTrainer(net, rule="first-order").local_gradients(x, y)
    plain = [p.grad.clone() for p in net.parameters()]
    SheafTrainer(net, rule="first-order", reluctance=Reluctance(0.3)).local_gradients(x, y)
    for p, g in zip(net.parameters(), plain, strict=True):
        assert torch.allclose(p.grad, g + 0.3 * p)
    anchor = {n: randn(5, *p.shape) for n, p in net.named_parameters()}
    held = Reluctance(0.3, anchor)
    SheafTrainer(net, rule="first-order", reluctance=held).local_gradients(x, y)
    for (n, p), g in zip(net.named_parameters(), plain, strict=True):
        assert torch.allclose(p.grad, g + 0.3 * (p - anchor[n]))
    # The pull is minus the gradient of the edge's energy.
    parameters = dict(net.named_parameters())
    energy = 0.15 * sum((p - anchor[n]).detach().square().sum() for n, p in parameters.items())
    assert float(held.energy(parameters)) == pytest.approx(float(energy))


def test_a_regularised_run_ends_with_smaller_weights() -> None:
    norms = []
    for strength in (0.0, 0.05):
        net = relu_mlp([2, 16, 2], 1)
        trainer = SheafTrainer(net, rule="first-order", reluctance=Reluctance(strength))
        optimiser = torch.optim.SGD(net.parameters(), lr=0.3)
        fit(trainer, rings(), optimiser, epochs=60, progress=False)
        norms.append(sum(float(p.detach().square().sum()) for p in net.parameters()))
    assert norms[1] < 0.8 * norms[0]


def test_models_with_two_outputs_and_unknown_rules_are_refused() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 1), nn.Linear(2, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.a(x), self.b(x)

    x = torch.randn(4, 2)
    with pytest.raises(ValueError, match="this model has 2 outputs; write output= one of: a, b"):
        SheafTrainer(Two(), loss="l2").local_gradients(x, torch.zeros(4, 1))
    with pytest.raises(ValueError, match="no output named 'c'; write one of: a, b"):
        SheafTrainer(Two(), loss="l2", output="c").local_gradients(x, torch.zeros(4, 1))
    with pytest.raises(TypeError, match=r"a tuple of 2; write the tensor of one output, and Sheaf"):
        SheafTrainer(Two(), loss="l2", output="a").local_gradients(x, (x, x))  # type: ignore
    with pytest.raises(ValueError, match="rule is 'backprop'"):
        SheafTrainer(nn.Linear(2, 1), rule="backprop")


class TwoHeads(nn.Module):
    """A body with two heads, "a" of one number and "b" of two."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.a, self.b = nn.Linear(2, 8), nn.Linear(8, 1), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.body(x).relu()
        return self.a(z), self.b(z)


@pytest.mark.parametrize("rule", ["first-order", "edge", "recursive", "equilibrium"])
def test_one_of_several_outputs_is_trained(rule: str) -> None:
    """The gradients are those of the net that returns this head alone; the other head rests."""
    (x, y), net = rings(32), fill(TwoHeads(), 1)
    alone = copy.deepcopy(net)
    del alone.a
    alone.forward = lambda x: alone.b(alone.body(x).relu())  # type: ignore[method-assign]
    loss = SheafTrainer(net, rule=rule, output="b").local_gradients(x, y)
    torch.testing.assert_close(loss, SheafTrainer(alone, rule=rule).local_gradients(x, y))
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(net.get_parameter(name).grad, parameter.grad)
    assert net.a.weight.grad is None
    history = fit(
        SheafTrainer(net, rule="first-order", output="b"), (x, y),
        torch.optim.SGD(net.parameters(), lr=0.1), epochs=1, validation=(x, y), progress=False,
    )  # fmt: skip
    assert history.records[0]["accuracy"] == float((net(x)[1].argmax(1) == y).double().mean())


def test_validation_goes_through_the_set_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    (x, y), net = rings(50), relu_mlp([2, 8, 2], 1)
    trainer, rows = SheafTrainer(net), []
    whole = evaluate(trainer, x, y)
    monkeypatch.setattr("torchsheaf.train.validation.AT_ONCE", 16)
    net.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    assert evaluate(trainer, x, y) == pytest.approx(whole)
    assert rows == [16, 16, 16, 2]
    assert whole["loss"] == pytest.approx(nn.functional.cross_entropy(net(x), y).item())


def test_accuracy_on_logits_is_a_share_of_labels() -> None:
    """Log-odds above 0 say 1; with several labels each counts alike."""
    net = nn.Linear(2, 3).double()
    x, y = randn(1, 40, 2), (randn(2, 40, 3) > 0).double()
    found = evaluate(SheafTrainer(net, loss="bce", rule="first-order"), x, y)
    odds = net(x).detach()
    assert bool(((odds > 0) & (odds < 0.5)).any())
    assert found["accuracy"] == pytest.approx(((odds.sigmoid() > 0.5) == (y > 0.5)).double().mean())
    total = nn.functional.binary_cross_entropy_with_logits(odds, y, reduction="sum")
    assert found["loss"] == pytest.approx(float(total) / 40)


def test_validation_takes_a_loader() -> None:
    """Uneven batches weigh as their samples do: the record is that of the tensors at once."""
    (x, y), records = rings(50), []
    for held in ((x, y), DataLoader(TensorDataset(x, y), batch_size=16)):
        net = relu_mlp([2, 8, 2], 1)
        step = torch.optim.SGD(net.parameters(), lr=0.1)
        history = fit(
            SheafTrainer(net), rings(), step, epochs=2, validation=held, patience=1, progress=False
        )
        records.append(history.records)
    for a, b in zip(*records, strict=True):
        assert a == pytest.approx(b, rel=1e-12)
    nothing = DataLoader(TensorDataset(x[:0], y[:0]), batch_size=16)
    with pytest.raises(ValueError, match="validation is empty: its loader gave no batch"):
        fit(SheafTrainer(net), rings(), step, epochs=1, validation=nothing, progress=False)


def test_a_bar_only_where_there_is_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    net = relu_mlp([2, 8, 2], 1)
    fit(SheafTrainer(net), rings(), torch.optim.SGD(net.parameters(), lr=0.1), epochs=1)
    assert capfd.readouterr() == ("", "")


def test_a_module_that_takes_the_place_in_memory_of_another_is_noticed() -> None:
    """An id may be used again: the first gate stood in for a later one."""
    net, x, y = relu_mlp([3, 5, 2], 1).train(), randn(1, 6, 3), randn(2, 6, 2)
    trainer = SheafTrainer(net, loss="l2", rule="first-order")
    trainer.local_gradients(x, y)
    first = id(net[1])
    for _ in range(100):
        net[1] = nn.Tanh()
        net[1] = nn.Sigmoid()
        if id(net[1]) == first:
            break
    trainer.local_gradients(x, y)
    found = net[0].weight.grad
    net.zero_grad()
    (0.5 * (net(x) - y).square().sum(1).mean()).backward()
    torch.testing.assert_close(found, net[0].weight.grad)


def test_a_replaced_module_and_a_changed_mode_are_noticed() -> None:
    net = (
        nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 2)).double().eval()
    )
    trainer, (x, y) = SheafTrainer(net, rule="first-order"), rings()
    trainer.local_gradients(x, y)
    first = trainer.sheaf(x)
    net[3] = nn.Linear(4, 2, dtype=torch.float64)
    loss = trainer.local_gradients(x, y)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(net(x), y).detach())
    assert net[3].weight.grad is not None
    net.train()
    with pytest.raises(ValueError, match=r"(?i)dropout"):
        trainer.local_gradients(x, y)
    net.eval()
    assert trainer.sheaf(x) is trainer.sheaf(x)
    assert trainer.sheaf(x) is not first


def test_a_validation_loss_that_is_not_finite_is_an_error() -> None:
    net = relu_mlp([2, 8, 2], 1)
    before = [p.detach().clone() for p in net.parameters()]
    trainer, step = (
        SheafTrainer(net, rule="first-order"),
        torch.optim.SGD(net.parameters(), lr=1e200),
    )
    with pytest.raises(ConvergenceError, match="the validation loss is"):
        fit(trainer, rings(), step, epochs=1, validation=rings(), progress=False)
    for p, old in zip(net.parameters(), before, strict=True):
        assert torch.equal(p, old)


def test_arguments_of_fit_that_make_no_sense() -> None:
    net, other = relu_mlp([2, 8, 2], 1), relu_mlp([2, 8, 2], 2)
    trainer = SheafTrainer(net, rule="first-order")
    step = torch.optim.SGD(net.parameters(), lr=0.1)
    for options, message in (
        ({"epochs": 1.5}, "epochs is 1.5"), ({"epochs": 1, "patience": 0}, "patience is 0"),
        ({"epochs": 1, "clip": -1.0}, "clip is -1"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            fit(trainer, rings(), step, progress=False, **options)  # type: ignore[arg-type]
    foreign = torch.optim.SGD(other.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="no parameter of this model"):
        fit(trainer, rings(), foreign, epochs=1, progress=False)
    search = torch.optim.LBFGS(net.parameters())
    with pytest.raises(
        ValueError, match="LBFGS searches .* rule 'edge' does not give; write rule="
    ):
        fit(SheafTrainer(net), rings(), search, epochs=1, progress=False)


def test_several_inputs_come_as_a_tuple() -> None:
    net, (x, y) = fill(TwoInputs(2), 0), rings()
    data = ((x, x.square()), y)
    step = torch.optim.Adam(net.parameters(), lr=0.05)
    history = fit(
        SheafTrainer(net, rule="first-order"), data, step, epochs=20, batch_size=32,
        validation=data, progress=False,
    )  # fmt: skip
    assert history.losses[-1] < 0.5 * history.losses[0]
    assert history.records[-1]["accuracy"] > 0.8
