"""Ten thousand random small DAGs: is the forward pass the only critical point of E?

A thousand random DAGs of joins (sums, products, concatenated affine maps), gates (ReLU, absolute
value) and smooth maps (tanh, sigmoid, softmax, RMS-norm), ten networks on each, with weights of
scale 0.3 to 3. From a random start the energy ½‖r‖² is lowered by line-searched Gauss–Newton
steps until the gradient vanishes; a counterexample to T2 is an end with E > 0 where
dist(0, ∂E) = 0 to rounding. The heat flow is followed too, by short explicit steps, and every rise
of the energy beyond a step's own discretisation error is counted.

    python -m reproduce.uniqueness            # writes results/uniqueness.json
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measurement import as_json, environment
from torchsheaf.file import write_text

RESULTS = Path(__file__).parent / "results" / "uniqueness.json"
KINDS = ("sum", "product", "affine", "relu", "abs", "tanh", "sigmoid", "softmax", "rms-norm")


@dataclass(frozen=True)
class Family:
    """Graphs of `nodes` vertices of `width` numbers; each has two parents among those before."""

    nodes: int
    width: int
    seed: int

    def draw(self, count: int) -> "Networks":
        """Networks that share one random graph and differ in weights, input and scale."""
        g = torch.Generator().manual_seed(self.seed)
        kinds = [
            KINDS[int(torch.randint(len(KINDS), (1,), generator=g))] for _ in range(self.nodes)
        ]
        parents = [
            tuple(int(p) for p in torch.randint(v + 1, (2,), generator=g))
            for v in range(self.nodes)
        ]
        scale = 0.3 * 10 ** torch.rand(count, 1, 1, 1, 1, generator=g, dtype=torch.float64)
        shape = (count, self.nodes, 2, self.width, self.width)
        weights = scale * torch.randn(shape, generator=g, dtype=torch.float64)
        biases = torch.randn(count, self.nodes, self.width, generator=g, dtype=torch.float64)
        x = torch.randn(count, self.width, generator=g, dtype=torch.float64)
        return Networks(tuple(kinds), tuple(parents), weights, biases, x)


@dataclass(frozen=True)
class Networks:
    """A batch of networks; `parents` count the input as 0 and node v as v + 1."""

    kinds: tuple[str, ...]
    parents: tuple[tuple[int, ...], ...]
    weights: Tensor
    biases: Tensor
    x: Tensor
    held: float | None = None

    def local(self, v: int, values: list[Tensor]) -> Tensor:
        """f_v of the parents, per network."""
        a, b = (values[p] for p in self.parents[v])
        mixed = torch.einsum("bij,bj->bi", self.weights[:, v, 0], a)
        other = torch.einsum("bij,bj->bi", self.weights[:, v, 1], b)
        u = mixed + self.biases[:, v]
        match self.kinds[v]:
            case "sum":
                return a + b
            case "product":
                return a * torch.tanh(b)
            case "affine":
                return u + other
            case "relu":
                return torch.relu(u) + b
            case "abs":
                return u.abs()
            case "tanh":
                return torch.tanh(u) + other
            case "sigmoid":
                return torch.sigmoid(u) * b
            case "softmax":
                return torch.softmax(u, -1) + b
            case _:
                return u * torch.rsqrt(u.square().mean(-1, keepdim=True) + 0.1)

    def residual(self, c: Tensor) -> Tensor:
        """r, `(count, nodes · width)`, with one more row block when the output is held softly."""
        values = [self.x, *c.unbind(1)]
        rows = [c[:, v] - self.local(v, values) for v in range(len(self.kinds))]
        if self.held is not None:
            rows.append(10 * (c[:, -1] - self.held))
        return torch.cat(rows, 1)

    def forward(self) -> Tensor:
        """The forward pass, `(count, nodes, width)`."""
        values = [self.x]
        for v in range(len(self.kinds)):
            values.append(self.local(v, values))
        return torch.stack(values[1:], 1)

    def jacobian(self, c: Tensor) -> Tensor:
        """∂r/∂c per network, by forward mode along all basis vectors at once."""
        n = c[0].numel()
        basis = torch.eye(n, dtype=c.dtype).reshape(n, 1, *c.shape[1:]).expand(n, *c.shape)

        def along(direction: Tensor) -> Tensor:
            return torch.func.jvp(self.residual, (c,), (direction,))[1]

        return torch.func.vmap(along)(basis.contiguous()).permute(1, 2, 0)


@dataclass(frozen=True)
class Found:
    """What a search saw over `count` networks.

    `arrived`: ends with E ≤ 1e-16 of the start's, at the forward pass. `counterexamples`: ends
    with ‖∇E‖ ≤ 1e-6 √E and E > 1e-12. `rises`: heat-flow steps whose energy rose. The least
    ratio ‖∇E‖ / √(2E) seen anywhere is the square root of the decay rate that T2 bounds.
    """

    count: int
    arrived: int
    counterexamples: int
    rises: int
    largest_gradient_ratio: float
    least_gradient_ratio: float
    largest_distance: float


def search(family: Family, count: int, hold_output: float | None = None) -> Found:
    """Descend from a random start in every network of the family."""
    nets = family.draw(count)
    nets = Networks(nets.kinds, nets.parents, nets.weights, nets.biases, nets.x, hold_output)
    g = torch.Generator().manual_seed(family.seed + 10**6)
    c = 3 * torch.randn(count, family.nodes, family.width, generator=g, dtype=torch.float64)
    rises, flowed = _flow(nets, c, 15)
    c = torch.where(torch.arange(count)[:, None, None] % 2 == 0, flowed, c)
    first = 0.5 * nets.residual(c).square().sum(1)
    low, high = float("inf"), 0.0
    for _ in range(400):
        r = nets.residual(c)
        energy = 0.5 * r.square().sum(1)
        d = nets.jacobian(c)
        gradient = torch.einsum("bmn,bm->bn", d, r)
        moving = energy > 1e-20 * first
        ratio = gradient.norm(dim=1) / r.norm(dim=1).clamp_min(1e-300)
        if bool(moving.any()):
            low, high = min(low, float(ratio[moving].min())), max(high, float(ratio[moving].max()))
        still = moving & (ratio > 1e-8)
        if not bool(still.any()):
            break
        step = torch.linalg.lstsq(d, -r[:, :, None]).solution.squeeze(2).reshape(c.shape)
        c, blocked = _search_along(nets, c, step, energy, gradient)
        if bool(blocked.any()):  # on a kink one piece's step may not descend: follow the flow
            slid = _flow(nets, c, 3)[1]
            c = torch.where(blocked[:, None, None], slid, c)
    energy = 0.5 * nets.residual(c).square().sum(1)
    gradient = torch.einsum("bmn,bm->bn", nets.jacobian(c), nets.residual(c)).norm(dim=1)
    stuck = (energy > 1e-12) & (gradient <= 1e-6 * energy.sqrt())
    distance = (c - nets.forward()).flatten(1).norm(dim=1)
    arrived = energy <= 1e-16 * first.clamp_min(1)
    return Found(
        count, int(arrived.sum()), int(stuck.sum()), rises, high, low,
        float(distance[arrived].max()) if bool(arrived.any()) else float("nan"),
    )  # fmt: skip


def _search_along(
    nets: Networks, c: Tensor, step: Tensor, energy: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """Halve each network's step until its energy falls enough, and where it never did."""
    slope = (gradient * step.flatten(1)).sum(1)
    t = torch.ones_like(energy)
    best = c
    waiting = torch.ones_like(energy, dtype=torch.bool)
    for _ in range(20):
        trial = c + t[:, None, None] * step
        lower = 0.5 * nets.residual(trial).square().sum(1) <= energy + 1e-4 * t * slope
        best = torch.where((waiting & lower)[:, None, None], trial, best)
        waiting = waiting & ~lower
        if not bool(waiting.any()):
            break
        t = torch.where(waiting, t / 2, t)
    return best, waiting


def _flow(nets: Networks, c: Tensor, steps: int) -> tuple[int, Tensor]:
    """Explicit heat flow with a step below 0.2/‖D‖²; a rise at a tenth of the step counts too."""
    rises = 0
    for _ in range(steps):
        r, d = nets.residual(c), nets.jacobian(c)
        gradient = torch.einsum("bmn,bm->bn", d, r).reshape(c.shape)
        dt = 0.2 / torch.linalg.matrix_norm(d).square()[:, None, None]
        energy = 0.5 * r.square().sum(1)
        for _ in range(30):
            after = 0.5 * nets.residual(c - dt * gradient).square().sum(1)
            rose = after > energy * (1 + 1e-12)
            if not bool(rose.any()):
                break
            dt = torch.where(rose[:, None, None], dt / 2, dt)
        rises += int(rose.sum())
        c = c - dt * gradient
    return rises, c


def main() -> None:
    begin = time.process_time()
    totals: dict[str, float] = {}
    for seed in range(1000):
        nodes, width = 3 + seed % 5, 1 + seed % 3
        found = asdict(search(Family(nodes, width, seed), count=10))
        for key, value in found.items():
            if key.startswith("least"):
                totals[key] = min(totals.get(key, float("inf")), value)
            elif key.startswith("largest"):
                totals[key] = max(totals.get(key, 0.0), value)
            else:
                totals[key] = totals.get(key, 0) + value
    report = {
        "graphs": 1000,
        "networks": totals,
        "cpu_seconds": time.process_time() - begin,
        "environment": environment(),
    }
    text = as_json(report)
    write_text(RESULTS, text + "\n")
    print(text)


if __name__ == "__main__":
    main()
