"""Table 2 of the paper: spectral gap against depth at initialisation, digit by digit."""

import pytest
import torch

from tests.reference.networks import generator, paper_network
from torchsheaf import encode, hold, spectrum

# architecture: median and standard deviation of λ₁, median of λ_max, over 50 training inputs.
TABLE_2 = {
    (2, 30, 1): (0.2248, 0.0200, 3.20),
    (2, 10, 8, 1): (0.0602, 0.0047, 7.79),
    (2, 8, 6, 4, 1): (0.0281, 0.0060, 7.95),
}


def paper_inputs(count: int, seed: int = 42) -> torch.Tensor:
    """The first training inputs: x₁ of all 400 samples (train and test) is drawn before x₂."""
    drawn = torch.rand(2, 400, dtype=torch.float64, generator=generator(seed))
    return (4 * drawn - 2).T[:count].contiguous()


@pytest.mark.parametrize("widths", TABLE_2)
def test_table_2_has_the_printed_digits(widths: tuple[int, ...]) -> None:
    x = paper_inputs(50)
    problem = hold(encode(paper_network(widths, 42), x), x)
    gap = spectrum(problem, tol=1e-9).values[:, 0]
    top = spectrum(problem, which="largest", tol=1e-9).values[:, 0]
    median, deviation, largest = TABLE_2[widths]
    # quantile, because torch's own median of an even number is the lower of the middle two
    assert abs(float(gap.quantile(0.5)) - median) <= 0.5e-4
    assert abs(float(gap.std(correction=0)) - deviation) <= 0.5e-4
    assert abs(float(top.quantile(0.5)) - largest) <= 0.5e-2
