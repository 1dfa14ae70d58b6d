"""A two-layer attention-only transformer and the task it learns: continue a periodic sequence.

A sequence repeats a random word of 4 to 8 different letters. From the second period on, the next
letter follows from the earlier one: find the previous occurrence of this letter and copy what came
after it. Because the period varies, no fixed offset does it.

    python -m reproduce.induction.model        # train, about a minute on one core; writes weights
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WEIGHTS = Path(__file__).parent / "weights.safetensors"
LETTERS, LENGTH, WIDTH, HEADS = 12, 16, 32, 2


class Heads(nn.Module):
    """Causal attention of two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Linear(WIDTH, WIDTH, bias=False)
        self.keys = nn.Linear(WIDTH, WIDTH, bias=False)
        self.values = nn.Linear(WIDTH, WIDTH, bias=False)
        self.write = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (HEADS, -1)).transpose(1, 2)

        q, k, v = split(self.queries(x)), split(self.keys(x)), split(self.values(x))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.write(y.transpose(1, 2).flatten(2))


class Induction(nn.Module):
    """Embedding, two residual attention layers, read-out."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(LETTERS, WIDTH)
        self.places = nn.Parameter(0.3 * torch.randn(LENGTH, WIDTH))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.layers = nn.ModuleList(Heads() for _ in range(2))
        self.readout = nn.Linear(WIDTH, LETTERS, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.letters(ids) + self.places
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return self.readout(x)


def sequences(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(ids, period): `(count, LENGTH + 1)` letters and `(count,)` periods."""
    period = torch.randint(4, 9, (count, 1), generator=generator)
    words = torch.rand(count, LETTERS, generator=generator).argsort(1)
    return words.gather(1, torch.arange(LENGTH + 1) % period), period.squeeze(1)


def accuracy(model: nn.Module, ids: Tensor, period: Tensor) -> float:
    """Share of right continuations where the sequence has begun to repeat."""
    with torch.no_grad():
        right = model(ids[:, :-1]).argmax(-1) == ids[:, 1:]
    known = torch.arange(1, LENGTH + 1) >= period[:, None] + 1
    return float(right[known].double().mean())


def train(steps: int = 4000, batch: int = 64, seed: int = 0) -> Induction:
    """Adam on the next letter where it can be known."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = Induction()
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, steps)
    for step in range(steps):
        ids, period = sequences(batch, generator)
        known = torch.arange(1, LENGTH + 1) >= period[:, None] + 1
        loss = F.cross_entropy(model(ids[:, :-1])[known], ids[:, 1:][known])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 500 == 0:
            print(step, float(loss), file=sys.stderr, flush=True)
    return model


def trained() -> Induction:
    """The committed weights, in float64 and evaluation mode."""
    model = Induction()
    model.load_state_dict(load_file(WEIGHTS))
    return model.double().eval()


if __name__ == "__main__":
    found = train()
    save_file({n: t.contiguous() for n, t in found.state_dict().items()}, WEIGHTS)
    test = sequences(1000, torch.Generator().manual_seed(10**6))
    print(f"accuracy on 1000 new sequences: {accuracy(found, *test):.4f}")
