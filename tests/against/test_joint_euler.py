"""Joint Euler flow against its formulas sample by sample, and against the paper's numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reproduce.training import BETAS, PUBLISHED_BASELINE, PUBLISHED_BETA, PUBLISHED_TABLE
from tests.reference.networks import generator, randn, relu_mlp
from torchsheaf.examples.paper_tasks import PAPER_TASKS
from torchsheaf.outcome import ConvergenceError
from torchsheaf.train.joint_euler import JointEuler

RESULTS = Path(__file__).parents[2] / "reproduce" / "results" / "training.json"


def reference(
    net: nn.Sequential, x: Tensor, y: Tensor, z: list[Tensor], a: list[Tensor], kind: str,
    steps: int, alpha: float, dt: float, beta: float,
) -> list[Tensor]:  # fmt: skip
    """The equations one sample and one layer at a time; returns the weights."""
    w = [layer.weight.detach().clone() for layer in net[0::2]]
    b = [layer.bias.detach().clone() for layer in net[0::2]]
    k = len(w) - 1
    for _ in range(steps):
        dw, db = [torch.zeros_like(v) for v in w], [torch.zeros_like(v) for v in b]
        for m in range(len(x)):
            zm, am = [t[m].clone() for t in z], [x[m], *(t[m].clone() for t in a)]
            r = [w[i] @ am[i] + b[i] - zm[i] for i in range(k + 1)]
            for i in range(k + 1):
                dw[i] += torch.outer(r[i], am[i])
                db[i] += r[i]
                if i < k:
                    on = (zm[i] >= 0).double()
                    z[i][m] += alpha * dt * (r[i] - on * (zm[i] - am[i + 1]))
                    pull = -(am[i + 1] - on * zm[i]) - w[i + 1].T @ r[i + 1]
                    a[i][m] += alpha * dt * pull
                else:
                    out = zm[k].softmax(0) if kind == "cross_entropy" else zm[k]
                    z[k][m] += alpha * dt * (r[k] - (out - y[m]))
        for i in range(k + 1):
            w[i] = w[i] - beta * dt * dw[i]
            b[i] = b[i] - beta * dt * db[i]
    return [t for pair in zip(w, b, strict=True) for t in pair]


@pytest.mark.parametrize("loss", ["l2", "cross_entropy"])
@pytest.mark.parametrize("widths", [[2, 5, 3], [2, 4, 5, 3]])
def test_steps_follow_the_formulas(loss: str, widths: list[int]) -> None:
    nets = [relu_mlp(widths, 1), relu_mlp(widths, 2)]
    x = randn(3, 6, 2)
    y = randn(4, 6, 3) if loss == "l2" else torch.eye(3, dtype=torch.float64).repeat(2, 1)
    flow = JointEuler(loss=loss, alpha=0.9, dt=0.05, beta=torch.tensor([0.3, 0.1]).double())
    state = flow.start(nets, x, y, generators=[generator(7), generator(8)])
    begun = [
        ([z[r].mT.clone() for z in state.z], [a[r, :-1].mT.clone() for a in state.a[1:]])
        for r in range(2)
    ]
    flow.run(state, 15)
    expected = [
        reference(net, x, y, z, a, loss, 15, 0.9, 0.05, beta)
        for net, (z, a), beta in zip(nets, begun, (0.3, 0.1), strict=True)
    ]
    state.write_to(nets)
    for net, weights in zip(nets, expected, strict=True):
        for p, q in zip(net.parameters(), weights, strict=True):
            assert torch.allclose(p, q, atol=1e-12)


def test_the_authors_trajectory_with_their_seeds() -> None:
    """Weights seed 0, stalks seed 42: forward errors as their code prints them, 4 figures."""
    task = PAPER_TASKS["paraboloid"]
    x, y, held_x, held_y = task.data()
    flow = JointEuler(dt=0.005)
    state = flow.start(task.network(0), x, y, generators=[generator(42)])

    def errors() -> tuple[float, float]:
        train = (state.forward(x)[0] - y).square().mean()
        return float(train), float((state.forward(held_x)[0] - held_y).square().mean())

    assert errors() == pytest.approx((12.100, 10.885), abs=5e-4)
    flow.run(state, 1000)
    assert errors() == pytest.approx((1.892, 1.727), abs=5e-4)
    flow.run(state, 1000)
    assert errors() == pytest.approx((1.396, 1.330), abs=5e-4)


def committed(part: str) -> Any:
    """A committed result of `python -m reproduce.training`; minutes each, so not rerun here."""
    return json.loads(RESULTS.read_text())[part]["result"]


def test_committed_table_is_the_papers() -> None:
    """All four 1H rows; the seeds are the authors', so the printed digits must agree."""
    rows = committed("table1")
    for name, published in PUBLISHED_TABLE.items():
        assert rows[name]["steps"] == 100_000
        assert rows[name]["test"] == pytest.approx(published, abs=1e-4)


def test_committed_baseline_is_the_papers() -> None:
    rows = committed("baseline")
    for name, published in PUBLISHED_BASELINE.items():
        assert rows[name]["test"] == pytest.approx(published, abs=1e-4)


def test_committed_sweep_is_the_papers() -> None:
    rows = committed("beta")
    assert [row["beta"] for row in rows] == list(BETAS)
    for row in rows:
        assert row["steps"] == 100_000
        assert row["test"] == pytest.approx(PUBLISHED_BETA[row["beta"]], abs=1e-4)
    means = {row["beta_n"]: sum(row["test"]) / 3 for row in rows}
    assert 0.9 < min(means, key=lambda b: means[b]) < 3.1


def test_committed_two_timescales_beat_every_sheaf_entry_of_the_table() -> None:
    """The better of the paper's one- and two-hidden-layer rows."""
    rows = committed("two-timescale")
    best = {"paraboloid": 0.0880, "saddle": 0.0106, "circular": 0.0188, "blobs": 0.1212}
    for name, published in best.items():
        assert rows[name]["test"] < published, name
    assert rows["paraboloid"]["test"] <= 0.015


def test_what_happens_between_the_steps() -> None:
    """Restarts put the stalks on the forward pass, after the last step not; β is 1/N by default."""
    net, x, y = relu_mlp([2, 5, 1], 1), randn(3, 6, 2), randn(4, 6, 1)
    flow = JointEuler(dt=0.05)
    found = flow.run(flow.start(net, x, y, stalks="forward"), 4, every=2, restart=True)
    by_hand = JointEuler(dt=0.05, beta=1 / 6)
    state = by_hand.start(net, x, y, stalks="forward")
    by_hand.run(state, 2)
    moved = [z.clone() for z in state.z]
    by_hand.restart(state)
    assert not torch.equal(moved[-1], state.z[-1])
    by_hand.run(state, 2)
    for a, b in zip((*found.z, *found.a, *found.w), (*state.z, *state.a, *state.w), strict=True):
        assert torch.equal(a, b)


def test_runs_side_by_side_have_stalks_of_their_own() -> None:
    x, y = randn(3, 6, 2), randn(4, 6, 1)
    begun = JointEuler().start([relu_mlp([2, 5, 1], 1)] * 2, x, y)
    assert not torch.equal(begun.z[0][0], begun.z[0][1])
    again = JointEuler().start([relu_mlp([2, 5, 1], 1)] * 2, x, y)
    assert torch.equal(begun.z[0], again.z[0])


def test_a_stalk_at_zero_is_on() -> None:
    """R = 1[z ≥ 0]: there the force r − R (z − a) holds the activation to the stalk."""
    net = relu_mlp([1, 1, 1], 1)
    flow = JointEuler(dt=0.5)
    state = flow.start(net, torch.ones(1, 1).double(), torch.ones(1, 1).double())
    state.z[0].zero_()
    a, r = float(state.a[1][0, 0, 0]), float((state.w[0][0] @ state.a[0][0])[0, 0])
    flow.run(state, 1)
    assert float(state.z[0]) == pytest.approx(0.5 * (r + a), rel=1e-14)


def test_what_is_refused() -> None:
    x, y = randn(1, 4, 2), randn(2, 4, 1)
    with pytest.raises(ValueError, match="on a path"):
        JointEuler().start(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)), x, y)
    with pytest.raises(ValueError, match="different widths"):
        JointEuler().start([relu_mlp([2, 3, 1], 0), relu_mlp([2, 4, 1], 0)], x, y)
    with pytest.raises(ValueError, match="1 generators came for 2"):
        JointEuler().start([relu_mlp([2, 3, 1], 0)] * 2, x, y, generators=[generator(1)])
    flow = JointEuler(dt=1e3)
    with pytest.raises(ConvergenceError):
        flow.run(flow.start(relu_mlp([2, 3, 1], 0), x, y), 2000)
