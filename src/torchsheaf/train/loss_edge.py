"""The loss edge of a relaxation: where the output would come to rest, from few numbers per sample.

V(z) is the least energy of a cochain whose output is z, the input held. A relaxation with the loss
attached minimises V(z) + ε Φ(z, y), and V is known by its force where the last one ended and by the
secants of those before (docs/theory.md, T6).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchsheaf.boundary import Problem
from torchsheaf.cochain import Cochain, coordinates
from torchsheaf.train.losses import Loss

LARGEST = 64
"""Coordinates of the output up to which the model is made: it costs a reverse pass for each."""
NEWTON_STEPS = 50
HALVINGS = 30


@dataclass(frozen=True)
class OutputModel:
    """V(z + s) ≈ V(z) + V′(z)ᵀs + ½ sᵀK⁻¹s per sample.

    `z` and `force` = V′(z) are `(batch, d)`, `compliance` = K `(batch, d, d)`; `trusted` (batch,)
    says where no step that the model gave has raised the true energy.
    """

    z: Tensor
    force: Tensor
    compliance: Tensor
    trusted: Tensor

    @classmethod
    def at(cls, problem: Problem, state: Cochain, output: str) -> "OutputModel":
        """K = Σ_e J_e J_eᵀ/w_e at a state's pattern, J_e = ∂z_out/∂c_e. Cost: d + 3 passes.

        Exact in the nudged limit (docs/theory.md, T5); elsewhere `after` corrects it.
        """
        z = coordinates(state[output])
        coboundary, weights = problem.coboundary(state), problem.weights
        nothing = coboundary.domain.zeros(z.shape[0], z)
        rows: list[Cochain] = []
        for unit in torch.eye(z.shape[1], dtype=z.dtype, device=z.device):
            wanted = unit.expand_as(z).reshape(state[output].shape)
            rows.append(coboundary.solve_adjoint(Cochain({**nothing, output: wanted})))
        compliance = z.new_zeros(*z.shape, z.shape[1])
        for name in rows[0]:
            j = torch.stack([coordinates(row[name]) for row in rows], 1)
            compliance += j @ j.mT / weights.get(name, 1.0)
        force = coordinates(problem.gradient(state)[output])
        return cls(z, force, compliance, torch.ones_like(z[:, 0], dtype=torch.bool))

    def after(self, z: Tensor, force: Tensor, lower: Tensor, least: float) -> "OutputModel":
        """The model at the new z, K corrected so that K ΔV′ = Δz (BFGS): definite as before.

        Samples in which ΔV′ is below `least` keep K; those not `lower` are no longer trusted and
        stay where they were.
        """
        s, y = z - self.z, force - self.force
        along, size = (s * y).sum(1), y.norm(dim=1)
        good = (size > least) & (along > 1e-3 * s.norm(dim=1) * size)
        share = torch.where(good, 1 / torch.where(good, along, 1), 0)[:, None, None]
        left = torch.eye(s.shape[1]).to(s) - share * s[:, :, None] * y[:, None, :]
        k = left @ self.compliance @ left.mT + share * s[:, :, None] * s[:, None, :]
        keep = lower[:, None]
        return replace(
            self, z=torch.where(keep, z, self.z), force=torch.where(keep, force, self.force),
            compliance=k, trusted=self.trusted & lower,
        )  # fmt: skip

    def rest(self, loss: Loss, y: Tensor, weight: float, like: Tensor) -> Tensor:
        """argmin of the model plus ε Φ, of the output's shape; z itself where it is not trusted.

        Newton's method with halving on a convex function of d numbers per sample.
        """
        inverse = torch.linalg.inv_ex(self.compliance).inverse
        z = self.z

        def value(z: Tensor) -> Tensor:
            s = z - self.z
            bent = 0.5 * torch.einsum("bi,bij,bj->b", s, inverse, s) + (s * self.force).sum(1)
            return bent + weight * loss.potential(z.reshape(like.shape), y)

        now = value(z)
        for _ in range(NEWTON_STEPS):
            at = z.reshape(like.shape)
            pull = self.force + torch.einsum("bij,bj->bi", inverse, z - self.z)
            pull = pull + weight * coordinates(loss.gradient(at, y))
            second = loss.hessian(at, y)
            assert second is not None
            step = torch.linalg.solve_ex(inverse + weight * second, pull).result
            length = torch.ones_like(now)
            for _ in range(HALVINGS):
                new = value(z - length[:, None] * step)
                worse = ~(new <= now)
                if not bool(worse.any()):
                    break
                length = torch.where(worse, 0.5 * length, length)
            better = new < now
            if not bool(better.any()):
                break
            z = torch.where(better[:, None], z - length[:, None] * step, z)
            now = torch.where(better, new, now)
        return torch.where(self.trusted[:, None], z, self.z).reshape(like.shape)
