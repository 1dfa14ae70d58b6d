"""The models on which predictions are checked: small, seeded, some trained here."""

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """x + inner(x)."""
        return x + self.inner(x)


class Attention(nn.Module):
    """Multi-head self-attention written out: every product is a call of its own."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.mix = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) → the same shape."""
        b, t, w = x.shape
        q, k, v = (
            f(x).view(b, t, self.heads, w // self.heads).transpose(1, 2)
            for f in (self.query, self.key, self.value)
        )
        scores = q @ k.transpose(-2, -1) / math.sqrt(w // self.heads)
        if self.causal:
            mask = torch.ones(t, t, dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(mask, -math.inf)
        weights = torch.softmax(scores, dim=-1)
        return self.mix((weights @ v).transpose(1, 2).reshape(b, t, w))


class Block(nn.Module):
    """A transformer block; `pre` puts the norms inside the residual branches."""

    def __init__(self, width: int, heads: int, pre: bool, causal: bool) -> None:
        super().__init__()
        self.pre = pre
        self.attention = Attention(width, heads, causal)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def feed(self, x: Tensor) -> Tensor:
        """The two-layer branch."""
        return self.down(nn.functional.gelu(self.up(x)))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) → the same shape."""
        if self.pre:
            x = x + self.attention(self.norm1(x))
            return x + self.feed(self.norm2(x))
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.feed(x))


class Transformer(nn.Module):
    """Token and position embeddings, blocks, a head: GPT-like with `pre` and `causal`."""

    def __init__(
        self, vocabulary: int, width: int, heads: int, depth: int, length: int, pre: bool = True
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads, pre, pre) for _ in range(depth)))
        self.norm = nn.LayerNorm(width) if pre else nn.Identity()
        self.head = nn.Linear(width, vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        """(batch, tokens) of integers → (batch, tokens, vocabulary)."""
        place = torch.arange(ids.shape[1], device=ids.device)
        x = self.tokens(ids) + self.positions(place)
        return self.head(self.norm(self.blocks(x)))


class SmallResNet(nn.Module):
    """Three residual convolution blocks with batch norm, mean-pooled, ten classes."""

    def __init__(self, width: int = 16, channels: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.Sequential(
            *(
                Residual(
                    nn.Sequential(
                        nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()
                    )
                )
                for _ in range(3)
            )
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) → (batch, 10)."""
        return self.head(self.blocks(torch.relu(self.stem(x))).mean(dim=(2, 3)))


def seeded(build: Any, seed: int) -> nn.Module:
    """Build a module with the global generator seeded, and put the generator back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build()
    return module.eval()


@functools.lru_cache(maxsize=1)
def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's 1,797 handwritten digits, 8×8 in [0, 1], in a fixed shuffled order."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(data.data, dtype=torch.float32) / 16
    return x[order], torch.tensor(data.target)[order]


def train_classifier(
    model: nn.Module, x: Tensor, y: Tensor, steps: int, batch: int = 128, lr: float = 3e-3
) -> nn.Module:
    """A few hundred Adam steps on cross entropy; deterministic order."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        pick = torch.randint(len(x), (batch,), generator=generator)
        loss = nn.functional.cross_entropy(model(x[pick]), y[pick])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def seed_mlp() -> tuple[nn.Module, Tensor]:
    """The README's network: 784-256-10 and a softmax, untrained."""
    net = seeded(
        lambda: nn.Sequential(
            nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10), nn.Softmax(dim=1)
        ),
        0,
    )
    return net, torch.randn(8, 784, generator=torch.Generator().manual_seed(0))


def digits_mlp(steps: int = 300) -> tuple[nn.Module, Tensor]:
    """64-64-32-10 on the digits, trained."""
    x, y = digits()
    net = seeded(
        lambda: nn.Sequential(
            nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)
        ),
        0,
    )
    return train_classifier(net, x[:1200], y[:1200], steps), x[1200:1264]


def digits_resnet(steps: int = 120) -> tuple[nn.Module, Tensor]:
    """Three residual convolution blocks on the digits, trained."""
    x, y = digits()
    images = x.view(-1, 1, 8, 8)
    net = train_classifier(seeded(SmallResNet, 0), images[:1200], y[:1200], steps)
    return net, images[1200:1216]


def block(pre: bool) -> tuple[nn.Module, Tensor]:
    """One transformer block, width 64, 4 heads, 16 tokens, untrained."""
    net = seeded(lambda: Block(64, 4, pre, False), 0)
    return net, torch.randn(2, 16, 64, generator=torch.Generator().manual_seed(0))


def sharp_block(pre: bool = False, factor: float = 8.0) -> tuple[nn.Module, Tensor]:
    """The same block with W_q and W_k scaled: attention so sharp that errors stop being small."""
    net, x = block(pre)
    with torch.no_grad():
        attention = net.get_submodule("attention")
        for part in ("query", "key"):
            attention.get_submodule(part).weight.mul_(factor)  # type: ignore[operator]
    return net, x


def toy_transformer() -> tuple[nn.Module, Tensor]:
    """Two post-LN layers, width 128, vocabulary 1,000, 32 tokens, untrained."""
    net = seeded(lambda: Transformer(1000, 128, 4, 2, 32, pre=False), 0)
    return net, torch.randint(1000, (2, 32), generator=torch.Generator().manual_seed(0))


def gpt_like() -> tuple[nn.Module, Tensor]:
    """Six pre-LN causal layers, width 256, vocabulary 2,000, 64 tokens: 5.8M parameters."""
    net = seeded(lambda: Transformer(2000, 256, 8, 6, 64), 0)
    return net, torch.randint(2000, (2, 64), generator=torch.Generator().manual_seed(0))


ZOO = {
    "seed-mlp": seed_mlp,
    "digits-mlp": digits_mlp,
    "digits-resnet": digits_resnet,
    "block-post-ln": functools.partial(block, False),
    "block-pre-ln": functools.partial(block, True),
    "toy-transformer": toy_transformer,
    "gpt-like": gpt_like,
}
