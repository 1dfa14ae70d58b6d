"""The paper's blocks (section 3, eq. A.5) against the sheaf of a network, entry by entry."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from tests.reference.dense import all_patterns, forward_masks, layers, path_coboundary
from tests.reference.networks import randn, relu_mlp
from torchsheaf import Problem, encode, hold
from torchsheaf.sheaf import ExtendedSheaf

WIDTHS = [[2, 4, 1], [3, 4, 2, 2], [2, 3, 3, 2, 1], [3, 2]]


def held(widths: Sequence[int], seed: int = 0, batch: int = 3) -> tuple[Problem, torch.nn.Module]:
    net, x = relu_mlp(widths, seed), randn(seed + 100, batch, widths[0])
    return hold(encode(net, x), x), net


def blocks(weights: list[np.ndarray], masks: list[np.ndarray]) -> np.ndarray:
    """L[Ω,Ω] written out block by block as eq. A.5 has it."""
    k = len(weights) - 1
    sizes = [n for w in weights[:k] for n in (w.shape[0], w.shape[0])] + [weights[k].shape[0]]
    at = [slice(sum(sizes[:i]), sum(sizes[: i + 1])) for i in range(len(sizes))]
    out = np.zeros((sum(sizes), sum(sizes)))
    for layer in range(1, k + 1):
        z, a, r = at[2 * layer - 2], at[2 * layer - 1], np.diag(masks[layer - 1])
        above = weights[layer]
        out[z, z] = np.eye(len(r)) + r
        out[z, a] = out[a, z] = -r
        out[a, a] = np.eye(len(r)) + above.T @ above
        following = at[2 * layer]
        out[following, a] = -above
        out[a, following] = -above.T
    out[at[2 * k], at[2 * k]] = np.eye(sizes[-1])
    return out


@pytest.mark.parametrize("widths", WIDTHS)
def test_laplacian_has_the_paper_s_blocks(widths: list[int]) -> None:
    problem, net = held(widths)
    weights, biases = layers(net)
    dense = problem.laplacian(problem.start("forward")).to_dense().numpy()
    for m, x in enumerate(problem.values["input"].numpy()):
        expected = blocks(weights, forward_masks(weights, biases, x))
        np.testing.assert_allclose(dense[m], expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("widths", WIDTHS)
def test_coboundary_is_its_definition(widths: list[int]) -> None:
    problem, net = held(widths)
    weights, biases = layers(net)
    dense = problem.coboundary(problem.start("forward")).to_dense().numpy()
    for m, x in enumerate(problem.values["input"].numpy()):
        expected = path_coboundary(weights, forward_masks(weights, biases, x))
        np.testing.assert_array_equal(dense[m], expected)


@pytest.mark.parametrize("widths", WIDTHS)
def test_the_extended_view_is_the_same_sheaf(widths: list[int]) -> None:
    """δ_Ω equal; δ_U u equal to minus the offset b; W̄ā = Wa + b; P picks a out of ā."""
    problem, net = held(widths)
    weights, biases = layers(net)
    view = ExtendedSheaf.of(problem.sheaf)
    x = problem.values["input"]
    dense = problem.coboundary(problem.start("forward")).to_dense()
    zero = problem.residual(problem.start("zeros"))
    ones = torch.ones(sum(w.shape[0] for w in weights), dtype=torch.float64)
    for m in range(3):
        masks = forward_masks(weights, biases, x[m].numpy())
        free, pinned = view.coboundary([torch.from_numpy(r) for r in masks])
        torch.testing.assert_close(free, dense[m], rtol=0, atol=1e-14)
        moved = pinned @ torch.cat([x[m], ones])
        residual = problem.edge_space.flatten(zero)[m]
        torch.testing.assert_close(moved, residual, rtol=0, atol=1e-14)
    for layer in range(1, len(weights) + 1):
        a = randn(layer, 5, weights[layer - 1].shape[1])
        affine = torch.nn.functional.linear(
            a, torch.from_numpy(weights[layer - 1]), torch.from_numpy(biases[layer - 1])
        )
        torch.testing.assert_close(view.extend(a, layer - 1) @ view.affine(layer).mT, affine)
        if layer < len(weights):
            z = randn(layer, 5, weights[layer - 1].shape[0])
            assert torch.equal(view.extend(z, layer) @ view.projection(layer).mT, z)


@pytest.mark.parametrize("widths", [[2, 4, 1], [3, 4, 2, 2]])
def test_boundary_block_has_the_paper_s_columns(widths: list[int]) -> None:
    """L[Ω,U] on (x, 1_{n1} | 1_{n2} | …): rows z_1, z_l and a_{l−1} of section 3."""
    problem, net = held(widths)
    weights, biases = layers(net)
    masks = forward_masks(weights, biases, problem.values["input"][0].numpy())
    free, pinned = ExtendedSheaf.of(problem.sheaf).coboundary([torch.from_numpy(r) for r in masks])
    got = (free.mT @ pinned).numpy()
    k, n0 = len(weights) - 1, widths[0]
    sizes = [n for n in widths[1:-1] for _ in (0, 1)] + [widths[-1]]
    row = [slice(sum(sizes[:i]), sum(sizes[: i + 1])) for i in range(len(sizes))]
    expected = np.zeros_like(got)
    start = n0
    for layer in range(1, k + 2):
        ones, b = slice(start, start + widths[layer]), np.diag(biases[layer - 1])
        start += widths[layer]
        expected[row[2 * layer - 2], ones] = -b
        if layer == 1:
            expected[row[0], :n0] = -weights[0]
        else:
            expected[row[2 * layer - 3], ones] = weights[layer - 1].T @ b
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-14)


def test_det_is_one_and_laplacian_is_positive_for_every_pattern() -> None:
    """All 2^n masks, not only that of the forward pass (Lemma 1)."""
    problem, net = held([2, 3, 2, 1], batch=1)
    weights, _ = layers(net)
    sheaf, at = problem.sheaf, problem.start("zeros")
    gates = {n.name: n.gates[0].name for n in sheaf.network.nodes if n.gates}
    seen = 0
    for masks in all_patterns([3, 2]):
        pattern = {g: torch.from_numpy(r)[None] for g, r in zip(gates.values(), masks, strict=True)}
        delta = problem.coboundary(at, pattern).to_dense()[0]
        np.testing.assert_array_equal(delta.numpy(), path_coboundary(weights, masks))
        assert abs(float(torch.linalg.det(delta)) - 1) <= 1e-10
        laplacian = problem.laplacian(at, pattern).to_dense()[0]
        assert abs(float(torch.linalg.det(laplacian)) - 1) <= 1e-8
        assert float(torch.linalg.eigvalsh(laplacian)[0]) > 0
        seen += 1
    assert seen == 2**5


def test_fused_form_is_w_sigma() -> None:
    """(δc)_l = z_l − W_l Σ_{l−1} z_{l−1}: the course's variant, with another Laplacian."""
    net, x = relu_mlp([2, 4, 3, 1], 5), randn(6, 2, 2)
    problem = hold(encode(net, x, form="fused"), x)
    weights, biases = layers(net)
    dense = problem.coboundary(problem.start("forward")).to_dense().numpy()
    for m in range(2):
        masks = forward_masks(weights, biases, x[m].numpy())
        expected = np.eye(8)
        expected[4:7, :4] = -weights[1] * masks[0]
        expected[7:, 4:7] = -weights[2] * masks[1]
        np.testing.assert_allclose(dense[m], expected, rtol=0, atol=1e-14)
    assert torch.equal(problem.start("forward")["4"], net(x).detach())


def test_the_extended_view_refuses_other_networks() -> None:
    x = randn(1, 2, 3)
    smooth = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh()).double()
    with pytest.raises(ValueError, match="tanh"):
        ExtendedSheaf.of(encode(smooth, x))
    with pytest.raises(ValueError, match="unfused"):
        ExtendedSheaf.of(encode(relu_mlp([3, 2, 1], 0), x, form="fused"))
