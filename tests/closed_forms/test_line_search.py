"""How far a step goes and when a sample is given up, on functions of one variable."""

import torch
from torch import Tensor

from torchsheaf.draws import random_integers, random_order, random_signs, standard_normal
from torchsheaf.harmonic.line_search import Step, line_search
from torchsheaf.harmonic.stall import note_progress


def search(curvatures: list[float], energy: float = 0.0, **options: int) -> Step:
    """φ(t) = E − t + κ t²/2 for one curvature per sample."""
    k = torch.tensor(curvatures).double()
    e = torch.full_like(k, energy)

    def along(t: Tensor) -> tuple[Tensor, Tensor]:
        return e - t + 0.5 * k * t * t, k * t - 1

    return line_search(along, e, -torch.ones_like(k), **options)


def test_a_step_that_is_too_long_is_shortened_to_the_parabolas_minimum() -> None:
    """1/κ, but to no less than a tenth in one trial: κ = 40 takes two."""
    found = search([1.0, 4.0, 40.0], refine=0)
    torch.testing.assert_close(found.length, torch.tensor([1.0, 0.25, 0.025]).double())
    torch.testing.assert_close(found.energy, torch.tensor([-0.5, -0.125, -0.0125]).double())
    assert found.trials == 3


def test_secants_go_on_to_the_minimum_of_a_parabola_but_no_further_than_three() -> None:
    found = search([0.5, 0.8, 0.1], energy=7.0)
    torch.testing.assert_close(found.length, torch.tensor([2.0, 1.25, 3.0]).double())
    torch.testing.assert_close(found.energy, 7 + torch.tensor([-1.0, -0.625, -2.55]).double())


def test_a_secant_that_leads_uphill_is_not_taken() -> None:
    """A kink behind t = 1: the slopes promise t = 2, where φ is higher."""
    slope = -torch.ones(2).double()

    def along(t: Tensor) -> tuple[Tensor, Tensor]:
        inside = -t + 0.25 * t * t
        beyond = torch.stack([inside[0], -0.75 + 9 * (t[1] - 1)])
        return torch.where(t > 1, beyond, inside), 0.5 * t - 1

    found = line_search(along, torch.zeros(2).double(), slope, refine=3)
    torch.testing.assert_close(found.length, torch.tensor([2.0, 1.0]).double())
    torch.testing.assert_close(found.energy, torch.tensor([-1.0, -0.75]).double())


def test_a_sample_for_which_nothing_is_lower_stays_at_its_energy() -> None:
    def along(t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.stack([4 + t[0], 3 - t[1]]), torch.ones_like(t)  # the first one jumps

    three = torch.full((2,), 3.0).double()
    found = line_search(along, three, -torch.ones(2).double(), refine=0)
    assert found.length.tolist() == [0.0, 1.0]
    assert found.energy.tolist() == [3.0, 2.0]
    assert found.trials == 41


def test_progress_is_a_lower_energy_or_half_the_gradient() -> None:
    """Rows: lower; by rounding only; half the gradient; a little more than half; neither."""
    energy = torch.tensor([0.9, 1 - 1e-13, 1.0, 1.0, 1.1], dtype=torch.float64)
    size = torch.tensor([5.0, 2.0, 1.0, 1.01, 2.0], dtype=torch.float64)
    lowest, least, failed = note_progress(
        energy, size, torch.ones(5).double(), torch.full((5,), 2.0).double(), torch.full((5,), 3)
    )
    assert failed.tolist() == [0, 4, 0, 4, 4]
    assert lowest.tolist() == [0.9, 1 - 1e-13, 1.0, 1.0, 1.0]
    assert least.tolist() == [2.0, 2.0, 1.0, 1.01, 2.0]


def test_draws_have_the_chances_that_they_say() -> None:
    """A thousand numbers, each share within five standard deviations."""
    source = torch.Generator().manual_seed(0)
    counts = torch.bincount(random_integers(4, (1000,), source), minlength=5)
    assert counts[4] == 0
    assert bool(((counts[:4] - 250).abs() < 5 * (1000 * 3 / 16) ** 0.5).all())
    signs = random_signs(torch.empty(10, 100), source)
    assert bool((signs.abs() == 1).all())
    assert abs(float(signs.sum())) < 5 * 1000**0.5
    normal = standard_normal((1000,), source, torch.float64)
    assert abs(float(normal.mean())) < 5 / 1000**0.5
    assert abs(float(normal.var()) - 1) < 5 * (2 / 1000) ** 0.5
    order = random_order(1000, source)
    assert torch.equal(order.sort().values, torch.arange(1000))
    assert not torch.equal(order, torch.arange(1000))
