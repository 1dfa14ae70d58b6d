"""How long a step of the edge rule may be: K_W = Σ_e J_e J_eᵀ over the weight edges.

To first order a step of rate η in one group moves the outputs z by
−η Σ_e J_e (P_e ⊗ I) J_eᵀ (z − y) with 0 ≤ P_e = A Aᵀ(A Aᵀ + μ)⁻¹ ≤ I,
so a squared loss falls for η < 2/max λ_max(K_W).
"""

import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from tests.reference.networks import randn
from torchsheaf.train import EdgeRule, SheafTrainer, fit
from torchsheaf.train.validation import evaluate


class Block(nn.Module):
    """x + B ReLU(A x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.relu = nn.Linear(width, width), nn.ReLU()
        self.second = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.relu(self.first(x)))


def he_normal(net: nn.Sequential, seed: int) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)
    return net.double()


def residual(width: int, blocks: int, outputs: int, seed: int) -> nn.Sequential:
    inside = [Block(width) for _ in range(blocks)]
    return he_normal(nn.Sequential(nn.Linear(4, width), *inside, nn.Linear(width, outputs)), seed)


def plain(width: int, depth: int, outputs: int, seed: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(4, width), nn.ReLU()]
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return he_normal(nn.Sequential(*layers, nn.Linear(width, outputs)), seed)


def weight_layers(net: nn.Module) -> list[nn.Linear]:
    return [m for m in net.modules() if isinstance(m, nn.Linear)]


def gram(net: nn.Module, x: Tensor) -> Tensor:
    """K_W per sample, (batch, outputs, outputs), by autograd to the value of every weight layer."""
    values: list[Tensor] = []
    hooks = [
        m.register_forward_hook(lambda module, args, out: values.append(out))
        for m in weight_layers(net)
    ]
    z = net(x)
    for hook in hooks:
        hook.remove()
    rows = [
        torch.autograd.grad(z[:, k].sum(), values, retain_graph=True) for k in range(z.shape[1])
    ]
    jacobians = [torch.stack(one, 1) for one in zip(*rows, strict=True)]
    return torch.stack([j @ j.mT for j in jacobians]).sum(0)


def losses(net: nn.Module, x: Tensor, y: Tensor, rate: float, steps: int) -> list[float]:
    net = copy.deepcopy(net)
    trainer = SheafTrainer(net, loss="l2", rule=EdgeRule(group=None))
    optimiser = torch.optim.SGD(net.parameters(), lr=rate)
    found = []
    for _ in range(steps):
        found.append(float(trainer.local_gradients(x, y)))
        optimiser.step()
    return found


@pytest.mark.parametrize("make", [plain, residual])
def test_with_no_more_samples_than_inputs_the_output_moves_by_the_gram_matrix(make: object) -> None:
    """P_e = I, so dz/dη = −K_W (z − y), sample by sample."""
    net = make(12, 2, 3, 1)  # type: ignore[operator]
    x, y = randn(2, 4, 4), randn(3, 4, 3)
    z = net(x).detach()
    wanted = -(gram(net, x) @ (z - y)[..., None])[..., 0]
    SheafTrainer(net, loss="l2", rule=EdgeRule(damping=1e-12)).local_gradients(x, y)
    rate = 1e-6
    moved = []
    for sign in (1, -1):
        probe = copy.deepcopy(net)
        with torch.no_grad():
            for p, q in zip(probe.parameters(), net.parameters(), strict=True):
                p.sub_(q.grad, alpha=sign * rate)
            moved.append(probe(x))
    torch.testing.assert_close((moved[0] - moved[1]) / (2 * rate), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_a_residual_net_wants_a_far_smaller_rate_than_one_over_its_layers(seed: int) -> None:
    """Docs: at 1/L the loss of six blocks rises at once, at 1/λ_max(K_W) it falls in every step."""
    x = randn(10 + seed, 64, 4)
    y = torch.sin(x.sum(1, keepdim=True))
    net = residual(32, 6, 1, seed)
    top = float(torch.linalg.eigvalsh(gram(net, x).detach()).max())
    layers = len(weight_layers(net))
    assert top > 100 * layers
    first, second = losses(net, x, y, 1 / layers, 2)
    assert second > 10 * first
    fall = losses(net, x, y, 1 / top, 20)
    assert all(b < a for a, b in zip(fall, fall[1:], strict=False))


@pytest.mark.parametrize("seed", range(3))
def test_a_plain_net_is_near_one_over_its_layers(seed: int) -> None:
    x = randn(10 + seed, 64, 4)
    y = torch.sin(x.sum(1, keepdim=True))
    net = plain(32, 2, 1, seed)
    layers = len(weight_layers(net))
    top = float(torch.linalg.eigvalsh(gram(net, x).detach()).max())
    assert 0.5 * layers < top < 3 * layers
    fall = losses(net, x, y, 1 / layers, 20)
    assert all(b < a for a, b in zip(fall, fall[1:], strict=False))


@pytest.mark.parametrize("widths", [[4, 8, 3], [4, 32, 32, 3]])
@pytest.mark.parametrize("seed", range(3))
def test_cross_entropy_falls_at_one_over_the_layers_and_not_at_eight(
    widths: list[int], seed: int
) -> None:
    """Docs: with few inputs 1/L is sound in every epoch, and 8/L leaps above the untrained loss."""
    x = randn(30 + seed, 200, 4)
    y, highest = x[:, :3].argmax(1), {}
    for factor in (1, 8):
        with torch.random.fork_rng():  # the initial weights of torch, as in the benchmark
            torch.manual_seed(seed)
            layers = [m for pair in pairwise(widths) for m in (nn.Linear(*pair), nn.ReLU())]
        net = nn.Sequential(*layers[:-1]).double()
        trainer = SheafTrainer(net, rule="edge")
        optimiser = torch.optim.SGD(net.parameters(), lr=factor / len(weight_layers(net)))
        before = evaluate(trainer, x, y)["loss"]
        found: list[float] = []

        def look(_: object, trainer: SheafTrainer = trainer, found: list[float] = found) -> None:
            found.append(evaluate(trainer, x, y)["loss"])

        fit(trainer, (x, y), optimiser, epochs=5, batch_size=64, callbacks=[look], progress=False)
        highest[factor] = max(found) / before
    assert highest[1] < 1 < highest[8]
