"""Pins, two-way effects and per-edge discord of the induction model, against activation patching.

For each sequence the letter that the model predicts is exchanged with a rival by exchanging the
two in the whole sequence. *Patching* copies one vertex from the corrupted run into the clean one
and reads how far the logit difference moves: it is the forward pass of a hard pin. *Discord* holds
the two logits exchanged instead, on the clean input, relaxes everything between, and reads where
the disagreement is left.

    python -m reproduce.induction.measure      # writes results/induction.json and docs/images
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from scipy.stats import spearmanr
from torch import Tensor

import torchsheaf as ts
from benchmarks.measurement import as_json
from reproduce.induction.model import (
    HEADS,
    LENGTH,
    LETTERS,
    WIDTH,
    accuracy,
    sequences,
    trained,
)
from torchsheaf.file import write_text

ROOT = Path(__file__).parents[2]
RESULTS, IMAGES = ROOT / "reproduce" / "results" / "induction.json", ROOT / "docs" / "images"
SAMPLES, LAST = 24, LENGTH - 1
READ = {
    "letters": "letters", "add": "stream 0", "layers.0.queries": "L0 Q", "layers.0.keys": "L0 K",
    "layers.0.values": "L0 V", "layers.0.scaled_dot_product_attention": "L0 heads",
    "layers.0.write": "L0 out",
    "add_1": "stream 1", "layers.1.queries": "L1 Q", "layers.1.keys": "L1 K",
    "layers.1.values": "L1 V", "layers.1.scaled_dot_product_attention": "L1 heads",
    "layers.1.write": "L1 out",
    "add_2": "stream 2",
}  # fmt: skip
"""Vertices shown, by their short name (the norms are left out: they follow the stream)."""


def attention(model: torch.nn.Module, ids: Tensor, period: Tensor) -> dict[str, dict[str, float]]:
    """Mean weight that the last position gives to places named by the period, per head."""
    forward = ts.encode(model, ids).forward(ids)
    size, found = WIDTH // HEADS, {}
    for layer in range(2):
        q, k = forward[f"layers.{layer}.queries"], forward[f"layers.{layer}.keys"]
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            scores = (q[:, LAST, None, part] * k[..., part]).sum(-1) / math.sqrt(size)
            weight = torch.softmax(scores, -1)
            row = torch.arange(len(ids))
            one, two = LAST - period + 1, LAST - 2 * period + 1
            both = weight[row, one] + torch.where(two >= 0, weight[row, two.clamp_min(0)], 0.0)
            found[f"layer {layer} head {head}"] = {
                "after an earlier occurrence": float(both.mean()),
                "previous letter": float(weight[:, LAST - 1].mean()),
            }
    return found


def cases(model: torch.nn.Module) -> Iterator[tuple[Tensor, Tensor, int, int]]:
    """Clean ids, corrupted ids, the right letter and its rival; one sequence at a time."""
    ids, _ = sequences(4 * SAMPLES, torch.Generator().manual_seed(77))
    for row in ids[:SAMPLES]:
        right = int(row[LENGTH])
        seen = row[:LENGTH]
        rival = next(int(a) for a in seen if a not in (right, int(row[LAST])))
        swapped = torch.where(seen == right, rival, torch.where(seen == rival, right, seen))
        yield seen[None], swapped[None], right, rival


def patching(
    problem: ts.Problem, corrupted: ts.Cochain, right: int, rival: int
) -> dict[str, float]:
    """Share of the logit difference that each vertex alone carries over."""

    def difference(c: ts.Cochain) -> float:
        return float(c["readout"][0, LAST, right] - c["readout"][0, LAST, rival])

    clean, other = difference(problem.start("forward")), difference(corrupted)
    return {
        vertex: (
            clean - difference(problem.pin(ts.Pin(vertex, corrupted[vertex])).start("forward"))
        )
        / (clean - other)
        for vertex in READ
    }


def exchanged(problem: ts.Problem, right: int, rival: int) -> ts.Extension:
    """The equilibrium with the two logits of the last position held at each other's values."""
    logits = problem.start("forward")["readout"][0, LAST]
    where = [LAST * LETTERS + right, LAST * LETTERS + rival]
    value = torch.stack([logits[rival], logits[right]])
    pinned = problem.pin(ts.Pin("readout", value, where=where))
    return ts.harmonic_extension(pinned, tol=1e-4, max_passes=5000, throw=False)


def two_way(
    problem: ts.Problem, corrupted: ts.Cochain
) -> tuple[dict[str, Tensor], float, ts.Extension]:
    """Pin layer 1's heads at the last position to the corrupted run: where does it pull?"""
    size = WIDTH // HEADS
    mask = torch.zeros(
        problem.sheaf.vertices["layers.1.scaled_dot_product_attention"].shape, dtype=torch.bool
    )
    mask[:, LAST] = True
    value = corrupted["layers.1.scaled_dot_product_attention"][0][mask]
    assert value.numel() == HEADS * size
    pinned = problem.pin(ts.Pin("layers.1.scaled_dot_product_attention", value, where=mask))
    before = pinned.start("forward")
    relaxed = ts.harmonic_extension(pinned, tol=1e-4, max_passes=5000, throw=False)
    clean = problem.start("forward")
    change = {}
    for vertex in READ:
        move = relaxed.cochain[vertex] - clean[vertex]
        per_place = move.transpose(1, 2).flatten(2) if move.ndim == 4 else move
        change[vertex] = per_place[0].norm(dim=-1)
    return change, float(pinned.energy(before)[0]), relaxed


def study() -> dict[str, Any]:
    """Everything the page reports."""
    model = trained()
    ids, period = sequences(1000, torch.Generator().manual_seed(10**6))
    found: dict[str, Any] = {"accuracy": accuracy(model, ids, period)}
    found["attention"] = attention(model, ids[:200, :-1], period[:200])
    patched: list[dict[str, float]] = []
    discords: list[dict[str, float]] = []
    correlations, energies, maps = [], [], []
    stationarity: list[float] = []
    bent_stationarity: list[float] = []
    passes: dict[str, list[int]] = {"logits held": [], "heads pinned": []}
    sheaf = ts.encode(model, ids[:2, :-1])
    for seen, swapped, right, rival in cases(model):
        problem = ts.hold(sheaf, seen)
        corrupted = problem.sheaf.forward(swapped)
        patched.append(patching(problem, corrupted, right, rival))
        relaxed = exchanged(problem, right, rival)
        stationarity.append(float(relaxed.stationarity.max()))
        passes["logits held"].append(relaxed.passes)
        total = sum(float(r.square().sum()) for r in relaxed.residual.values())
        discords.append({v: float(relaxed.residual[v].square().sum()) / total for v in READ})
        pairs = [(abs(patched[-1][v]), discords[-1][v]) for v in READ]
        correlations.append(float(spearmanr(*zip(*pairs, strict=True)).statistic))
        change, before, bent = two_way(problem, corrupted)
        bent_stationarity.append(float(bent.stationarity.max()))
        passes["heads pinned"].append(bent.passes)
        maps.append(change)
        energies.append((before, float(bent.energy[0])))
    found["patching"] = {v: sum(p[v] for p in patched) / len(patched) for v in READ}
    found["discord_share"] = {v: sum(d[v] for d in discords) / len(discords) for v in READ}
    found["rank_correlation"] = correlations
    found["worst_stationarity"] = max(stationarity)
    found["head_pin_stationarity"] = bent_stationarity
    found["head_pin_energy_forward_and_relaxed"] = energies
    found["passes"] = passes
    found["first_sequence"] = next(cases(model))[0][0].tolist()
    found["pull"] = {v: maps[0][v].tolist() for v in READ}
    return found


def pictures(found: dict[str, Any]) -> None:
    """Two pictures of the page."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    names = list(READ)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True)
    for ax, key, title in (
        (axes[0], "patching", "patching: share of the logit difference"),
        (axes[1], "discord_share", "logits held exchanged: share of the discord"),
    ):
        ax.barh([READ[n] for n in names], [found[key][n] for n in names], color="#4c72b0")
        ax.set_title(title, fontsize=9)
        ax.invert_yaxis()
    axes[1].invert_yaxis()
    figure.tight_layout()
    figure.savefig(IMAGES / "induction_discord.png", dpi=110)
    plt.close(figure)
    upstream = names[: names.index("layers.1.scaled_dot_product_attention") + 1]
    picture = torch.tensor([found["pull"][n] for n in upstream])
    figure, ax = plt.subplots(figsize=(8, 3.4))
    image = ax.imshow(picture, aspect="auto", cmap="Blues")
    ax.set_yticks(range(len(upstream)), [READ[n] for n in upstream], fontsize=8)
    letters = [chr(ord("a") + i) for i in found["first_sequence"]]
    ax.set_xticks(range(LENGTH), letters)
    ax.set_title("pull on every position when the last position's heads are pinned", fontsize=9)
    figure.colorbar(image, label="|change|")
    figure.tight_layout()
    figure.savefig(IMAGES / "induction_pull.png", dpi=110)
    plt.close(figure)


def main() -> None:
    found = study()
    write_text(RESULTS, as_json(found) + "\n")
    pictures(found)
    shown = ("accuracy", "attention", "patching", "discord_share", "rank_correlation", "passes")
    print(as_json({k: found[k] for k in (*shown, "worst_stationarity")}))
    print(found["head_pin_energy_forward_and_relaxed"])


if __name__ == "__main__":
    main()
