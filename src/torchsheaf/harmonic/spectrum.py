"""Extreme eigenpairs of the sheaf Laplacian, per sample, without assembling it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from torchsheaf.arguments import positive_number, require_generator, tolerance_of, whole_number
from torchsheaf.boundary import Problem, require_problem
from torchsheaf.cochain import Cochain, Space, coordinates
from torchsheaf.draws import standard_normal
from torchsheaf.linalg import lanczos, three_term_lanczos
from torchsheaf.outcome import ConvergenceError, Outcome


@dataclass(frozen=True, eq=False, repr=False)
class Spectrum:
    """k extreme eigenpairs of L per sample.

    `values` (batch, k): ascending for the smallest, descending for the largest, repeated with
    their multiplicity. `vectors` (batch, dim, k) over the free coordinates, orthonormal.
    `residual` (batch, k) is ‖Lv − λv‖/λ for the largest, ‖L⁻¹v − v/λ‖·λ for the smallest.
    When only the values were asked for, `vectors` has no columns and `residual` is the estimate of
    the values' relative error.
    `passes`: sweeps over the network per sample.
    """

    values: Tensor
    vectors: Tensor
    residual: Tensor
    passes: int
    which: str
    space: Space

    def __repr__(self) -> str:
        least, most = (float(v) for v in self.values.aminmax())
        batch, k = self.values.shape
        return f"Spectrum({k} {self.which} of {batch} samples: {least:.6g} … {most:.6g})"

    def cochain(self, i: int = 0) -> Cochain:
        """The i-th eigenvector as a cochain on the free coordinates."""
        if not self.vectors.shape[2]:
            raise ValueError("this spectrum has values only; ask for it with vectors=True")
        return self.space.unflatten(self.vectors[..., i])

    def block_energy(self, i: int = 0) -> dict[str, Tensor]:
        """Share of the i-th eigenvector's squared norm on each vertex, `(batch,)`; sums to 1."""
        return {n: coordinates(t).square().sum(1) for n, t in self.cochain(i).items()}


@torch.no_grad()
def spectrum(
    problem: Problem,
    k: int = 1,
    *,
    which: str = "smallest",
    at: Mapping[str, Tensor] | None = None,
    pattern: Mapping[str, Tensor] | None = None,
    tol: float | None = None,
    max_basis: int = 400,
    vectors: bool = True,
    generator: torch.Generator | None = None,
    throw: bool = True,
) -> Spectrum:
    """Extreme eigenpairs of L = δᵀWδ at a state (default: the forward pass).

    "smallest" runs Lanczos on L⁻¹ = δ⁻¹W⁻¹δ⁻ᵀ, two triangular sweeps per product (plus conjugate
    gradients when there are pins); "largest" runs it on L. With k > 1 a block of k vectors, so
    that multiplicities up to k are kept. The spectral gap is `spectrum(problem).values[:, 0]`.

    `vectors=False` computes the extreme value alone (k = 1) by the three-term recurrence, and
    `tol` bounds the value's estimated error, which is about the square of the residual.

    Cost: about 20–50 products for the gap at any depth; memory O(batch · dim · products), or of
    three cochains with `vectors=False`, which large models need.
    Raises ValueError naming an argument that does not fit, or a weight that is not finite;
    `ConvergenceError` (unless `throw=False`) when `tol` was not reached.
    Source: docs/theory.md, T1 and T3.

    >>> from torchsheaf.sheaf import encode
    >>> from torchsheaf.boundary import hold
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    >>> x = torch.randn(2, 2)
    >>> p = hold(encode(net.double(), x.double()), x.double())
    >>> dense = torch.linalg.eigvalsh(p.laplacian(p.start("forward")).to_dense())
    >>> bool(torch.allclose(spectrum(p).values[:, 0], dense[:, 0]))
    True
    """
    require_problem(problem)
    require_generator(generator)
    if which not in ("smallest", "largest"):
        raise ValueError(f'which is {which!r}; write "smallest" or "largest"')
    k, max_basis = whole_number("k", k), whole_number("max_basis", max_basis)
    if k > problem.free.dim:
        raise ValueError(f"k is {k}; write 1 … {problem.free.dim} (the free coordinates)")
    if k != 1 and not vectors:
        raise ValueError(f"k is {k}; vectors=False gives the extreme value alone, so write k=1")
    if at is None:
        at = problem.start("forward")
    else:
        problem.require_values("at", at)
    if problem.free.differs:
        raise ValueError(
            "samples hold different coordinates here, so their Laplacians differ in size; take "
            "those that hold the same ones, with problem.samples(index)"
        )
    laplacian = problem.laplacian(at, pattern)
    problem.require_digits("Lanczos")
    like = problem._sample(at)
    usual = tolerance_of(problem.coarsest[1], float64=1e-7, float32=1e-4)
    tol = usual if tol is None else positive_number("tol", tol)
    sweeps = [0]
    generator = generator or torch.Generator().manual_seed(0)
    n, batch = problem.free.dim, problem.batch
    start = standard_normal((batch, n, k), generator, like.dtype, like.device)
    product = _inverse(laplacian, sweeps) if which == "smallest" else _forward(laplacian, sweeps)
    if vectors:
        found = lanczos(product, start, k, tol=tol, max_basis=min(max_basis, n))
    else:
        slim = _slim(laplacian, product, sweeps) if which == "smallest" else _one(product)
        start = start.squeeze(2)
        found = three_term_lanczos(slim, start, tol=tol, max_products=min(max_basis, n))
    worst = float((found.residual / found.values.abs()).max())
    values = 1 / found.values if which == "smallest" else found.values
    result = Spectrum(
        values, found.vectors, found.residual / found.values.abs(), sweeps[0], which, problem.free
    )
    what = "residual" if vectors else "error"
    if throw and not worst <= tol and found.products < n:
        raise ConvergenceError(
            Outcome.STEP_LIMIT, f"Lanczos reached a relative {what} of {worst:.1e}", result
        )
    return result


def _inverse(laplacian, sweeps: list[int]) -> Callable[[Tensor], Tensor]:  # type: ignore[no-untyped-def]
    space = laplacian.domain

    def product(block: Tensor) -> Tensor:
        out = []
        for v in block:  # over the k wanted vectors, not over samples
            solution, cost = laplacian.solve(space.unflatten(v))
            sweeps[0] += cost
            out.append(space.flatten(solution))
        return torch.stack(out)

    return product


def _one(product: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda v: product(v[None])[0]


def _slim(  # type: ignore[no-untyped-def]
    laplacian, product: Callable[[Tensor], Tensor], sweeps: list[int]
) -> Callable[[Tensor], Tensor]:
    if not laplacian.coboundary.is_triangular:
        return _one(product)

    def inverse(v: Tensor) -> Tensor:
        sweeps[0] += 2
        return laplacian.inverse_flat(v)

    return inverse


def _forward(laplacian, sweeps: list[int]) -> Callable[[Tensor], Tensor]:  # type: ignore[no-untyped-def]
    space = laplacian.domain

    def product(block: Tensor) -> Tensor:
        sweeps[0] += 2 * block.shape[0]
        return torch.stack([space.flatten(laplacian.apply(space.unflatten(v))) for v in block])

    return product
