"""Real architectures at toy size, random weights: the models of transformers and some classics.

Every entry builds a model and example inputs.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Example = tuple[nn.Module, tuple[Tensor, ...]]


class Logits(nn.Module):
    """A transformers model that returns its first output only."""

    def __init__(self, model: nn.Module, keyword: str) -> None:
        super().__init__()
        self.model, self.keyword = model, keyword

    def forward(self, x: Tensor) -> Tensor:
        return self.model(**{self.keyword: x}, return_dict=False)[0]


def tokens(vocabulary: int, batch: int = 2, length: int = 5) -> Tensor:
    return torch.randint(vocabulary, (batch, length), generator=torch.Generator().manual_seed(1))


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def gpt2() -> Example:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=7, n_positions=8, n_embd=8, n_layer=2, n_head=2, use_cache=False)
    return Logits(GPT2LMHeadModel(config), "input_ids"), (tokens(7, length=4),)


def bert() -> Example:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=7, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=8,
    )  # fmt: skip
    return Logits(BertForSequenceClassification(config), "input_ids"), (tokens(7, length=4),)


def vit() -> Example:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=8, patch_size=4, num_channels=2, hidden_size=8, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=16, num_labels=3,
    )  # fmt: skip
    return Logits(ViTForImageClassification(config), "pixel_values"), (normal(2, 2, 8, 8),)


def resnet() -> Example:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        num_channels=2, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1],
        layer_type="basic", num_labels=3,
    )  # fmt: skip
    model = Logits(ResNetForImageClassification(config), "pixel_values")
    stir_statistics(model)
    return model, (normal(2, 2, 16, 16),)


def convnext() -> Example:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(
        num_channels=2, patch_size=2, num_stages=2, hidden_sizes=[4, 6], depths=[1, 1],
        num_labels=3, image_size=8,
    )  # fmt: skip
    return Logits(ConvNextForImageClassification(config), "pixel_values"), (normal(2, 2, 8, 8),)


def mamba() -> Example:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(
        vocab_size=7, hidden_size=6, state_size=3, num_hidden_layers=1, time_step_rank=2,
        use_cache=False, use_mambapy=False,
    )  # fmt: skip
    return Logits(MambaForCausalLM(config), "input_ids"), (tokens(7, length=4),)


def llama() -> Example:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=7, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=8, use_cache=False,
    )  # fmt: skip
    return Logits(LlamaForCausalLM(config), "input_ids"), (tokens(7, length=4),)


def stir_statistics(model: nn.Module) -> None:
    """Give every batch-norm running statistics other than 0 and 1."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.copy_(0.1 * normal(module.num_features))
            module.running_var.copy_(1 + 0.5 * normal(module.num_features).abs())


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 3, 3, padding=1)
        self.bottom = nn.Conv2d(3, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 3, 2, stride=2)
        self.merge = nn.Conv2d(6, 3, 3, padding=1)
        self.norm = nn.GroupNorm(3, 3)
        self.head = nn.Conv2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.down(x))
        b = F.silu(self.bottom(F.max_pool2d(a, 2)))
        c = torch.cat([self.up(b), a], 1)
        d = self.norm(F.relu(self.merge(c)))
        e = F.interpolate(b[:, :3], scale_factor=2, mode="bilinear", align_corners=False)
        return self.head(d + e)


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(2 + 2 * i, 2, 3, padding=1) for i in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(2 + 2 * i) for i in range(3))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return self.head(F.avg_pool2d(x, 2).mean((2, 3)))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, 4, 2, stride=2)
        self.norm1, self.norm2 = nn.LayerNorm(4), nn.LayerNorm(4)
        self.tokens = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4))
        self.channels = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norm2(x))
        return self.head(x.mean(1))


class Recurrent(nn.Module):
    """An unrolled gated recurrent network: tied weights in time."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(2, 4)
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 4)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
        return self.head(h)


class ElmanNet(nn.Module):
    """A recurrence written out, time first inside: the batch axis is the second."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.again = nn.Linear(2, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        u = self.enter(x.transpose(0, 1))
        h = torch.tanh(u[0])
        for t in range(1, 3):
            h = torch.tanh(u[t] + self.again(h))
        return h


class Tied(nn.Module):
    """A language model whose read-out is its embedding, with RMS-norm and gated units."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.gain = nn.Parameter(torch.ones(6))
        self.up, self.gate, self.down = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.gain
        x = x + self.down(self.up(y) * F.silu(self.gate(y)))
        return x @ self.embedding.weight.t()


class TwoTowers(nn.Module):
    """Two inputs, two outputs, an in-place operation, a buffer mask and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 4), nn.Linear(2, 4)
        self.head = nn.Bilinear(4, 4, 2)
        self.register_buffer("mask", torch.tensor([True, False, True, True]))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        a = F.relu(self.left(x), inplace=True)
        b = self.right(y).masked_fill(~self.mask, 0.5)
        b = torch.where(self.mask, b, a) / (1 + a.exp())
        b += torch.tensor([1.0, 2.0, 3.0, 4.0])
        p, q = torch.stack([a, b], 1).unbind(1)
        return self.head(p - q, q) * 2, torch.softmax(p * q, -1)


class Assigned(nn.Module):
    """Writes into slices of its own values, as hand-written recurrences do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        y = torch.zeros_like(h)
        y[:, 0] = h[:, 1]
        y[:, 1:].copy_(h[:, :2])
        y[:, 2].add_(1.0).mul_(2.0)
        return F.relu(y) + h


class Attention(nn.Module):
    """torch's own encoder layer, batch first, post-norm, with a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x, src_mask=self.mask)


def plain(build: Callable[[], nn.Module], *shape: int) -> Callable[[], Example]:
    def make() -> Example:
        model = build()
        stir_statistics(model)
        return model, (normal(*shape),)

    return make


ZOO: dict[str, Callable[[], Example]] = {
    "gpt2": gpt2,
    "bert": bert,
    "vit": vit,
    "resnet": resnet,
    "convnext": convnext,
    "mamba": mamba,
    "llama": llama,
    "unet": plain(UNet, 2, 1, 8, 8),
    "densenet": plain(DenseNet, 2, 2, 6, 6),
    "mixer": plain(Mixer, 3, 1, 4, 4),
    "gru": plain(Recurrent, 3, 3, 2),
    "elman": plain(ElmanNet, 3, 3, 2),
    "tied": lambda: (Tied(), (tokens(7),)),
    "two towers": lambda: (TwoTowers(), (normal(3, 3), normal(3, 2))),
    "assigned": plain(Assigned, 4, 3),
    "encoder layer": plain(Attention, 3, 4, 8),
}


def example(name: str, dtype: torch.dtype = torch.float64) -> Example:
    """A member of the zoo, the same weights at every call, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model, inputs = ZOO[name]()
    inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)
    return model.to(dtype).eval(), inputs
