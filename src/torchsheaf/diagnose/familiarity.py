"""Are inputs like those that the network knows? Distance of all values to a reference batch's."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchsheaf.boundary import Problem, require_problem
from torchsheaf.cochain import Cochain, coordinates
from torchsheaf.diagnose.findings import Finding, at_most, listed

FOREIGN = 0.02
"""Share of samples that may lie outside: the reference itself has 1% there."""


@dataclass(frozen=True, eq=False)
class Familiarity:
    """Mean and shrunk covariance of every chosen vertex over reference inputs.

    The distance is the mean over vertices of the squared Mahalanobis distance per coordinate,
    (1/n) (c − m)ᵀS⁻¹(c − m); the covariance C of n coordinates may be singular, and is shrunk:
    S = 0.9 C + 0.1 (tr C/n) I. `limit` is what 99% of reference inputs that the covariances did
    not see stay below, times `MARGIN`. Discord plays no part: on shifted inputs it was behind this
    (docs/diagnosis.md).
    """

    means: dict[str, Tensor]
    inverses: dict[str, Tensor]
    limit: float

    @classmethod
    def of(cls, problem: Problem, vertices: Sequence[str] | None = None) -> "Familiarity":
        """Calibrate on a problem that holds reference inputs, at least 20.

        `vertices` defaults to those of at most 512 coordinates that hold real numbers. Cost: one
        pass, and the inverse of one covariance per vertex. Raises ValueError for fewer inputs,
        token numbers among the vertices (they have no distance), and weights that are not finite.
        """
        require_problem(problem)
        if problem.batch < 20:
            raise ValueError(f"{problem.batch} reference inputs came; write at least 20")
        sheaf, tokens = problem.sheaf, problem.sheaf.network.integral
        vertices = (vertices,) if isinstance(vertices, str) else vertices
        if not isinstance(vertices, Sequence | None):
            raise TypeError(f"vertices is a {type(vertices).__name__}; write a list of names")
        small = (n for n, v in sheaf.vertices.items() if v.dim <= 512 and n not in tokens)
        names = [sheaf.vertex(n) for n in vertices or small]
        if among := tokens.intersection(names):
            raise ValueError(
                f"vertices: {min(among)!r} holds integers, which have no distance; leave it out"
            )
        at = problem.start("forward").select(names)
        index = torch.arange(problem.batch)
        half = cls._fit(at.samples(index[::2]), 0.0)
        limit = MARGIN * float(half.distance(at.samples(index[1::2])).quantile(0.99))
        return cls._fit(at, limit)

    @classmethod
    def _fit(cls, at: Cochain, limit: float) -> "Familiarity":
        means, inverses = {}, {}
        for name, block in at.items():
            flat = coordinates(block).double()
            means[name] = flat.mean(0)
            covariance = torch.cov(flat.mT, correction=0).reshape(flat.shape[1], flat.shape[1])
            scale = covariance.diagonal().mean() + 1e-12
            shrunk = 0.9 * covariance + 0.1 * scale * torch.eye(flat.shape[1]).to(covariance)
            inverses[name] = torch.linalg.inv(shrunk)
        return cls(means, inverses, limit)

    def distance(self, at: Cochain) -> Tensor:
        """Mean squared Mahalanobis distance per coordinate, `(batch,)`."""
        parts = []
        for name, mean in self.means.items():
            d = coordinates(at[name]).double() - mean
            parts.append(((d @ self.inverses[name]) * d).mean(1))
        return torch.stack(parts).mean(0)

    def finding(self, problem: Problem) -> Finding:
        """The share of a problem's inputs that are foreign."""
        require_problem(problem)
        distance = self.distance(problem.start("forward"))
        flagged = (distance > self.limit).nonzero().flatten()
        ranked = flagged[distance[flagged].argsort(descending=True)].tolist()
        share = len(ranked) / problem.batch
        return at_most(
            "foreign inputs",
            share,
            FOREIGN,
            unit="of the samples",
            source="Mahalanobis distance of all values to the reference inputs'",
            advice=(
                "These inputs move the network as the reference inputs do."
                if share <= FOREIGN
                else f"{len(ranked)} samples drive the network where no reference input does: "
                f"{listed(ranked, 8)}. Do not trust its answers there; check units, scaling and "
                "preprocessing, or collect such samples."
            ),
        )


MARGIN = 1.5
"""Factor on the reference's own 99th percentile."""
