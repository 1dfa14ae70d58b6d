"""Every pathology is injected into 50 random networks; 50 healthy ones must raise nothing."""

from collections.abc import Callable
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from torchsheaf.boundary import Problem, hold
from torchsheaf.diagnose import Familiarity, Finding, pathologies, spectra
from torchsheaf.diagnose.pathology import unstable_rate
from torchsheaf.diagnose.suspicion import suspicious_labels
from torchsheaf.sheaf import Sheaf, encode

CASES = 50
ARCHITECTURES = ((4, 16, 12, 3), (6, 12, 12, 12, 4), (3, 24, 2), (5, 10, 10, 10, 10, 10, 3))


@cache
def sheaf_of(widths: tuple[int, ...], smooth: bool) -> Sheaf:
    layers: list[nn.Module] = []
    for fan_in, width in pairwise(widths):
        layers += [nn.Linear(fan_in, width), nn.ReLU()]
    layers[-1:] = [nn.Softmax(1)] if smooth else []
    net = nn.Sequential(*layers).double()
    return encode(net, torch.zeros(2, widths[0], dtype=torch.float64))


def linears(sheaf: Sheaf) -> list[nn.Linear]:
    return [m for m in sheaf.network.model.modules() if isinstance(m, nn.Linear)]


@torch.no_grad()
def healthy(seed: int, smooth: bool = False) -> tuple[Sheaf, Tensor, Tensor, torch.Generator]:
    """A random network all of whose units fire on 3% of a large sample, or the next such one."""
    g = torch.Generator().manual_seed(seed)
    widths = ARCHITECTURES[seed % len(ARCHITECTURES)]
    sheaf = sheaf_of(widths, smooth)
    many = torch.randn(4000, widths[0], generator=g, dtype=torch.float64)
    while True:
        for layer in linears(sheaf):
            shape = layer.weight.shape
            drawn = torch.randn(shape, generator=g, dtype=torch.float64)
            layer.weight.copy_(drawn * (2 / shape[1]) ** 0.5)
            layer.bias.copy_(0.1 * torch.randn(shape[0], generator=g, dtype=torch.float64))
        at = sheaf.forward(many)
        gates = [at[e.name] for e in sheaf.edges.values() if str(e.kind) == "gate"]
        if all(bool(((a > 0).double().mean(0) >= 0.03).all()) for a in gates):
            break
    x = torch.randn(256, widths[0], generator=g, dtype=torch.float64)
    return sheaf, x, sheaf.forward(x)[sheaf.outputs[0]].argmax(1), g


def failing(problem: Problem, y: Tensor | None = None) -> set[str]:
    return {f.name.split(" from ")[0].split(" behind ")[0] for f in pathologies(problem, y)
            if not f.holds}  # fmt: skip


def kill(sheaf: Sheaf, g: torch.Generator) -> None:
    hidden = linears(sheaf)[:-1]
    layer = hidden[int(torch.randint(len(hidden), (1,), generator=g))]
    layer.bias[int(torch.randint(len(layer.bias), (1,), generator=g))] = -1e3


def scale(sheaf: Sheaf, factor: float) -> None:
    # The whole chain's gain is factor^2 in amplitude whatever the depth, the ends included.
    hidden = linears(sheaf)[1:]
    for layer in hidden:
        layer.weight *= factor ** (2 / len(hidden))


def fade(sheaf: Sheaf, g: torch.Generator) -> None:
    scale(sheaf, 1e-2)


def explode(sheaf: Sheaf, g: torch.Generator) -> None:
    scale(sheaf, 1e2)


def starve(sheaf: Sheaf, g: torch.Generator) -> None:
    first = linears(sheaf)[0]
    first.weight *= 1e-4


INJECTIONS: dict[str, tuple[Callable[[Sheaf, torch.Generator], None], str]] = {
    "dead units": (kill, "dead units"),
    "vanishing": (fade, "vanishing discord"),
    "exploding": (explode, "exploding discord"),
    "starved input": (starve, "vanishing signal"),
}


def report(capsys: pytest.CaptureFixture[str], name: str, misses: int, alarms: int) -> None:
    with capsys.disabled():
        print(
            f"\n{name}: missed {misses}/{CASES} injected ({misses / CASES:.0%}), "
            f"false alarms {alarms}/{CASES} healthy ({alarms / CASES:.0%})"
        )


@pytest.mark.parametrize("name", INJECTIONS)
@torch.no_grad()
def test_injected_faults_are_found_and_healthy_networks_are_left_alone(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    inject, wanted = INJECTIONS[name]
    misses, alarms = [], []
    for seed in range(CASES):
        sheaf, x, y, g = healthy(seed)
        if raised := failing(hold(sheaf, x), y):
            alarms.append((seed, raised))
        inject(sheaf, g)
        if wanted not in failing(hold(sheaf, x)):
            misses.append(seed)
    report(capsys, name, len(misses), len(alarms))
    assert not misses
    assert not alarms


@torch.no_grad()
def test_saturated_softmax_with_wrong_labels(capsys: pytest.CaptureFixture[str]) -> None:
    misses = alarms = 0
    for seed in range(CASES):
        sheaf, x, y, g = healthy(seed, smooth=True)
        classes = sheaf.vertices[sheaf.outputs[0]].dim
        wrong = (y + torch.randint(1, classes, y.shape, generator=g)) % classes
        noisy = torch.where(torch.rand(len(y), generator=g) < 0.15, wrong, y)
        alarms += "samples stuck" in failing(hold(sheaf, x), noisy)  # wrong, but not flat
        linears(sheaf)[-1].weight.mul_(100.0)
        misses += "samples stuck" not in failing(hold(sheaf, x), noisy)
    report(capsys, "saturated output", misses, alarms)
    assert misses == alarms == 0


@torch.no_grad()
def test_unstable_rate(capsys: pytest.CaptureFixture[str]) -> None:
    """The bound is the exact threshold: just below it the fastest mode shrinks, above it grows."""
    misses = alarms = 0
    for seed in range(CASES):
        sheaf, x, _, _ = healthy(seed)
        problem = hold(sheaf, x[:16])
        found = spectra(problem)
        worst = int(found.top.argmax())
        top = float(found.top[worst])
        at = problem.start("forward").samples(slice(worst, worst + 1))
        mode = found.largest.cochain().samples(slice(worst, worst + 1))
        laplacian = problem.samples(torch.tensor([worst])).laplacian(at)
        for factor in (0.99, 1.01):
            dt = factor * 2 / top
            grows = float((mode - dt * laplacian.apply(mode)).norm()) > float(mode.norm())
            told = not unstable_rate(dt, top).holds
            assert grows == told
            alarms += factor < 1 and told
            misses += factor > 1 and not told
    report(capsys, "unstable rate", misses, alarms)
    assert misses == alarms == 0


def trained(labels: Tensor, x: Tensor, steps: int) -> list[Tensor]:
    """CASES networks 2–16–3 side by side by Adam; labels and x are (CASES, n) and (CASES, n, 2)."""
    g = torch.Generator().manual_seed(0)
    shapes = ((16, 2), (16, 1), (3, 16), (3, 1))
    p = [torch.randn(CASES, *s, generator=g, dtype=torch.float64) * (s[1] != 1) for s in shapes]
    p = [w.requires_grad_() for w in p]
    step = torch.optim.Adam(p, lr=0.02)
    for _ in range(steps):
        step.zero_grad()
        z = p[2] @ (p[0] @ x.mT + p[1]).relu() + p[3]
        nn.functional.cross_entropy(z, labels, reduction="sum").div(labels.shape[1]).backward()
        step.step()
    return [w.detach() for w in p]


@pytest.mark.parametrize(("share", "most"), [(0.05, 4), (0.10, 0)])
def test_flipped_labels_and_foreign_inputs(
    share: float, most: int, capsys: pytest.CaptureFixture[str]
) -> None:
    g = torch.Generator().manual_seed(1)
    n = 240
    y = torch.randint(0, 3, (CASES, n), generator=g)
    angle = 2 * torch.pi * y / 3
    centres = 3 * torch.stack([angle.cos(), angle.sin()], 2).double()
    x = centres + 0.8 * torch.randn(CASES, n, 2, generator=g, dtype=torch.float64)
    chosen = torch.rand(CASES, n, generator=g).argsort(1) < round(share * n)
    flipped = torch.where(chosen, (y + 1) % 3, y)
    sheaf = sheaf_of((2, 16, 3), smooth=False)
    labels = f"mislabelled samples ({share:.0%} flipped)"
    counts = {labels: [0, 0], "foreign inputs": [0, 0]}
    for given, faulty in ((y, False), (flipped, True)):
        parameters = trained(given, x, 60)  # stopped before flips are memorised
        for case in range(CASES):
            with torch.no_grad():
                for i, layer in enumerate(linears(sheaf)):
                    layer.weight.copy_(parameters[2 * i][case])
                    layer.bias.copy_(parameters[2 * i + 1][case, :, 0])
            problem = hold(sheaf, x[case])
            found = suspicious_labels(problem, given[case])
            known = Familiarity.of(hold(sheaf, x[case, :160]))
            shown = x[case, 160:].clone()
            if faulty:  # a tenth of the inputs in other units
                shown[:8] = 10 * shown[:8]
            usual = known.finding(hold(sheaf, shown))
            tallies = zip(counts.values(), (found, usual), strict=True)
            for tally, finding in tallies:
                tally[not faulty] += finding.holds == faulty
    for name, (misses, alarms) in counts.items():
        report(capsys, name, misses, alarms)
    # of two in three labels that lose near the boundary, the flips may be the network's own errors
    assert counts[labels][0] <= most
    assert counts[labels][1] == 0
    assert counts["foreign inputs"] == [0, 0]


def test_a_finding_says_what_was_seen_and_what_to_do() -> None:
    sheaf, x, y, g = healthy(0)
    with torch.no_grad():
        kill(sheaf, g)
    found: Finding = pathologies(hold(sheaf, x), y)[0]
    assert found.value == 1
    assert found.bound == 0
    assert "[" in found.advice
    assert "bias" in found.advice


class Wired(nn.Module):
    """Its second layer is computed, and the first one's values go on in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).tanh()
        self.b(h)
        return self.c(h)


def test_a_layer_that_is_computed_and_not_used_is_named() -> None:
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    found = [f for f in pathologies(hold(encode(Wired(), x), x)) if not f.holds]
    assert [f.name for f in found] == ["steps without effect on any output"]
    assert found[0].advice.startswith("b: ")


def test_a_forward_pass_that_overflows_is_said_to_and_nothing_else() -> None:
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        net[0].weight.fill_(1e30)
        net[2].weight[1] = 1e30  # the other coordinates stay finite
    x[5:] = -x[5:].abs()  # all gates closed: these stay finite
    lost = int((~net(x).isfinite().all(1)).sum())
    (found,) = pathologies(hold(encode(net, x), x), x.argmax(1) % 3)
    assert 0 < lost < 6
    assert found.value == lost
    assert "first at 2:" in found.advice


def test_what_is_said_of_flat_units_is_true_of_each_gate() -> None:
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    high = nn.Sequential(nn.Linear(4, 3), nn.ReLU6())
    with torch.no_grad():
        high[0].bias[1] = 100.0
    found = pathologies(hold(encode(high, x), x))[0]
    assert found.value == 1
    assert "constant" in found.advice
    smooth = nn.Sequential(nn.Linear(4, 3), nn.GELU())
    assert "smooth units" in pathologies(hold(encode(smooth, x), x))[0].advice


SMOOTH = {
    nn.Tanh: (20.0, -20.0), nn.Sigmoid: (20.0, -20.0), nn.GELU: (-20.0,), nn.SiLU: (-20.0,),
    nn.ELU: (-20.0,), nn.Softplus: (-20.0,), nn.Mish: (-20.0,),
}  # fmt: skip


@pytest.mark.parametrize("gate", SMOOTH)
def test_smooth_units_that_are_flat_on_every_sample_are_dead(gate: type[nn.Module]) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(100, 6, generator=g)
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 8), gate(), nn.Linear(8, 8), gate(), nn.Linear(8, 3))
    problem = hold(encode(net, x), x)
    assert pathologies(problem)[0].value == 0
    for bias in SMOOTH[gate]:
        with torch.no_grad():
            net[2].bias[5] = bias
        found = pathologies(problem)[0]
        assert found.value == 1
        assert "3[5]." in found.advice
    with torch.no_grad():
        net[2].bias[5] = 0.0
        net[0].weight.mul_(5)  # far out on most samples, but not on all
    assert pathologies(problem)[0].value == 0
    if len(SMOOTH[gate]) == 1:
        with torch.no_grad():
            net[2].bias[5] = 20.0
        assert pathologies(problem)[0].value == 0


def test_channels_of_smooth_units_count_once_and_outputs_are_left_alone() -> None:
    x = torch.randn(50, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    layers = (nn.Conv2d(1, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(144, 2), nn.Sigmoid())
    net = nn.Sequential(*layers)
    with torch.no_grad():
        net[0].bias[2] = -20.0
        net[3].bias[0] = 50.0
    found = pathologies(hold(encode(net, x), x))[0]
    assert found.value == 1
    assert "1[2]." in found.advice


@pytest.mark.parametrize("gate", [nn.ReLU, nn.GELU])
def test_a_feature_that_is_flat_for_every_token_is_one_dead_unit(gate: type[nn.Module]) -> None:
    x = torch.randn(30, 5, 6, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 8), gate(), nn.Linear(8, 2))
    problem = hold(encode(net, x), x)
    assert pathologies(problem)[0].value == 0
    with torch.no_grad():
        net[0].bias[7] = -20.0
    found = pathologies(problem)[0]
    assert found.value == 1
    assert "1[7]." in found.advice
