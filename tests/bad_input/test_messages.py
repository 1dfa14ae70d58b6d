"""What a message says to write is what works."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchsheaf as ts
from tests.reference.networks import fill, randn, relu_mlp
from torchsheaf.train.losses import FunctionLoss

X = randn(1, 5, 4)
Y = torch.arange(5) % 3


def net() -> nn.Sequential:
    return relu_mlp([4, 6, 3], 1)


@pytest.mark.parametrize(
    ("y", "write"),
    [
        (Y.double(), "y.long()"),
        (Y[:, None], "y[:, 0]"),
        (Y[:, None].double(), "y[:, 0].long()"),
    ],
)
def test_class_numbers_of_another_shape_or_type(y: Tensor, write: str) -> None:
    trainer = ts.SheafTrainer(net())
    with pytest.raises(ValueError, match=f"for class numbers write {re.escape(write)}"):
        trainer.local_gradients(X, y)
    found = trainer.local_gradients(X, eval(write, {"y": y}))
    assert torch.equal(found, trainer.local_gradients(X, Y))


def test_torch_modules_of_a_loss() -> None:
    ours = ts.SheafTrainer(net(), rule="first-order").local_gradients(X, Y)
    module = ts.SheafTrainer(net(), rule="first-order", loss=nn.CrossEntropyLoss())
    assert torch.equal(module.local_gradients(X, Y), ours)
    torch.testing.assert_close(ours, nn.CrossEntropyLoss()(net()(X), Y).detach())
    refused: list[tuple[nn.Module, str]] = [
        (nn.CrossEntropyLoss(label_smoothing=0.1), "'cross_entropy', which is the mean over"),
        (nn.CrossEntropyLoss(weight=torch.ones(3)), "'cross_entropy'"),
        (nn.MSELoss(), "'l2', which is ½ the sum over the outputs"),
        (nn.BCEWithLogitsLoss(), "'bce'"), (nn.L1Loss(), "'l1'"), (nn.HuberLoss(), "'huber'"),
        (nn.KLDivLoss(), "one of 'l2', 'l1'"),
    ]  # fmt: skip
    for loss, words in refused:
        with pytest.raises(ValueError, match=f"loss is the module .*; write {words}"):
            ts.SheafTrainer(net(), loss=loss)


def test_cross_entropy_of_one_logit_is_no_loss() -> None:
    """It is 0 for every weight, and all labels 0 were taken without a word."""
    trainer = ts.SheafTrainer(relu_mlp([4, 6, 1], 1), rule="first-order")
    for y in (Y * 0, Y[:, None] % 2):
        with pytest.raises(ValueError, match="write loss='bce' with targets"):
            trainer.local_gradients(X, y)
    net = relu_mlp([4, 6, 1], 1)
    ts.SheafTrainer(net, loss="bce", rule="first-order").local_gradients(
        X, (Y[:, None] % 2).float()
    )


def test_functions_that_are_no_loss() -> None:
    wrong: list[tuple[Any, Tensor, str]] = [
        (F.cross_entropy, Y, r"returned \(\); let it return one number per sample, \(\d+,\)"),
        (lambda z, y: z.square(), Y, r"returned \(\d+, \d+\); let it"),
        (lambda z, y: 3.0, Y, "returned float; let it"),
        (lambda z, y: (z.argmax(1) != y).double(), Y, "has no derivative by the output"),
        (lambda z, y: z.sum(1), Y[:2], r"targets have shape \(2,\)"),
        (lambda z, y: z.sum(1), Y * math.nan, "targets contain NaN"),
    ]
    for loss, y, words in wrong:
        with pytest.raises(ValueError, match=words):
            ts.SheafTrainer(net(), loss=loss, rule="first-order").local_gradients(X, y)
    with pytest.raises(ValueError, match=r"FunctionLoss\(function, curvature\)"):
        ts.SheafTrainer(net(), loss=lambda z, y: z.sum(1), rule="equilibrium").local_gradients(X, Y)
    with pytest.raises(ValueError, match="curvature is -1"):
        FunctionLoss(lambda z, y: z, -1)
    with pytest.raises(ValueError, match="function is 'l2'; write a function"):
        FunctionLoss("l2")  # type: ignore[arg-type]


def test_a_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "junk.pt").write_bytes(b"e")
    model = net()
    step = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"junk\.pt is not a readable checkpoint.*Error.*restart"):
        ts.fit(
            ts.SheafTrainer(model), (X, Y), step, epochs=1, checkpoint=tmp_path / "junk.pt",
            progress=False,
        )  # fmt: skip


def held() -> ts.Problem:
    return ts.hold(ts.encode(net(), X), X)


def test_pins_that_conflict_say_which_holds_and_what_to_write() -> None:
    hard, soft = ts.Pin("0", 1.0, where=[1]), ts.Pin("0", 2.0, weight=3.0)
    with pytest.raises(ValueError, match=r"one holds, one pulls at '0' at \[1\]; leave one out"):
        held().pin(hard, soft)
    held().pin(ts.Pin("0", 1.0, where=[1], weight=1.0), soft)
    with pytest.raises(
        ValueError, match=r"both hold '0' at \[1\]; leave one out, or make both soft"
    ):
        held().pin(hard, ts.Pin("0", 2.0))
    for pin in (ts.Pin("input", 0.0), ts.Pin("input", 0.0, weight=1.0)):
        with pytest.raises(ValueError, match=r"free those with hold\(sheaf, x, where=\[…\]\)"):
            held().pin(pin)
        ts.hold(held().sheaf, X, where=[]).pin(pin)


FORWARD = ts.harmonic_extension(held())
CASES: list[tuple[Callable[[], object], str]] = [
    (lambda: ts.harmonic_extension(held(), start="foo"), 'write "auto", "forward", "zeros"'),
    (lambda: ts.harmonic_extension(held(), start=FORWARD), r"an Extension; write its \.cochain"),
    (lambda: ts.heat_flow(held(), FORWARD), r"an Extension; write its \.cochain"),
    (lambda: ts.fault_profile(held(), FORWARD), r"an Extension; pass its \.cochain"),
    (lambda: ts.hold(held().sheaf, X.tolist()), "input is a list of list; pass a tensor"),
]


@pytest.mark.parametrize(("call", "words"), CASES)
def test_results_and_lists_where_a_cochain_or_a_tensor_was_meant(
    call: Callable[[], object], words: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        call()


def test_results_of_several_starts_and_nearest_inputs_print_on_one_line() -> None:
    problem = held().pin(ts.Pin("output", 1.0))
    found = ts.harmonic_extension(problem, starts=3).equilibria
    assert re.fullmatch(
        r"Equilibria\(3 starts, 5 samples; .* distinct per sample; .*\)", repr(found)
    )
    nearest = ts.nearest_consistent(held().sheaf, X, 1)
    assert re.fullmatch(
        r"Nearest\(5 samples; \d reached the wanted class, .* away.*\)", repr(nearest)
    )


@pytest.mark.parametrize("pulled", [False, True])
def test_a_long_run_with_free_inputs_says_to_hold_them_softly(pulled: bool) -> None:
    x = randn(1, 3, 4)
    smooth = fill(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), 2)
    problem = ts.hold(ts.encode(smooth, x), x, where=[0]).pin(ts.Pin("output", 1.0))
    if pulled:
        problem = problem.pin(ts.Pin("input", x[:, 1:], where=[1, 2, 3], weight=0.1))
    with pytest.raises(ts.ConvergenceError, match="raise max_passes") as caught:
        ts.harmonic_extension(problem, max_passes=5)
    assert ("Coordinates of 'input' are free" in str(caught.value)) is not pulled
