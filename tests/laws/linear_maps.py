"""The laws of a batch of linear maps on cochains; any new map is passed to them as it is."""

from collections.abc import Callable

import torch
from torch import Tensor

from tests.reference.networks import generator
from torchsheaf.cochain import Cochain, Space
from torchsheaf.linalg import LinearMap

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}


def draw(space: Space, like: Tensor, seed: int) -> Cochain:
    return space.random(like.shape[0], like, generator(seed))


def close(got: Tensor, expected: Tensor, dtype: torch.dtype = torch.float64) -> bool:
    """Equal shape, and equal values relative to the larger of 1 and the expected size."""
    if got.shape != expected.shape:
        return False
    got, expected = got.detach(), expected.detach()
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    return bool((got - expected).abs().max() <= TOLERANCE[dtype] * scale) if got.numel() else True


def is_adjoint(a: LinearMap) -> None:
    """⟨A u, v⟩ = ⟨u, Aᵀ v⟩ for every sample."""
    u, v = draw(a.domain, a.like, 1), draw(a.codomain, a.like, 2)
    left, right = a.apply(u).dot(v), u.dot(a.adjoint(v))
    assert left.shape == a.like.shape
    assert close(left, right, a.like.dtype), (left, right)


def is_linear(a: LinearMap) -> None:
    """A(2u − 3v) = 2Au − 3Av, per-sample factors included."""
    u, v = draw(a.domain, a.like, 3), draw(a.domain, a.like, 4)
    factor = torch.arange(1, 1 + a.like.shape[0], dtype=a.like.dtype, device=a.like.device)
    for s, t in ((2.0, -3.0), (factor, -factor)):
        got, expected = a.apply(s * u + t * v), s * a.apply(u) + t * a.apply(v)
        assert close(a.codomain.flatten(got), a.codomain.flatten(expected), a.like.dtype)


def is_what_is_assembled(a: LinearMap) -> None:
    """to_dense() and to_scipy() act as apply and adjoint do."""
    dense = a.to_dense()
    assert dense.shape == (a.like.shape[0], a.codomain.dim, a.domain.dim)
    u, v = draw(a.domain, a.like, 5), draw(a.codomain, a.like, 6)
    applied = torch.einsum("bmn,bn->bm", dense, a.domain.flatten(u))
    assert close(a.codomain.flatten(a.apply(u)), applied, a.like.dtype)
    pulled = torch.einsum("bmn,bm->bn", dense, a.codomain.flatten(v))
    assert close(a.domain.flatten(a.adjoint(v)), pulled, a.like.dtype)
    last = a.like.shape[0] - 1
    sparse = torch.from_numpy(a.to_scipy(last).toarray())
    assert torch.equal(sparse, dense[last].cpu())


def is_one_map_per_sample(a: LinearMap, alone: Callable[[int], LinearMap]) -> None:
    """The batch equals a loop over maps built from one sample each."""
    u, v = draw(a.domain, a.like, 7), draw(a.codomain, a.like, 8)
    applied, pulled = a.apply(u), a.adjoint(v)
    for m in range(a.like.shape[0]):
        one, at = alone(m), slice(m, m + 1)
        assert close(
            one.codomain.flatten(one.apply(u.samples(at))),
            a.codomain.flatten(applied.samples(at)),
            a.like.dtype,
        )
        assert close(
            one.domain.flatten(one.adjoint(v.samples(at))),
            a.domain.flatten(pulled.samples(at)),
            a.like.dtype,
        )


def keeps_dtype_and_device(a: LinearMap) -> None:
    u, v = draw(a.domain, a.like, 9), draw(a.codomain, a.like, 10)
    for image in (a.apply(u), a.adjoint(v)):
        for name, block in image.items():
            assert block.dtype == a.like.dtype, name
            assert block.device == a.like.device, name


LAWS = (is_adjoint, is_linear, is_what_is_assembled, keeps_dtype_and_device)
