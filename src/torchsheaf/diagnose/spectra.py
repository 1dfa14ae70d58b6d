"""The spectrum over samples: how fast each settles, where its extreme modes live, how stably."""

from dataclasses import dataclass

import torch
from torch import Tensor

from torchsheaf.arguments import positive_number
from torchsheaf.boundary import Problem, require_problem
from torchsheaf.cochain import Cochain
from torchsheaf.harmonic import Spectrum, spectrum


@dataclass(frozen=True, eq=False)
class Spectra:
    """Both ends of the Laplacian's spectrum, per sample.

    `gap` λ₁, `top` λ_max and `condition` λ_max/λ₁ are (batch,). The energies are shares of the
    extreme eigenvectors' squared norm per vertex, (batch,) each; they sum to 1 over vertices.
    """

    smallest: Spectrum
    largest: Spectrum

    @property
    def gap(self) -> Tensor:
        """Smallest eigenvalue: the rate of the slowest mode."""
        return self.smallest.values[:, 0]

    @property
    def top(self) -> Tensor:
        """Largest eigenvalue: explicit Euler needs dt < 2/(α λ_max)."""
        return self.largest.values[:, 0]

    @property
    def condition(self) -> Tensor:
        """κ = λ_max / λ₁."""
        return self.top / self.gap

    @property
    def fiedler_energy(self) -> dict[str, Tensor]:
        """Where the slowest mode lives."""
        return self.smallest.block_energy()

    @property
    def top_energy(self) -> dict[str, Tensor]:
        """Where the fastest mode lives."""
        return self.largest.block_energy()

    @property
    def stability(self) -> tuple[float, float]:
        """Mean |cos| between the samples' slowest, and between their fastest, eigenvectors."""
        return (
            direction_stability(self.smallest.vectors[..., 0]),
            direction_stability(self.largest.vectors[..., 0]),
        )

    def unit_energy(self, vertex: str, *, end: str = "top") -> Tensor:
        """Energy per coordinate of one vertex, `(batch, *shape)`; end "top" or "gap"."""
        if end not in ("top", "gap"):
            raise ValueError(f'end is {end!r}; write "top" or "gap"')
        found = self.largest if end == "top" else self.smallest
        return found.cochain(0)[vertex].square()


def direction_stability(vectors: Tensor) -> float:
    """Mean of |⟨v_m, v_n⟩| over pairs m < n of unit vectors `(batch, dim)`; 1 for one sample."""
    n = vectors.shape[0]
    if n < 2:
        return 1.0
    cosines = (vectors @ vectors.mT).abs()
    return float((cosines.sum() - cosines.diagonal().sum()) / (n * (n - 1)))


@torch.no_grad()
def spectra(
    problem: Problem,
    *,
    at: Cochain | None = None,
    numbers: float = 4e6,
    tol: float = 1e-4,
    throw: bool = True,
) -> Spectra:
    """Extreme eigenpairs of L of every sample, in batches, matrix-free.

    Masks come from `at` (default: each sample's forward pass). Samples go through Lanczos in
    batches that keep at most about `numbers` numbers in memory; no loop over samples and no dense
    eigenproblem. `tol` is the relative residual of an eigenpair; an eigenvalue's own error is of
    the order of its square.

    Raises what `spectrum` raises.

    Cost: 25–50 products for the gap and 40–90 for the other end (digits networks), two sweeps
    of the whole batch each. Source: Bosca & Ghrist 2026, section 6.3.

    >>> from torchsheaf.boundary import hold
    >>> from torchsheaf.sheaf import encode
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 6), torch.nn.ReLU(), torch.nn.Linear(6, 1))
    >>> x = torch.randn(8, 2).double()
    >>> problem = hold(encode(net.double(), x), x)
    >>> dense = torch.linalg.eigvalsh(problem.laplacian(problem.start("forward")).to_dense())
    >>> bool(torch.allclose(spectra(problem).condition, dense[:, -1] / dense[:, 0]))
    True
    """
    require_problem(problem)
    numbers = positive_number("numbers", numbers)
    if at is not None:
        problem.require_values("at", at)
        at = Cochain(at)
    size = max(1, int(numbers / (60 * problem.free.dim)))
    fixed = problem.sheaf.network.fixed_batch is not None
    if fixed or size >= problem.batch:
        parts = [(problem, at)]
    else:
        parts = []
        for index in torch.arange(problem.batch).split(size):
            parts.append((problem.samples(index), None if at is None else at.samples(index)))
    ends = [
        [spectrum(p, which=which, at=c, tol=tol, throw=throw) for p, c in parts]
        for which in ("smallest", "largest")
    ]
    return Spectra(*(_joined(found) for found in ends))


def _joined(found: list[Spectrum]) -> Spectrum:
    first = found[0]
    return Spectrum(
        torch.cat([s.values for s in found]),
        torch.cat([s.vectors for s in found]),
        torch.cat([s.residual for s in found]),
        max(s.passes for s in found),
        first.which,
        first.space,
    )
