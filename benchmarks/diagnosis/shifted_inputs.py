"""(c) Telling inputs like those of the training from shifted ones."""

from collections.abc import Callable
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from benchmarks.diagnosis.tasks import Group, Task, load
from torchsheaf.boundary import hold
from torchsheaf.cochain import coordinates
from torchsheaf.diagnose import label_energy
from torchsheaf.harmonic import spectrum
from torchsheaf.sheaf import Sheaf

STEPS = 150
NAMES = ("digits", "breast cancer", "wine", "five clusters", "moons")


def noisy(x: Tensor, g: torch.Generator) -> Tensor:
    return x + x.std(0).mean() * torch.randn(x.shape, generator=g, dtype=x.dtype)


def shuffled(x: Tensor, g: torch.Generator) -> Tensor:
    """Each feature drawn from another sample: right marginals, wrong together."""
    order = torch.rand(x.shape, generator=g).argsort(0)
    return x.gather(0, order)


def scaled(x: Tensor, g: torch.Generator) -> Tensor:
    return 2 * x


def masked(x: Tensor, g: torch.Generator) -> Tensor:
    return torch.where(torch.rand(x.shape, generator=g) < 0.5, x.mean(0), x)


def turned(x: Tensor, g: torch.Generator) -> Tensor:
    """Features in reverse order; for a picture, upside down."""
    return x.flip(1)


SHIFTS: tuple[Callable[[Tensor, torch.Generator], Tensor], ...] = (
    noisy, shuffled, scaled, masked, turned,
)  # fmt: skip


class Distance:
    """Mahalanobis distance to the nearest class mean, with one shared covariance."""

    def __init__(self, features: Tensor, labels: Tensor | None) -> None:
        groups = torch.zeros(len(features), dtype=torch.int64) if labels is None else labels
        self.means = torch.stack([features[groups == c].mean(0) for c in groups.unique()])
        centred = features - self.means[groups]
        covariance = centred.mT @ centred / len(features)
        ridge = 1e-6 * covariance.diagonal().mean() + 1e-12
        self.inverse = torch.linalg.inv(covariance + ridge * torch.eye(len(covariance)).double())

    def __call__(self, features: Tensor) -> Tensor:
        d = features[:, None] - self.means
        return torch.einsum("nci,ij,ncj->nc", d, self.inverse, d).amin(1)


@torch.no_grad()
def features(sheaf: Sheaf, x: Tensor) -> dict[str, Tensor]:
    problem = hold(sheaf, x)
    at = problem.start("forward")
    z = at[sheaf.outputs[0]]
    found = label_energy(problem, z.argmax(1))
    gates = [coordinates(at[e.name]) for e in sheaf.edges.values() if str(e.kind) == "gate"]
    return {
        "output": z,
        "last hidden": gates[-1],
        "hidden": torch.cat(gates, 1),
        "energy": found.signed,
        "profile": (found.discord.values + 1e-12).log(),
        "gap": spectrum(problem, vectors=False).values[:, 0].log(),
    }


def score(train: dict[str, Tensor], y: Tensor, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Larger means more foreign; everything is calibrated on the training inputs."""
    z = found["output"]
    p = z.softmax(1)
    middle = train["gap"].median()
    return {
        "max softmax": -p.amax(1),
        "max logit": -z.amax(1),
        "energy score": -z.logsumexp(1),
        "entropy": -(p * p.clamp_min(1e-300).log()).sum(1),
        "Mahalanobis, last hidden": Distance(train["last hidden"], y)(found["last hidden"]),
        "Mahalanobis, all hidden": Distance(train["hidden"], y)(found["hidden"]),
        "discord: energy to change the answer": found["energy"],
        "discord: profile's distance": Distance(train["profile"], None)(found["profile"]),
        "spectral gap's distance": (found["gap"] - middle).abs(),
    }


def study(name: str, seed: int) -> list[dict[str, Any]]:
    """Areas under the curve per shift and score."""
    task: Task = load(name)
    g = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(task.x), generator=g)
    cut = int(0.7 * len(order))
    kept, held = order[:cut], order[cut:]
    group = Group(task.widths, [seed])
    group.train(task.x[kept], task.y[kept][None], STEPS)
    sheaf = group.sheaf(0)
    train = features(sheaf, task.x[kept])
    usual = score(train, task.y[kept], features(sheaf, task.x[held]))
    rows = []
    for shift in SHIFTS:
        foreign = score(train, task.y[kept], features(sheaf, shift(task.x[held], g)))
        for method, values in foreign.items():
            both = torch.cat([usual[method], values]).double().numpy()
            area = float(roc_auc_score([0] * len(held) + [1] * len(held), both))
            rows.append(
                {"task": name, "shift": shift.__name__, "seed": seed, "method": method, "auc": area}
            )
    return rows
