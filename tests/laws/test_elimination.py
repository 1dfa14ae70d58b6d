"""Eliminated pre-activations against a search over all candidates, one number at a time."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchsheaf.harmonic.elimination import Held, Pieces, Pull, eliminate

slopes = st.floats(-2, 2).filter(lambda s: s == 0 or abs(s) > 1e-3)
weights = st.floats(0.1, 10)


def sigma(z: float, breaks: list[float], slope: list[float], anchor: float) -> float:
    """σ(z) by walking from the first breakpoint, where σ = anchor."""
    if z <= breaks[0]:
        return anchor + slope[0] * (z - breaks[0])
    value = anchor
    for i, begin in enumerate(breaks):
        end = breaks[i + 1] if i + 1 < len(breaks) else math.inf
        value += slope[i + 1] * (min(z, end) - begin)
        if z <= end:
            return value
    return value


@given(
    st.integers(1, 3).flatmap(
        lambda n: st.tuples(
            st.lists(st.integers(-3, 3), min_size=n, max_size=n, unique=True).map(sorted),
            st.lists(slopes, min_size=n + 1, max_size=n + 1),
        )
    ),
    st.floats(-1, 1), weights, weights, st.integers(0, 2**31 - 1), st.booleans(),
)  # fmt: skip
def test_the_eliminated_value_is_the_best_of_all_candidates(gate, anchor, w, u, seed, pulled):
    breaks, slope = [float(b) for b in gate[0]], gate[1]
    pieces = Pieces.of(tuple(breaks), tuple(slope), anchor)
    source = torch.Generator().manual_seed(seed)
    m, a, target = (3 * torch.randn(1, 12, generator=source, dtype=torch.float64) for _ in "mat")
    gamma = 0.7 if pulled else 0.0
    pull = Pull(torch.full((12,), gamma, dtype=torch.float64), target) if pulled else None
    found = eliminate(pieces, m, a, w, torch.full((12,), u, dtype=torch.float64), pull)
    edges = [-math.inf, *breaks, math.inf]
    for j in range(12):
        x, y, t = float(m[0, j]), float(a[0, j]), float(target[0, j])

        def cost(z, x=x, y=y, t=t):
            value = sigma(z, breaks, slope, anchor)
            return 0.5 * w * (z - x) ** 2 + 0.5 * u * (y - value) ** 2 + 0.5 * gamma * (z - t) ** 2

        candidates = list(breaks)
        for low, high, s in zip(edges, edges[1:], slope, strict=False):
            inside = min(max(0.0, low), high) if math.isfinite(low) or math.isfinite(high) else 0.0
            offset = sigma(inside, breaks, slope, anchor) - s * inside
            z = (w * x + gamma * t + u * s * (y - offset)) / (w + gamma + s * s * u)
            candidates.append(min(max(z, low), high))
        best = min(cost(z) for z in candidates)
        z = float(found.z[0, j])
        assert cost(z) <= best + 1e-12 * (1 + best)
        value = sigma(z, breaks, slope, anchor)
        assert float(found.value[0, j]) == pytest.approx(value, rel=1e-12, abs=1e-12)
        if bool(found.stuck[0, j]):
            assert z in breaks
            assert float(found.slope[0, j]) == 0
        else:
            h = 1e-7 * (1 + abs(z))
            sides = [(sigma(z + d, breaks, slope, anchor) - value) / d for d in (-h, h)]
            assert min(abs(float(found.slope[0, j]) - s) for s in sides) < 1e-5


GATES = [((0.0,), (0.0, 1.0)), ((-1.0, 1.0), (0.0, 1.0, 0.0))]


@pytest.mark.parametrize(("breaks", "slope"), GATES)
def test_a_held_value_stays_where_it_is(breaks, slope):
    pieces = Pieces.of(breaks, slope, 0.0)
    m, a = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    mask = torch.tensor([True, False, True])
    value = torch.full((4, 3), 0.25, dtype=torch.float64)
    free, held = (eliminate(pieces, m, a, 1.0, 1.0, None, h) for h in (None, Held(mask, value)))
    assert bool((held.z[:, mask] == 0.25).all())
    assert bool(held.stuck[:, mask].all())
    assert bool((held.slope[:, mask] == 0).all())
    assert torch.equal(held.value[:, mask], pieces.value(value)[:, mask])
    assert torch.equal(held.z[:, ~mask], free.z[:, ~mask])


@pytest.mark.parametrize(("breaks", "slope"), GATES)
def test_where_nothing_pulls_a_breakpoint_belongs_to_the_piece_above(breaks, slope):
    at = torch.tensor([[breaks[0]]], dtype=torch.float64)
    found = eliminate(Pieces.of(breaks, slope, 0.0), at, torch.zeros_like(at), 1.0, 1.0)
    assert float(found.z) == breaks[0]
    assert not bool(found.stuck)
    assert float(found.slope) == slope[1]
