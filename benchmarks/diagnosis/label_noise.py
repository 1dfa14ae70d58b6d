"""(a) Finding flipped labels, before and after the network has memorised them."""

from typing import Any

import numpy as np
import torch
from cleanlab.rank import get_label_quality_scores
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional

from benchmarks.diagnosis.tasks import Group, Task, load
from torchsheaf.boundary import hold
from torchsheaf.cochain import coordinates
from torchsheaf.diagnose import label_energy
from torchsheaf.sheaf import Sheaf

NOISE = (0.05, 0.1, 0.2)
FOLDS = 5
EARLY = 40
CHECKPOINTS = (10, 20, 40, 80, 160, 320, 640)


def flip(y: Tensor, share: float, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Labels with exactly `share` of them moved to another class, and which ones."""
    generator = torch.Generator().manual_seed(1000 + seed)
    n = len(y)
    chosen = torch.randperm(n, generator=generator)[: round(share * n)]
    shift = torch.randint(1, classes, (len(chosen),), generator=generator)
    noisy = y.clone()
    noisy[chosen] = (y[chosen] + shift) % classes
    return noisy, noisy != y


@torch.no_grad()
def scores(sheaf: Sheaf, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Every score of one network: larger means more suspect."""
    problem = hold(sheaf, x)
    at = problem.start("forward")
    z = at[problem.sheaf.outputs[0]]
    others = z.scatter(1, labels[:, None], -torch.inf).amax(1)
    found = label_energy(problem, labels)
    nearest = label_energy(problem, labels, rivals=1)
    p = z.softmax(1)
    slope = p - functional.one_hot(labels, z.shape[1])
    cob = problem.coboundary(at)
    name = problem.sheaf.outputs[0]
    start = cob.domain.zeros(len(x), z)
    swept = cob.solve_adjoint(type(start)({**start, name: slope}))
    squared = torch.zeros(len(x), dtype=x.dtype)
    for edge in problem.sheaf.edges.values():
        if edge.parameters:  # dΦ/dW = λ aᵀ, dΦ/db = λ
            a = coordinates(at[edge.parents[0]]).square().sum(1)
            squared += coordinates(swept[edge.name]).square().sum(1) * (a + 1)
    return {
        "loss": functional.cross_entropy(z, labels, reduction="none"),
        "margin": others - z.gather(1, labels[:, None])[:, 0],
        "gradient norm": squared.sqrt(),
        "discord": found.signed,
        "discord, runner-up": nearest.signed,
    }


def auc(flags: Tensor, score: Tensor) -> float:
    return float(roc_auc_score(flags.numpy(), score.double().numpy()))


def ranks(values: Tensor) -> Tensor:
    return values.argsort().argsort().double() / len(values)


def out_of_fold(task: Task, labels: Tensor, seed: int) -> dict[str, Tensor]:
    """Scores of networks that have not seen the sample they judge (5 folds, early stop)."""
    n = len(labels)
    generator = torch.Generator().manual_seed(seed)
    fold = torch.randperm(n, generator=generator) % FOLDS
    group = Group(task.widths, [100 * seed + k for k in range(FOLDS)])
    mask = torch.stack([fold != k for k in range(FOLDS)])
    group.train(task.x, labels.expand(FOLDS, n), EARLY, mask)
    found: dict[str, Tensor] = {}
    p = torch.zeros(n, task.classes, dtype=torch.float64)
    for k in range(FOLDS):
        net, held = group.sheaf(k), fold == k
        for name, value in scores(net, task.x[held], labels[held]).items():
            found.setdefault(name, torch.zeros(n, dtype=torch.float64))[held] = value.double()
        p[held] = net.forward(task.x[held])[net.outputs[0]].softmax(1)
    renamed = {f"{name}, out of fold": value for name, value in found.items()}
    for method in ("self_confidence", "normalized_margin", "confidence_weighted_entropy"):
        quality = get_label_quality_scores(labels.numpy(), p.numpy(), method=method)
        renamed[f"cleanlab {method}"] = -torch.from_numpy(np.asarray(quality))
    return renamed


def study(name: str, share: float, seed: int) -> dict[str, Any]:
    """All areas under the curve for one task, noise level and seed."""
    task = load(name)
    labels, flags = flip(task.y, share, task.classes, seed)
    group = Group(task.widths, [seed])
    seen = 0
    rows: dict[str, float] = {}
    sums: dict[str, Tensor] = {}
    accuracy = {}
    for steps in CHECKPOINTS:
        group.train(task.x, labels[None], steps - seen)
        seen = steps
        net = group.sheaf(0)
        found = scores(net, task.x, labels)
        for key, value in found.items():
            sums[key] = sums.get(key, 0) + value.double() / len(CHECKPOINTS)
            sums["ranks of " + key] = sums.get("ranks of " + key, 0) + ranks(value)
        if steps in (EARLY, CHECKPOINTS[-1]):
            when = "before" if steps == EARLY else "after"
            z = net.forward(task.x)[net.outputs[0]]
            accuracy[when] = float((z.argmax(1) == labels).double().mean())
            rows |= {f"{key}, {when}": auc(flags, v) for key, v in found.items()}
    rows |= {f"{key}, over training": auc(flags, v) for key, v in sums.items()}
    rows |= {key: auc(flags, v) for key, v in out_of_fold(task, labels, seed).items()}
    return {"task": name, "noise": share, "seed": seed, "auc": rows, "fitted": accuracy}
