"""The reference EAGLE3 drafter against the model that trains these checkpoints: speculators' Eagle3DraftModel.

It is driven through its own modules, one draft after the other with a cache, as its training forward does for all
positions at once. On random features, so no target is needed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import trained_by_speculators
from parity_cases import TINY
from random_drafters import write_eagle3
from reference_eagle3 import Eagle3
from safetensors.torch import load_file
from test_eagle3_drafts import IDS, LLAMA3, nested

SEED = 43
CONTEXTS, CHAIN = (1, 7, 30, 60), 6


@pytest.fixture(scope="module", autouse=True)
def speculators() -> Any:
    return trained_by_speculators.models("eagle3")


def trained_model(folder: Path, speculators: Any) -> Any:
    """The checkpoint of `folder` in speculators' own class, in float32 and with plain attention."""
    from speculators.config import SpeculatorsConfig, VerifierConfig
    from speculators.proposals.greedy import GreedyTokenProposalConfig
    from transformers import LlamaConfig

    config = json.loads((folder / "config.json").read_text())
    layer = LlamaConfig(**config["transformer_layer_config"])
    layer._attn_implementation = "eager"
    proposal = GreedyTokenProposalConfig(speculative_tokens=3)
    verifier = VerifierConfig(name_or_path=None, architectures=["Qwen3ForCausalLM"])
    own = {k: config[k] for k in ("draft_vocab_size", "norm_before_residual", "norm_before_fc", IDS) if k in config}
    wrapper = SpeculatorsConfig(
        algorithm="eagle3", proposal_methods=[proposal], default_proposal_method="greedy", verifier=verifier
    )
    model = speculators.Eagle3DraftModel(
        speculators.Eagle3SpeculatorConfig(transformer_layer_config=layer, speculators_config=wrapper, **own)
    )
    missing, unexpected = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    assert not unexpected and all(name.startswith("verifier_") for name in missing), (missing, unexpected)
    return model.float().eval()


def chain(model: Any, features: torch.Tensor, tokens: list[int], count: int) -> torch.Tensor:
    """Logits [count, Vd] of greedy drafts after features [n, 3 Ht] and tokens [n + 1]."""
    from transformers import DynamicCache

    cache = DynamicCache()

    def step(token_ids: torch.Tensor, state: torch.Tensor, first: int) -> torch.Tensor:
        x = torch.cat([model.embed_tokens(token_ids)[None], state], -1)
        n, before = x.shape[1], cache.get_seq_length()
        mask = torch.full((n, before + n), -torch.inf).triu(1 + before)[None, None]
        at = torch.arange(first, first + n)[None]
        for layer in model.layers:
            x = layer(
                x,
                attention_mask=mask,
                position_ids=at,
                past_key_values=cache,
                position_embeddings=model.rotary_emb(x, at),
            )
        return x[:, -1:]

    fused = features[None] if model.input_norm is None else model.input_norm(features[None])
    state = step(torch.tensor(tokens[1:]), model.fc(fused), 0)
    logits = []
    for i in range(count):
        logits.append(model.lm_head(model.norm(state))[0, 0])
        draft = logits[-1].argmax()
        state = step((draft + model.d2t[draft])[None], state, len(features) + i)
    return torch.stack(logits)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"norm_before_residual": True}, id="normed residual"),
        pytest.param({"norm_before_residual": False, "norm_before_fc": True}, id="raw residual, norm before fc"),
        pytest.param({"norm_before_residual": True, "rope_scaling": LLAMA3, "head_dim": 64}, id="llama3 rope"),
    ],
)
def test_reference_equals_the_model_that_is_trained(changes: dict, speculators: Any, tmp_path: Path) -> None:
    target = TINY / "qwen3" / "target"
    folder = write_eagle3(
        tmp_path / "hf", target, SEED, own_embeddings=True, full_vocabulary=False, **{IDS: [1, 3, 5], **changes}
    )
    nested(folder)
    reference = Eagle3.load(folder)
    theirs = trained_model(folder, speculators)
    generator = torch.Generator().manual_seed(SEED)
    ids = torch.arange(reference.config["draft_vocab_size"]) + reference.weights["d2t"]
    drafted: set[int] = set()
    for context in CONTEXTS:
        features = torch.randn(context, 3 * reference.config["hidden_size"], generator=generator)
        tokens = torch.randint(reference.config["vocab_size"], (context + 1,), generator=generator).tolist()
        with torch.inference_mode():
            want = chain(theirs, features, tokens, CHAIN)
            # no target is there to take embeddings and head from: the checkpoint brings both
            got = reference.draft(reference.context(features), tokens, CHAIN, torch.empty(0), torch.empty(0))
        torch.testing.assert_close(got[:, ids], want, atol=2e-4, rtol=2e-4)
        drafted |= set(got.argmax(-1).tolist())
    assert len(drafted) > len(CONTEXTS), "the drafts hardly differ, the comparison shows little"
