"""Linear maps on cochains, one map per sample, never assembled unless asked."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torchsheaf.cochain import Cochain, Space

if TYPE_CHECKING:
    import scipy.sparse


class LinearMap(ABC):
    """A batch of linear maps A_m : domain → codomain, one per sample m.

    `apply` and `adjoint` take and return cochains whose first axis is the batch; they satisfy
    ⟨A u, v⟩ = ⟨u, Aᵀ v⟩ per sample.
    """

    domain: Space
    codomain: Space

    def __repr__(self) -> str:
        size = f"{self.codomain.dim} × {self.domain.dim}"
        return f"{type(self).__name__}({size}, {self.like.shape[0]} samples)"

    @property
    @abstractmethod
    def like(self) -> Tensor:
        """A tensor with the batch size, dtype and device of the map."""

    @abstractmethod
    def apply(self, u: Cochain) -> Cochain:
        """A u."""

    @abstractmethod
    def adjoint(self, v: Cochain) -> Cochain:
        """Aᵀ v."""

    def apply_flat(self, u: Tensor) -> Tensor:
        """A u for flat vectors, `(batch, n)` → `(batch, m)`."""
        return self.codomain.flatten(self.apply(self.domain.unflatten(u)))

    def to_dense(self, chunk: int = 64) -> Tensor:
        """The assembled matrices, `(batch, m, n)`.

        Cost: n applications, `chunk` at a time; O(batch · m · n) memory. For small maps and tests.
        """
        n, like = self.domain.dim, self.like
        batch = like.shape[0]
        if n == 0:  # everything is held
            return like.new_zeros(batch, self.codomain.dim, 0)

        def column(j: Tensor) -> Tensor:
            basis = (torch.arange(n, device=like.device) == j).to(like.dtype)
            return self.apply_flat(basis.expand(batch, n))

        index = torch.arange(n, device=like.device)
        with torch.no_grad():
            columns = torch.vmap(column, chunk_size=chunk)(index)
        return columns.permute(1, 2, 0).contiguous()

    def to_scipy(self, sample: int = 0) -> "scipy.sparse.csr_matrix":
        """One sample's map as a SciPy sparse matrix."""
        import scipy.sparse

        return scipy.sparse.csr_matrix(self.to_dense()[sample].cpu().numpy())
