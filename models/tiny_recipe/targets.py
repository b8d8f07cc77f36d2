"""The two targets: an attention model and a hybrid of gated delta nets and attention, and how they are trained."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, Qwen3_5ForCausalLM, Qwen3_5TextConfig, Qwen3Config, Qwen3ForCausalLM

from .batches import document_ids, pack
from .corpus import END_OF_TEXT, IM_END
from .optim import Optimiser

CONTEXT = 4096
VOCABULARY = 1024
HEAD_DIM = 64  # a size that flash attention has kernels for on every backend


@dataclass(frozen=True)
class Family:
    """What differs between the pairs. Layer ids of `dflash_taps` name outputs, those of `eagle3_taps` inputs."""

    name: str
    pre_tokenizer: str
    tokens: int
    steps: int
    dflash_layers: int
    dflash_taps: tuple[int, ...]
    eagle3_taps: tuple[int, ...] = ()


QWEN3 = Family(
    "qwen3", "qwen2", tokens=VOCABULARY - 4, steps=600, dflash_layers=2, dflash_taps=(1, 3, 4), eagle3_taps=(1, 3, 5)
)
QWEN35 = Family("qwen35", "qwen35", tokens=VOCABULARY, steps=800, dflash_layers=2, dflash_taps=(1, 3, 6))
FAMILIES = {family.name: family for family in (QWEN3, QWEN35)}


def build_target(family: Family, tokenizer: Tokenizer) -> PreTrainedModel:
    """A fresh target. qwen3 has four ids more than its tokenizer has tokens, as the published models have padding."""
    common = {
        "vocab_size": VOCABULARY,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": HEAD_DIM,
        "intermediate_size": 256,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-6,
        "bos_token_id": None,
        "eos_token_id": tokenizer.token_to_id(IM_END),
        "pad_token_id": tokenizer.token_to_id(END_OF_TEXT),
        "dtype": "bfloat16",
    }
    if family is QWEN3:
        rope = {"rope_type": "default", "rope_theta": 10000.0}
        return Qwen3ForCausalLM(
            Qwen3Config(hidden_size=256, num_hidden_layers=6, rope_parameters=rope, tie_word_embeddings=True, **common)
        )
    rope = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [6, 5, 5],
        "mrope_interleaved": True,
    }
    return Qwen3_5ForCausalLM(
        Qwen3_5TextConfig(
            hidden_size=128,
            num_hidden_layers=8,  # full attention in layers 3 and 7
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=32,
            linear_value_head_dim=32,
            linear_conv_kernel_dim=4,
            rope_parameters=rope,
            tie_word_embeddings=False,
            **common,
        )
    )


def train_target(family: Family, tokenizer: Tokenizer, seed: int) -> PreTrainedModel:
    """Train a target on next tokens; returned in f32 with weights that bf16 holds exactly."""
    torch.manual_seed(seed)
    model = build_target(family, tokenizer).float().train()
    model.set_attn_implementation("eager")  # quicker than the fused kernel here
    documents = document_ids(tokenizer, seed)
    optimiser = Optimiser(model, family.steps)
    started = time.monotonic()
    for step in range(family.steps):
        batch = _batch(documents, step / family.steps)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(batch).logits
        loss = next_token_loss(logits, batch)
        optimiser.step(loss)
        if step % 20 == 0 or step == family.steps - 1:
            print(
                f"{family.name} target step {step} loss {loss.item():.3f} {time.monotonic() - started:.0f} s",
                flush=True,
            )
    return round_to_bf16(model).eval()


def _batch(documents: Iterator[list[int]], progress: float) -> Tensor:
    """2048 tokens; the last quarter of training uses longer rows, so that positions up to 1024 are seen."""
    return pack(documents, 2, 1024) if progress > 0.75 else pack(documents, 8, 256)


def next_token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Mean cross-entropy of [b, n, v] logits against the ids that follow."""
    return F.cross_entropy(logits[:, :-1].float().reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))


def round_to_bf16(module: nn.Module) -> nn.Module:
    """Round weights to what the checkpoint will hold, so that drafters learn from the target that is shipped."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.bfloat16())
    return module
