"""Stalks of shape (), one number per sample, are ordinary stalks of dimension 1."""

import torch
from torch import Tensor, nn

from tests.reference.networks import fill, randn
from torchsheaf import Pin, encode, harmonic_extension, hold, spectrum


class Score(nn.Module):
    """One number per sample, without an axis of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(3, 4)
        self.out = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.out(torch.relu(self.hidden(x))).sum(1))


def test_a_scalar_output_is_extended_pinned_and_analysed() -> None:
    model, x = fill(Score(), 1), randn(2, 5, 3)
    sheaf = encode(model, x)
    assert sheaf.vertices[sheaf.outputs[0]].shape == ()
    problem = hold(sheaf, x)
    extension = harmonic_extension(problem)
    assert extension.output.shape == (5,)
    assert torch.equal(extension.output, model(x).detach())
    at = problem.start("random", torch.Generator().manual_seed(3))
    dense = problem.coboundary(at).to_dense()
    assert torch.allclose(torch.linalg.det(dense), torch.ones(5, dtype=torch.float64))
    assert torch.allclose(
        spectrum(problem).values[:, 0],
        torch.linalg.eigvalsh(problem.laplacian(extension.cochain).to_dense())[:, 0],
    )
    soft = problem.pin(Pin("output", randn(4, 5), weight=2.0))
    assert soft.residual(at)["pin:" + sheaf.outputs[0]].shape == (5, 1)
    hard = problem.pin(Pin("output", 0.5))
    assert torch.equal(hard.start("forward")[sheaf.outputs[0]], torch.full((5,), 0.5).double())
