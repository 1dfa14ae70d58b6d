"""Exact block coordinate descent for held ReLU MLPs: all a, then all z; monotone, no step size."""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from torchsheaf.boundary import Problem, stationarity
from torchsheaf.cochain import Cochain, coordinates
from torchsheaf.harmonic.solver import HarmonicSolver, Progress, Solution
from torchsheaf.outcome import Outcome
from torchsheaf.sheaf import ExtendedSheaf

CHECK_EVERY = 5
"""Iterations between stationarity tests, which cost two passes each."""


@final
class BlockDescent(HarmonicSolver):
    """Alternates two exact minimisations of E on the path of a ReLU MLP.

    a-step, all hidden layers at once given z (one factorisation per layer, shared by the batch):
        (w_a I + w_z WᵀW + Γ_a) a_l = w_a σ(z_l) + w_z Wᵀ(z_{l+1} − b) + Γ_a p.
    z-step, every coordinate on its own given a, with c = W a + b: the better of
        z⁻ = min((w_z c + γp)/(w_z + γ), 0)  and  z⁺ = max((w_z c + w_a a + γp)/(w_z + w_a + γ), 0);
    z⁺ = 0 is the sliding state, reached exactly. Hard pins replace the coordinate by its value.

    Where stalks are (tokens, features), tokens are rows, as samples are. Energy never rises. Cost:
    two passes per iteration; iterations grow quickly with depth (about 30 for one hidden layer,
    thousands for four), so it is the start and the fallback.
    Equilibria with the output held are local minima. Source: docs/theory.md (block descent); for
    the energy see also Zeng, Lau, Lin, Yao 2019 (arXiv 1803.00225).
    """

    name = "block descent"

    def refuses(self, problem: Problem) -> str | None:
        if any(not bool(problem.held[n].all()) for n in problem.sheaf.inputs):
            return "block descent needs the whole input held"
        if not problem.is_uniform:
            return "block descent needs the same pins and weights in all samples"
        try:
            ExtendedSheaf.of(problem.sheaf)
        except ValueError as error:
            return str(error)
        return None

    def solve(
        self, problem: Problem, start: Cochain, tol: float, max_passes: int,
        tell: Progress = lambda share: None,
    ) -> Solution:  # fmt: skip
        path = _Path.of(problem)
        state = {n: start[n].clone() for n in problem.sheaf.vertices}
        passes = 0
        energies: list[float] = []
        before = None
        while True:
            cochain = Cochain(state)
            residual = problem.residual(cochain)
            energies.append(float(problem.energy(cochain, residual).sum()))
            if not math.isfinite(energies[-1]):
                return _solution(cochain, before, passes, Outcome.NONFINITE, energies)
            passes += 2
            share = float(
                (stationarity(problem, cochain, residual).distance <= tol).double().mean()
            )
            tell(share)
            if share == 1:
                return _solution(cochain, before, passes, Outcome.SETTLED, energies)
            if passes >= max_passes:
                return _solution(cochain, before, passes, Outcome.STEP_LIMIT, energies)
            for _ in range(CHECK_EVERY):
                before = {z: state[z] >= 0 for z in path.pre[:-1]}
                path.step(state)
                passes += 2


def _solution(
    cochain: Cochain, before: dict[str, Tensor] | None, passes: int, outcome: Outcome,
    energies: list[float],
) -> Solution:  # fmt: skip
    settled = torch.ones(cochain.batch, dtype=torch.bool, device=cochain.device)
    for name, old in (before or {}).items():
        settled &= coordinates((cochain[name] >= 0) == old).all(1)
    return Solution(cochain, settled, passes, outcome, tuple(energies))


OVER_RELAXATION = 1.5


@torch.no_grad()
def over_relaxed(problem: Problem, start: Cochain) -> Cochain:
    """A first cochain for held outputs: one a-step from `start`, over-relaxed by 1.5.

    The output is moved to where its own pins want it first. Monotone for factors below 2, and it
    leads Newton's method to lower minima on shallow untrained nets. Cost: two passes and one
    factorisation per layer, shared by the batch.
    """
    path = _Path.of(problem)
    state = dict(start.items())
    last = len(path.pre) - 1
    if len(path.post) == last:
        state[path.pre[last]] = path._pre(last, state)
    old = {a: state[a] for a in path.post}
    for i, a in enumerate(path.post):
        state[a] = old[a] + OVER_RELAXATION * (path._post(i, state) - old[a])
    return problem.clamp(state)


@dataclass(frozen=True)
class _Pull:
    """Quadratic pull on one vertex from its pins: Γ (per coordinate), Γp, and what is held.

    All of them in the stalk's shape, Γp and the held values batch first.
    """

    gamma: Tensor
    gamma_p: Tensor
    held: Tensor | None
    value: Tensor | None


@dataclass(frozen=True)
class _Path:
    """Weights, factorisations and pins along the path z_1, a_1, …, z_{k+1}."""

    source: str
    pre: tuple[str, ...]
    post: tuple[str, ...]
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    edge_weights: dict[str, float]
    pulls: dict[str, _Pull]
    factors: tuple[Tensor, ...]

    @classmethod
    def of(cls, problem: Problem) -> "_Path":
        maps = ExtendedSheaf.of(problem.sheaf)
        names = list(problem.sheaf.edges)
        pre, post = tuple(names[0::2]), tuple(names[1::2])
        weights = {n: problem.weights.get(n, 1.0) for n in names}
        pulls = {n: _pull(problem, n) for n in names}
        factors: list[Tensor] = []
        for i, a in enumerate(post):
            if i + 1 < len(pre):
                w = maps.weights[i + 1]
                matrix = weights[pre[i + 1]] * w.mT @ w
            else:
                width = maps.weights[i].shape[0]
                matrix = maps.weights[i].new_zeros(width, width)
            factors.append(_factor(matrix, weights[a], pulls[a]))
        return cls(
            problem.sheaf.inputs[0], pre, post, maps.weights, maps.biases, weights, pulls,
            tuple(factors),
        )  # fmt: skip

    def step(self, state: dict[str, Tensor]) -> None:
        """One iteration in place: all post-activations, then all pre-activations."""
        for i, a in enumerate(self.post):
            state[a] = self._post(i, state)
        for i, z in enumerate(self.pre):
            state[z] = self._pre(i, state)

    def _post(self, i: int, state: dict[str, Tensor]) -> Tensor:
        name, pull = self.post[i], self.pulls[self.post[i]]
        rhs = self.edge_weights[name] * state[self.pre[i]].clamp_min(0) + pull.gamma_p
        held = state[name] if pull.held is None else torch.where(pull.held, state[name], 0)
        if i + 1 < len(self.pre):
            above, w, b = self.pre[i + 1], self.weights[i + 1], self.biases[i + 1]
            goal = state[above] - b
            if pull.held is not None:
                goal = goal - held @ w.mT
            rhs = rhs + self.edge_weights[above] * goal @ w
        if pull.held is None:
            return _solve(self.factors[i], rhs)
        solved = _solve(self.factors[i], rhs.masked_fill(pull.held, 0))
        return torch.where(pull.held, state[name], solved)

    def _pre(self, i: int, state: dict[str, Tensor]) -> Tensor:
        name = self.pre[i]
        pull, wz = self.pulls[name], self.edge_weights[name]
        below = state[self.source] if i == 0 else state[self.post[i - 1]]
        c = torch.nn.functional.linear(below, self.weights[i], self.biases[i])
        weight, moment = wz + pull.gamma, wz * c + pull.gamma_p
        if i == len(self.pre) - 1 and len(self.post) < len(self.pre):
            z = moment / weight
        else:
            a, wa = state[self.post[i]], self.edge_weights[self.post[i]]
            off = (moment / weight).clamp_max(0)
            on = ((moment + wa * a) / (weight + wa)).clamp_min(0)
            # energies up to the common constant: ½ weight z² − moment z + ½ w_a (a − σ(z))²
            e_off = 0.5 * weight * off**2 - moment * off + 0.5 * wa * a**2
            e_on = 0.5 * weight * on**2 - moment * on + 0.5 * wa * (a - on) ** 2
            z = torch.where(e_on <= e_off, on, off)
        if pull.held is not None:
            assert pull.value is not None
            z = torch.where(pull.held, pull.value, z)
        return z


def _pull(problem: Problem, name: str) -> _Pull:
    shape = problem.sheaf.vertices[name].shape
    none = problem.like.new_zeros(shape)
    gamma, moment = problem.soft_pull(name) or (none, none)
    held, values = problem.held.get(name), problem.values.get(name)
    return _Pull(gamma.reshape(-1, *shape), moment.reshape(-1, *shape), held, values)


def _factor(matrix: Tensor, weight: float, pull: _Pull) -> Tensor:
    """Cholesky factors of matrix + w I + Γ, `(rows, n, n)`; held coordinates are cut out of it.

    One factor is shared by all rows (tokens) of a stalk whose pins do not tell them apart.
    """
    n = len(matrix)
    held = torch.zeros_like(pull.gamma, dtype=torch.bool) if pull.held is None else pull.held
    gamma, held = pull.gamma.reshape(-1, n), held.reshape(-1, n)
    if bool((gamma == gamma[:1]).all() and (held == held[:1]).all()):
        gamma, held = gamma[:1], held[:1]
    matrix = (matrix + torch.diag_embed(weight + gamma)).masked_fill(held[:, None], 0)
    matrix = matrix.masked_fill(held[..., None], 0) + torch.diag_embed(held.to(matrix.dtype))
    return torch.linalg.cholesky(matrix)


def _solve(factor: Tensor, rhs: Tensor) -> Tensor:
    """Every row of rhs `(batch, …, n)` by the factor of its own, or by the one of all."""
    rows = rhs.reshape(-1, len(factor), rhs.shape[-1]).permute(1, 2, 0)
    return torch.cholesky_solve(rows, factor).permute(2, 0, 1).reshape(rhs.shape)
