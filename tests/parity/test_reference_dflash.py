"""The own reference drafter against the one its authors publish (package `dflash`), without llama.cpp."""

from __future__ import annotations

import json

import pytest
import torch
from parity_cases import TINY
from reference_dflash import DFlash
from safetensors.torch import load_file
from transformers import Qwen3Config

model = pytest.importorskip("dflash.model", reason="pip install --no-deps dflash==0.1.0")

# Two torch models of one formula in float32, on random features: logits of about 16, so that rounding in the 7th digit
# moves a probability by some 1e-5. Measured: 8.4e-6 with torch 2.13, 5.8e-5 with torch 2.11 on another processor.
TOLERANCE = 3e-4


@pytest.fixture(params=["qwen3", "qwen35"])
def directory(request):
    return TINY / request.param / "dflash"


def published(directory, **changes):
    config = Qwen3Config(**(json.loads((directory / "config.json").read_text()) | changes))
    config._attn_implementation = "eager"
    drafter = model.DFlashDraftModel(config).eval()
    weights = {name: w.float() for name, w in load_file(directory / "model.safetensors").items()}
    drafter.load_state_dict(weights)
    return drafter


@pytest.mark.parametrize("causal", [None, True])
@pytest.mark.parametrize("context", [1, 9, 300])
def test_own_drafter_equals_the_published_one(directory, context, causal):
    changes = {} if causal is None else {"is_causal": causal}
    theirs, ours = published(directory, **changes), DFlash.load(directory)
    ours.config.update(changes)
    draw = torch.Generator().manual_seed(context)
    hidden, vocabulary, block = ours.config["hidden_size"], ours.config["vocab_size"], ours.block_size
    features = torch.randn(context, len(ours.config["dflash_config"]["target_layer_ids"]) * hidden, generator=draw)
    embeddings, head = torch.randn(2, vocabulary, hidden, generator=draw)
    anchor = 7
    with torch.inference_mode():
        noise = embeddings[torch.tensor([anchor] + [ours.mask_token] * (block - 1))]
        states = theirs(
            position_ids=torch.arange(context + block)[None], noise_embedding=noise[None], target_hidden=features[None]
        )
        want = (states[0] @ head.T).softmax(-1)
        got = ours.draft(ours.context(features), anchor, embeddings, head).softmax(-1)
    gap = (got - want).abs().max().item()
    summary = (
        f"{directory.parent.name} context {context}, is_causal {causal}: max abs difference of a probability {gap:.2g}"
    )
    print(summary)
    assert gap <= TOLERANCE, f"{summary}, allowed {TOLERANCE}"
