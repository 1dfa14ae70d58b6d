"""What training refuses before its first step: the argument, what came, what to write."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from tests.reference.networks import randn, relu_mlp
from torchsheaf.train import (
    EdgeRule,
    EquilibriumRule,
    JointEuler,
    RecursiveRule,
    Reluctance,
    SheafTrainer,
    fit,
)
from torchsheaf.train.losses import HuberLoss, PowerLoss, loss_named

X = randn(1, 8, 2)
Y = (X.norm(dim=1) > 1.1).long()
WRONG = (ValueError, TypeError)


def run(data: object = (X, Y), **options: Any) -> None:
    """A run that must be refused, with the weights as they were."""
    net = relu_mlp([2, 4, 2], 1)
    before = copy.deepcopy(net.state_dict())
    step = torch.optim.SGD(net.parameters(), lr=0.1)
    trainer = SheafTrainer(net, rule="first-order")
    try:
        fit(trainer, data, step, **{"epochs": 1, "progress": False, **options})  # type: ignore
    finally:
        assert all(torch.equal(net.state_dict()[k], before[k]) for k in before)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X, Y.numpy(), r"targets y is a ndarray; write torch\.as_tensor\(y\)"),
        (X, Y.tolist(), "targets y is a list of 8"),
        (X, None, "targets y is a NoneType"),
        (X.numpy(), Y, r"input x is a ndarray; write a tensor \(batch, \*shape\)"),
        (X.tolist(), Y, "input x is a list of list"),
        (None, Y, "input x is a NoneType"),
        ((), Y, "input x is an empty tuple"),
        (X, torch.complex(X, X), "targets are complex"),
    ],
)
def test_data_that_are_no_tensors(x: object, y: object, message: str) -> None:
    trainer = SheafTrainer(relu_mlp([2, 4, 2], 1), rule="first-order")
    with pytest.raises(WRONG, match=message):
        trainer.local_gradients(x, y)  # type: ignore[arg-type]


PAIRS: list[tuple[object, str]] = [
    (X, r"is a Tensor; write tensors \(x, y\)"),
    ((X,), r"is a tuple of 1; write tensors \(x, y\)"),
    ((X, Y, Y), "is a tuple of 3"),
    (TensorDataset(X, Y), "is a TensorDataset"),
    ((X, Y.numpy()), "targets y is a ndarray"),
    ((X, Y[:3]), "8 inputs came with 3 targets"),
    ((X[:0], Y[:0]), "has no sample"),
]


@pytest.mark.parametrize(("pair", "message"), PAIRS)
def test_data_and_validation_are_pairs_of_tensors(pair: object, message: str) -> None:
    with pytest.raises(WRONG, match=f"data.*{message}" if "Dataset" in message else message):
        run(pair)
    with pytest.raises(WRONG, match=message):
        run(validation=pair)


def test_validation_that_the_model_does_not_take_is_noticed_before_training() -> None:
    seen: list[object] = []
    for x, y, message in (
        (X.float(), Y, "float32"), (X, Y + 7, "labels lie in"), (X[:, :1], Y, r"\(8, 1\)"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            run(validation=(x, y), callbacks=[seen.append])
    narrow: DataLoader[Any] = DataLoader(TensorDataset(X[:, :1], Y), batch_size=8)
    with pytest.raises(ValueError, match=r"\(8, 1\)"):
        run(validation=narrow, callbacks=[seen.append])
    triples: DataLoader[Any] = DataLoader(TensorDataset(X, Y, Y))
    with pytest.raises(TypeError, match="a batch of validation is a list of 3"):
        run(validation=triples, callbacks=[seen.append])
    assert not seen


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"epochs": True}, "epochs is True"),
        ({"clip": "a"}, "clip is 'a'"),
        ({"clip": math.nan}, "clip is nan"),
        ({"generator": 5}, r"generator is 5; write torch\.Generator\(\)\.manual_seed\(5\)"),
        ({"generator": 0}, "generator is 0"),
        ({"callbacks": print}, "callbacks is"),
        ({"callbacks": [3]}, "callbacks holds 3"),
        ({"scheduler": "cosine"}, "scheduler is 'cosine'"),
    ],
)
def test_options_of_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(WRONG, match=message):
        run(**options)


def test_batch_size_beside_a_loader_and_a_scheduler_of_another_optimiser() -> None:
    loader: DataLoader[Any] = DataLoader(TensorDataset(X, Y))
    with pytest.raises(ValueError, match="batch_size is 4.*the DataLoader has its own"):
        run(loader, batch_size=4)
    other = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(ValueError, match="the scheduler drives another optimizer"):
        run(scheduler=torch.optim.lr_scheduler.StepLR(other, 1))


def test_what_is_no_trainer_no_optimiser_and_no_model() -> None:
    net = relu_mlp([2, 4, 2], 1)
    step = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"trainer is a Sequential; write ts\.SheafTrainer\(model"):
        fit(net, (X, Y), step, epochs=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"optimizer is .*SGD.*write torch\.optim"):
        fit(SheafTrainer(net), (X, Y), torch.optim.SGD, epochs=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"model is a int; pass an nn\.Module"):
        SheafTrainer(5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rule is <class.*or a rule object such as EdgeRule"):
        SheafTrainer(net, rule=EdgeRule)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"loss is \[\]"):
        SheafTrainer(net, loss=[])  # type: ignore[arg-type]
    with pytest.raises(
        TypeError, match=r"reluctance is a float; write torchsheaf.train.Reluctance\(0.1\)"
    ):
        SheafTrainer(net, reluctance=0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unused_parameters is 'yes'"):
        SheafTrainer(net, unused_parameters="yes")


@pytest.mark.parametrize(
    ("made", "options", "message"),
    [
        (EdgeRule, {"damping": "a"}, "damping is 'a'"),
        (EdgeRule, {"damping": math.inf}, "damping is inf"),
        (EdgeRule, {"group": 2.5}, "group is 2.5; write a whole number, 1 or more, or None"),
        (RecursiveRule, {"damping": 0.0}, "damping is 0.0"),
        (RecursiveRule, {"memory": "a"}, "memory is 'a'"),
        (EquilibriumRule, {"output_weight": "a"}, "output_weight is 'a'"),
        (EquilibriumRule, {"tol": -1.0}, "tol is -1.0"),
        (EquilibriumRule, {"max_rounds": 0}, "max_rounds is 0"),
        (EquilibriumRule, {"max_passes": 0}, "max_passes is 0"),
        (Reluctance, {"strength": "a"}, "strength is 'a'"),
        (Reluctance, {"strength": math.inf}, "strength is inf"),
        (HuberLoss, {"delta": "a"}, "delta is 'a'"),
        (PowerLoss, {"p": math.inf}, "p is inf"),
        (JointEuler, {"alpha": math.inf}, "alpha is inf"),
        (JointEuler, {"loss": "zz"}, "loss is 'zz'"),
        (JointEuler, {"beta": "a"}, "beta is 'a'"),
    ],
)
def test_settings_of_rules_and_losses(
    made: Callable[..., object], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        made(**options)


@pytest.mark.parametrize("rule", ["edge", "recursive", "equilibrium"])
def test_rules_that_solve_systems_say_that_half_precision_has_no_solver(rule: str) -> None:
    net = relu_mlp([2, 4, 2], 1).to(torch.bfloat16)
    x: Tensor = X.bfloat16()
    with pytest.raises(ValueError, match=r"torch\.bfloat16.*rule='first-order'"):
        SheafTrainer(net, rule=rule).local_gradients(x, Y)
    SheafTrainer(net, rule="first-order").local_gradients(x, Y)


def test_a_wrapped_model_says_what_to_pass() -> None:
    wrapped = torch.nn.DataParallel(relu_mlp([2, 4, 2], 1))
    with pytest.raises(TypeError, match=r"wrapped in DataParallel; pass model\.module"):
        SheafTrainer(wrapped)
    SheafTrainer(wrapped.module)


@pytest.mark.parametrize("rule", ["first-order", "edge"])
def test_autocast_is_named(rule: str) -> None:
    """first-order ended in torch's words about a gradient's type, the others in wrong advice."""
    net = relu_mlp([2, 4, 2], 1).float()
    trainer = SheafTrainer(net, rule=rule)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(ValueError, match=r"autocast is on.*model\.bfloat16\(\)"):
            trainer.local_gradients(X.float(), Y)
    trainer.local_gradients(X.float(), Y)


JOINT = relu_mlp([2, 4, 1], 3)
GOAL = randn(2, 8, 1)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((3, X, GOAL), {}, "models is a int"),
        (([], X, GOAL), {}, "models is an empty list"),
        ((JOINT, X.numpy(), GOAL), {}, "input x is a ndarray"),
        ((JOINT, X, GOAL.numpy()), {}, "targets y is a ndarray"),
        ((JOINT, X[:, :1], GOAL), {}, r"input x has shape \(8, 1\); write \(samples, 2\)"),
        ((JOINT, X[:0], GOAL[:0]), {}, r"input x has shape \(0, 2\)"),
        ((JOINT, X.float(), GOAL), {}, r"input x is torch\.float32, the weights torch\.float64"),
        ((JOINT, (X, X), GOAL), {}, "2 inputs came"),
        ((JOINT, X * math.nan, GOAL), {}, "input x contains NaN or infinity"),
        ((JOINT, X, GOAL), {"generators": torch.Generator()}, "generators is a Generator"),
    ],
)
def test_a_joint_start_that_does_not_fit(
    arguments: tuple[Any, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(WRONG, match=message):
        JointEuler().start(*arguments, **options)


def test_a_joint_run_of_no_steps_or_other_rates_than_runs() -> None:
    joint = JointEuler()
    state = joint.start(JOINT, X, GOAL)
    for options, message in (
        ({"steps": 2.5}, "steps is 2.5"),
        ({"steps": 1, "every": 0}, "every is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            joint.run(state, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"beta has shape \(3,\); write one number or \(1,\)"):
        JointEuler(beta=torch.ones(3)).run(state, 1)
    assert state.steps == 0


class Rows(Dataset[object]):
    """A data set whose samples are whatever the maker says."""

    def __init__(self, make: Callable[[int], object]) -> None:
        self.make = make

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> object:
        return self.make(i)


@pytest.mark.parametrize(
    ("make", "came"),
    [
        (lambda i: {"x": X[i], "y": Y[i]}, "a dict"),
        (lambda i: (X[i], Y[i], i), "a list of 3"),
        (lambda i: X[i], "a Tensor"),
    ],
)
def test_batches_of_a_loader_that_are_no_pairs(make: Callable[[int], object], came: str) -> None:
    with pytest.raises(
        TypeError, match=rf"a batch of the loader is {came}; write tensors \(x, y\)"
    ):
        run(DataLoader(Rows(make), batch_size=2))


def test_an_anchor_that_does_not_fit_is_refused_before_a_gradient_is_written() -> None:
    net = relu_mlp([2, 4, 2], 1)
    wrong = {n: torch.ones(7) for n, _ in net.named_parameters()}
    cases: tuple[tuple[dict[str, Tensor], str], ...] = (
        ({}, "no tensor for parameter '0.weight'"),
        (wrong, r"anchor of '0.weight' has shape \(7,\); write \(4, 2\)"),
    )
    for anchor, message in cases:
        trainer = SheafTrainer(net, reluctance=Reluctance(0.1, anchor))
        with pytest.raises(ValueError, match=message):
            trainer.local_gradients(X, Y)
    assert all(p.grad is None for p in net.parameters())
    with pytest.raises(TypeError, match="anchor is a float; write a state dict"):
        Reluctance(0.1, 0.5)  # type: ignore[arg-type]


def test_a_model_in_the_wrong_mode_is_refused_before_validation_changes_it() -> None:
    net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    before = copy.deepcopy(net.state_dict())
    step = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
        fit(SheafTrainer(net), (X, Y), step, epochs=1, validation=(X, Y), progress=False)
    assert all(torch.equal(net.state_dict()[k], before[k]) for k in before)


def test_mse_says_which_multiple_of_l2_it_is() -> None:
    with pytest.raises(ValueError, match="write 'l2'.*2/d"):
        SheafTrainer(torch.nn.Linear(2, 2), loss="mse")
    z, y = torch.randn(5, 3), torch.randn(5, 3)
    ours = loss_named("l2").potential(z, y).mean()
    torch.testing.assert_close(2 / 3 * ours, torch.nn.functional.mse_loss(z, y))
