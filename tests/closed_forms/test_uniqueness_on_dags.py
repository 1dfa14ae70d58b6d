"""T2 on random DAGs with joins, gates and smooth edges: a search for a second critical point.

Thousands of tiny networks at once: sample m of the batch has its own graph weights, so that one
pass of tensor arithmetic evaluates all of them. Two things are searched for: a state where ∇E
vanishes and E does not (descent from random starts, Gauss–Newton), and a step where the energy of
the heat flow rises. `python -m reproduce.uniqueness` runs ten thousand and writes its counts.
"""

import json

import torch

from reproduce.uniqueness import RESULTS, Family, search


def test_no_second_critical_point_is_found() -> None:
    for seed in range(12):
        found = search(Family(nodes=3 + seed % 5, width=1 + seed % 3, seed=seed), count=25)
        assert found.counterexamples == 0
        assert found.arrived == found.count, found
        assert found.rises == 0
        assert found.largest_gradient_ratio > 0


def test_ten_thousand_were_searched() -> None:
    """The committed run: every descent ended at the forward pass, and no step of the flow rose."""
    found = json.loads(RESULTS.read_text("utf-8"))
    networks = found["networks"]
    assert found["graphs"] == 1000
    assert networks["count"] == networks["arrived"] == 10_000
    assert networks["counterexamples"] == networks["rises"] == 0


def test_the_search_sees_a_critical_point_where_there_is_one() -> None:
    """With the output held too, T2 does not apply: the same search stops above zero energy."""
    found = search(Family(nodes=3, width=2, seed=0), count=60, hold_output=3.0)
    assert found.counterexamples > 30


def test_the_jacobian_is_unit_triangular() -> None:
    family = Family(nodes=5, width=2, seed=4)
    nets = family.draw(20)
    c = torch.randn(20, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    jacobian = nets.jacobian(c)
    assert torch.equal(jacobian.diagonal(dim1=1, dim2=2), torch.ones(20, 10, dtype=torch.float64))
    assert not bool(jacobian.triu(1).any())
