"""Decoders of transformers at toy size: causal masks of −∞ and of the lowest float32."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torchsheaf.precision import check, plan

SIZES = {
    "vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


class Decoder(nn.Module):
    """The first output of a language model without its cache."""

    def __init__(self, model: nn.Module, both: bool = False) -> None:
        super().__init__()
        self.model, self.both = model, both

    def forward(self, ids: Tensor) -> Tensor:
        more = {"decoder_input_ids": ids} if self.both else {}
        return self.model(input_ids=ids, use_cache=False, return_dict=False, **more)[0]


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return Decoder(LlamaForCausalLM(LlamaConfig(**SIZES)))


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=8, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2
    )
    return Decoder(GPT2LMHeadModel(config))


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    return Decoder(T5ForConditionalGeneration(config), both=True)


@pytest.mark.parametrize("build", [llama, gpt2, t5])
def test_a_causal_transformer_has_a_plan(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, ids = build().eval(), torch.arange(8).view(2, 4)
    found = plan(model, ids, 0.1, probes=2)
    assert found.measured.value <= 0.1
    assert set(found.assignment.values()) & {"bf16", "fp16"}
    assert any("PROVED" in line for line in check(found.certificate))
    with torch.no_grad():
        assert float((found.apply()(ids) - model(ids)).abs().max()) <= 0.11
