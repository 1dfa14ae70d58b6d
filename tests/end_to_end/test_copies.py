"""Copies of what was read follow a model of their own; pickling says what to save in its place."""

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import torchsheaf as ts
from tests.reference.networks import fill, randn


class Recurrent(nn.Module):
    """With a state whose batch is not its first axis, a maximum and a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.norm = nn.GRU(3, 4, batch_first=True), nn.LayerNorm(4)
        self.register_buffer("scale", torch.full((4,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        values, state = self.cell(x)
        return self.norm(values.amax(1) * self.scale + state[-1])


def read() -> tuple[nn.Module, Tensor, ts.Problem]:
    model, x = fill(Recurrent(), 0), randn(1, 5, 6, 3)
    return model, x, ts.hold(ts.encode(model, x), x)


def test_a_copy_follows_a_model_of_its_own() -> None:
    model, x, problem = read()
    twin = copy.deepcopy(problem)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.mul_(2)
    theirs = twin.sheaf.network.model
    assert theirs is not model
    assert torch.equal(ts.harmonic_extension(problem).output, model(x))
    assert torch.equal(ts.harmonic_extension(twin).output, theirs(x))
    assert copy.copy(problem.sheaf).network is problem.sheaf.network


@pytest.mark.parametrize("save", [pickle.dumps, lambda o: torch.save(o, io.BytesIO())])
def test_pickling_says_what_to_save(save: Callable[[object], object]) -> None:
    model, x, problem = read()
    found = ts.harmonic_extension(problem)
    for holder in (problem.sheaf, problem, found):
        with pytest.raises(
            TypeError, match=r"pickle the model and the values .*encode\(model, x\)"
        ):
            save(holder)
    failed = ts.ConvergenceError(ts.Outcome.STALLED, "residual 1", found, "try again")
    told = pickle.loads(pickle.dumps(failed))
    assert (str(told), told.outcome, told.result) == (str(failed), ts.Outcome.STALLED, None)
    model, cochain = pickle.loads(pickle.dumps((model, found.cochain)))
    again = ts.hold(ts.encode(model, x), x).sheaf.forward(x)
    assert (again - cochain).norm().max() == 0
