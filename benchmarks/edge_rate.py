"""Which multiple of 1/L is a sound rate for the edge rule with cross-entropy on small networks?

L counts the weight layers; SGD, batches of 64, PyTorch's own initial weights, five seeds; training
loss of the forward pass before training, after 2 and 20 epochs, and the highest of all seeds after
any of the first five epochs. Writes results/edge_rate.json.

    python -m benchmarks.edge_rate            # five minutes on one core
"""

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import torchsheaf as ts
from benchmarks.measurement import write_result
from torchsheaf.examples.shipped import digits

FACTORS = (0.5, 1.0, 2.0, 4.0, 8.0)
SEEDS, EPOCHS, BATCH = 5, 20, 64
NETWORKS = {
    "argmax, 4-8-3": (4, 8, 3),
    "argmax, 4-8-8-3": (4, 8, 8, 3),
    "argmax, 4-32-32-3": (4, 32, 32, 3),
    "argmax, 4-32-32-32-32-32-3": (4, 32, 32, 32, 32, 32, 3),
    "rings, 2-16-2": (2, 16, 2),
    "rings, 2-64-64-2": (2, 64, 64, 2),
    "digits, 64-32-10": (64, 32, 10),
    "digits, 64-128-128-10": (64, 128, 128, 10),
}


def network(widths: tuple[int, ...], seed: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [m for pair in pairwise(widths) for m in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def samples(task: str, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + seed)
    if task == "digits":
        x, y, _, _ = digits(generator)
        return x.float(), y
    x = torch.randn(200, 4 if task == "argmax" else 2, generator=generator)
    return x, x[:, :3].argmax(1) if task == "argmax" else (x.norm(dim=1) > 1.1).long()


def losses(widths: tuple[int, ...], data: tuple[Tensor, Tensor], rate: float, seed: int) -> object:
    """The forward loss before training and after every epoch; infinite from a failure on."""
    net, (x, y) = network(widths, seed), data
    found: list[float] = []

    def look(_: object = None) -> None:
        with torch.no_grad():
            found.append(float(cross_entropy(net(x), y)))

    look()
    ts.fit(
        ts.SheafTrainer(net, rule="edge"), data, torch.optim.SGD(net.parameters(), lr=rate),
        epochs=EPOCHS, batch_size=BATCH, callbacks=[look], progress=False, throw=False,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    return found + [math.inf] * (EPOCHS + 1 - len(found))


def rows() -> Iterator[dict[str, object]]:
    for name, widths in NETWORKS.items():
        task = name.split(",")[0]
        for factor in FACTORS:
            runs = [
                losses(widths, samples(task, seed), factor / (len(widths) - 1), seed)
                for seed in range(SEEDS)
            ]
            found = torch.tensor(runs, dtype=torch.float64)
            last = found[:, -1]
            yield {
                "network": name, "rate × L": factor, "before": float(found[:, 0].mean()),
                "highest in 5 epochs": float(found[:, 1:6].max()),
                "after 2": float(found[:, 2].mean()), "after 2, worst": float(found[:, 2].max()),
                "after 20": float(last.mean()), "after 20, worst": float(last.max()),
            }  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    found = []
    for row in rows():
        found.append(row)
        shown = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values())
        print(" | ".join(shown), flush=True)
    write_result("edge_rate", {"rows": found})


if __name__ == "__main__":
    main()
