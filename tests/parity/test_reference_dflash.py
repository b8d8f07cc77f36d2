"""The own reference drafters against those that their authors publish, without llama.cpp.

z-lab's package `dflash` for both versions, transformers for Muse-Glimmer, and the modules of speculators.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from parity_cases import TINY
from random_drafters import write_dflash, write_muse, write_speculators
from reference_dflash import DFlash
from reference_dflash2 import DFlash2
from reference_math import load_checkpoint
from trained_by_speculators import models
from transformers import Qwen3Config

# Two torch models of one formula in float32. Measured at most 3.9e-5 (peaked distributions, random features).
TOLERANCE = 8e-5
SEED = 40
TAPS, MASK, ANCHOR = [1, 3], 5, 7
FULL, SLIDING = "full_attention", "sliding_attention"
WINDOW = {"use_sliding_window": True, "sliding_window": 20}
MIX = {**WINDOW, "num_hidden_layers": 3, "layer_types": [SLIDING, FULL, SLIDING]}
SIZES = {"conv_kernel_size": 3, "conv_group_size": 32, "selector_rank": 8, "selector_top_k": 6}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
ZLAB = {
    "full": {},
    "causal": {"is_causal": True},
    "keys at the top": {"dflash_config": {"target_layer_ids": None, "mask_token_id": None}, "target_layer_ids": TAPS,
                        "mask_token_id": MASK},
    "sliding and full layers": MIX,
    "sliding and full layers, not causal": {**MIX, "is_causal": False},
    "sliding layers, window switched off": {**MIX, "use_sliding_window": False},
    "window shorter than the block": {**MIX, "sliding_window": 5},
    "window shorter than the block, not causal": {**MIX, "sliding_window": 5, "is_causal": False},
    "biases": {"attention_bias": True},
    "yarn": {"rope_scaling": YARN},
    "llama3 rope": {"rope_scaling": LLAMA3},
    "second version": {"dflash_config": SIZES, **MIX},
    "second version, scaled and capped": {
        "dflash_config": {**SIZES, "output_multiplier": 0.25, "final_logit_softcapping": 20.0}, "is_causal": False
    },
}  # fmt: skip


@pytest.fixture
def inputs():
    """features [n, K * Ht], embeddings and head [V, H] for a checkpoint's sizes."""

    def make(ours: DFlash, context: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        draw = torch.Generator().manual_seed(context)
        hidden, taps = ours.config["hidden_size"], len(ours.taps_of(0))
        embeddings, head = torch.randn(2, 1024, hidden, generator=draw)
        return torch.randn(context, taps * hidden, generator=draw), embeddings, head

    return make


def noise(ours: DFlash, embeddings: torch.Tensor) -> torch.Tensor:
    return embeddings[torch.tensor([ANCHOR] + [ours.mask_token] * (ours.block_size - 1))][None]


def positions(ours: DFlash, context: int) -> torch.Tensor:
    return torch.arange(context + ours.block_size)[None]


def gap_of(got: torch.Tensor, want: torch.Tensor) -> float:
    gap = (got.softmax(-1) - want.softmax(-1)).abs().max().item()
    print(f"max abs difference of a probability {gap:.2g}")
    return gap


def zlab_model(directory: Path, ours: DFlash) -> Any:
    package = pytest.importorskip("dflash.model", reason="pip install --no-deps dflash==0.1.0")
    config = Qwen3Config(**json.loads((directory / "config.json").read_text()))
    config._attn_implementation = "eager"
    second = isinstance(ours, DFlash2)
    drafter = (package.DFlash2DraftModel if second else package.DFlashDraftModel)(config).eval()
    names = {n: f"{n}.weight" for n in ours.weights if n.endswith("_codebook")}
    drafter.load_state_dict({names.get(n, n): w for n, w in ours.weights.items()})
    return drafter


@pytest.mark.parametrize("context", [1, 9, 300])
@pytest.mark.parametrize("pair", ["qwen3", "qwen35"])
def test_trained_drafters_equal_the_published_model(pair, context, inputs):
    directory = TINY / pair / "dflash"
    ours = DFlash.load(directory)
    compare_with_zlab(directory, ours, context, inputs)


@pytest.mark.parametrize("name", ZLAB)
def test_zlabs_forms_equal_the_published_model(name, inputs, tmp_path):
    directory = write_dflash(tmp_path / "hf", TINY / "qwen3" / "target", SEED, TAPS, MASK, **ZLAB[name])
    ours = (DFlash2 if "second" in name else DFlash).load(directory)
    for context in (3, 60):
        compare_with_zlab(directory, ours, context, inputs)


@torch.inference_mode()
def compare_with_zlab(directory, ours, context, inputs):
    features, embeddings, head = inputs(ours, context)
    theirs = zlab_model(directory, ours)
    at, block = positions(ours, context), noise(ours, embeddings)
    states = theirs(position_ids=at, noise_embedding=block, target_hidden=features[None])[:, 1:]
    linear = lambda hidden: hidden @ head.T  # noqa: E731 (what a module would be)
    own_states = ours.states(ours.context(features), ANCHOR, embeddings)
    own_logits = ours.logits(own_states, head)
    assert gap_of(own_logits[1:], theirs.compute_logits(states, linear)[0]) <= TOLERANCE
    if isinstance(ours, DFlash2):
        draft = theirs.propose(states, torch.tensor([ANCHOR]), linear, 0.0)[0][0].tolist()
        assert ours.scores(own_states, own_logits, ANCHOR, draft).argmax(-1).tolist() == draft


@pytest.mark.parametrize("types", [[SLIDING, SLIDING], [SLIDING, FULL]], ids=["sliding", "mixed"])
@torch.inference_mode()
def test_muse_equals_transformers(types, inputs, tmp_path):
    from transformers import MuseGlimmerAssistantConfig, MuseGlimmerAssistantModel
    from transformers.cache_utils import DFlashCache

    directory = write_muse(
        tmp_path / "hf", TINY / "qwen3" / "target", SEED, TAPS, MASK, sliding_window=20, layer_types=types
    )
    ours = DFlash.load(directory)
    config, weights = load_checkpoint(directory)
    # its windows hold the keys up to this distance, everybody else's those nearer than it
    theirs_config = MuseGlimmerAssistantConfig(**config | {"sliding_window": 19})
    theirs_config._attn_implementation = "eager"
    theirs = MuseGlimmerAssistantModel(theirs_config).eval()
    theirs.load_state_dict(weights)
    for context in (3, 60):
        features, embeddings, head = inputs(ours, context)
        cache = DFlashCache(config=theirs_config)
        cache.set_previous_accepted_tokens(context)
        states = theirs(
            noise_embeds=noise(ours, embeddings),
            context_hidden_states=features[None],
            position_ids=positions(ours, context),
            past_key_values=cache,
        ).last_hidden_state[0]
        got = ours.draft(ours.context(features), ANCHOR, embeddings, head)
        assert gap_of(got, states @ head.T) <= TOLERANCE


@pytest.mark.parametrize("kind", ["dflash", "dflash2"])
@torch.inference_mode()
def test_speculators_equal_its_modules(kind, inputs, tmp_path):
    """The modules by hand, with the attention mask of a trained block: its loss is all that speculators computes."""
    definitions = models(f"{kind}.model_definitions")
    layer_class = definitions.Qwen3DFlashDecoderLayer if kind == "dflash" else definitions.Qwen3DFlash2DecoderLayer
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

    sizes = {} if kind == "dflash" else SIZES
    directory = write_speculators(tmp_path / "hf", TINY / "qwen3" / "target", SEED, TAPS, MASK, **MIX, **sizes)
    ours = (DFlash if kind == "dflash" else DFlash2).load(directory)
    inner = json.loads((directory / "config.json").read_text())["transformer_layer_config"]
    config = Qwen3Config(**inner)
    config._attn_implementation = "eager"
    conv = {k: v for k, v in sizes.items() if k.startswith("conv")}
    for context in (3, 60):
        features, embeddings, head = inputs(ours, context)
        x, ctx = noise(ours, embeddings), ours.context(features)
        at = positions(ours, context)
        rope = Qwen3RotaryEmbedding(config)(x, at)
        for i in range(config.num_hidden_layers):
            layer = layer_class(config, i, **({"block_size": ours.block_size} | conv if conv else {})).eval()
            prefix = f"layers.{i}."
            layer.load_state_dict({n[len(prefix) :]: w for n, w in ours.weights.items() if n.startswith(prefix)})
            seen = ours.visible(i, at[0, context:], at[0])[None, None]
            mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
            x = layer(target_hidden=ctx[None], hidden_states=x, attention_mask=mask, position_embeddings=rope)
        states = ours.states(ctx, ANCHOR, embeddings)
        normed = torch.nn.functional.rms_norm(x, x.shape[-1:], ours.weights["norm.weight"], config.rms_norm_eps)[0]
        logits = normed @ head.T
        assert gap_of(ours.logits(states, head), logits) <= TOLERANCE
        if kind == "dflash2":
            selector = definitions.CandidateSelector(vocab_size=1024, hidden_size=256, rank=8, top_k=6)
            start = "candidate_selector."
            selector.load_state_dict({n[len(start) :]: w for n, w in ours.weights.items() if n.startswith(start)})
            draft, before = [], torch.tensor([ANCHOR])
            for slot in range(1, ours.block_size):
                ids, scores = selector.select(logits[slot : slot + 1], normed[slot : slot + 1], before)
                before = ids.gather(-1, scores.argmax(-1, keepdim=True))[:, 0]
                draft.append(int(before))
            assert ours.scores(states, logits, ANCHOR, draft).argmax(-1).tolist() == draft
