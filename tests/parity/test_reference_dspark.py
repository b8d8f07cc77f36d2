"""The reference DSpark against the modules of the package that trains such drafters, where it is installed.

pip install --no-deps speculators==0.9.0
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from parity_cases import TINY
from random_dspark import write_dspark_speculators
from reference_dspark import DSpark
from trained_by_speculators import models

TAPS, MASK, SEED = [1, 3, 4], 7, 5
FORMS = {
    "anchor-first": {},
    "bonus anchor, reduced vocabulary": {"sample_from_anchor": False, "draft_vocab": 300},
    "confidence of the state alone": {"confidence_head_with_markov": False},
    "no heads": {"markov_rank": 0, "enable_confidence_head": False, "confidence_head_with_markov": False},
    # wide windows: speculators' ends at the same key for the whole block, llama.cpp's slides from slot to slot
    "sliding layers are causal": {
        "use_sliding_window": True, "sliding_window": 200, "layer_types": ["sliding_attention", "full_attention"],
    },
    "sliding layers that are not": {
        "use_sliding_window": True, "sliding_window": 200, "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window_non_causal": True,
    },
}  # fmt: skip


def package_model(checkpoint: Path, embeddings: torch.Tensor, head: torch.Tensor):
    """The package's own model with the weights of a checkpoint, and the target's where it has none."""
    reference = DSpark.load(checkpoint)
    config = models("dspark.config").DSparkSpeculatorConfig.from_pretrained(checkpoint)
    config.transformer_layer_config._attn_implementation = "eager"
    model = models("dspark.core").DSparkDraftModel(config).eval()
    weights = {"embed_tokens.weight": embeddings, "lm_head.weight": head} | reference.weights
    missing, unknown = model.load_state_dict(weights, strict=False)
    assert not unknown
    assert set(missing) <= {"verifier_norm.weight", "verifier_lm_head.weight"}, missing
    return model, reference


@pytest.mark.parametrize("name", FORMS)
def test_scores_and_confidences_of_a_block_are_those_of_the_package(name, target, tmp_path):
    pair = target("qwen3")
    checkpoint = write_dspark_speculators(tmp_path / "hf", TINY / "qwen3" / "target", SEED, TAPS, MASK, **FORMS[name])
    model, reference = package_model(checkpoint, pair.embeddings, pair.head)
    block, n = reference.block_size, 40
    tokens = torch.randint(8, 1000, (1, n + block + 4), generator=torch.Generator().manual_seed(SEED))
    features = torch.randn(1, tokens.shape[1], 3 * 256, generator=torch.Generator().manual_seed(SEED))
    here = torch.zeros_like(tokens)
    here[0, n] = 1  # the only place for an anchor
    with torch.inference_mode():
        states, logits, *_, chosen = model._backbone_forward(
            features, tokens, here, torch.zeros(1, tokens.shape[1], 256), torch.zeros_like(tokens), max_anchors=1
        )
        assert chosen[0] == n
        first = reference.first_slot
        ours = reference.states(reference.context(features[0, :n]), int(tokens[0, n]), pair.embeddings)
        got = reference.logits(ours, pair.head)
        anchor, draft = int(tokens[0, n]), tokens[0, n + 1 : n + 1 + block - first].tolist()
        before = tokens[0, n : n + block] if first == 0 else tokens[0, [n, *range(n, n + block - 1)]]
        want = logits[0]
        if model.markov_head is not None:
            want = want + model.markov_head.block_bias(prev_token_ids=before[None], hidden_states=states)[0]
        got = reference.scores(ours, got, anchor, draft)
        kept = slice(None) if model.d2t is None else model.d2t + torch.arange(len(model.d2t))
        torch.testing.assert_close(got[:, kept], want[first:], rtol=1e-4, atol=1e-4)
        confidences = reference.confidences(ours, anchor, draft)
        assert (confidences is None) == (model.confidence_head is None)
        if confidences is not None:
            rows = states[0]
            if model.config.confidence_head_with_markov:
                rows = torch.cat([rows, model.markov_head.prev_embeddings(before)], -1)
            want = torch.sigmoid(model.confidence_head(rows))[first:]
            torch.testing.assert_close(confidences, want, rtol=1e-4, atol=1e-5)
