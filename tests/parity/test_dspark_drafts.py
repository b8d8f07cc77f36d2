"""DSpark of every producer: base logits, drafts along the Markov chain, and confidences."""

from __future__ import annotations

import json

import pytest
import torch
from draft_gap import LOGIT_TOLERANCE
from parity_cases import TINY, Case
from random_drafters import Draw
from random_dspark import write_deepspec, write_dspark_speculators, write_gemma4, write_specforge
from reference_dspark import DSpark, Gemma4DSpark

SEED = 41
BLOCKS = "≥ 40 blocks"
# ggml's gelu on the CPU looks its float16 argument up in a table
GELU_TOLERANCE = 1e-2
TAPS = [1, 3, 4]
FULL, SLIDING = "full_attention", "sliding_attention"
WINDOW = {"use_sliding_window": True, "sliding_window": 20}
YARN = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 128}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
NO_MARKOV = {"markov_rank": 0, "enable_confidence_head": False, "confidence_head_with_markov": False}


@pytest.fixture
def check(drafts, drafter, tmp_path):
    def run(write, pair="qwen3", reference=DSpark, logit=LOGIT_TOLERANCE, **changes):
        mask = drafter(Case(pair, "dflash")).mask_token
        checkpoint = write(tmp_path / "hf", TINY / pair / "target", SEED, TAPS, mask, **changes)
        gap = drafts(pair, checkpoint, "dflash", reference.load(checkpoint))
        print(gap)
        gap.check(logit)
        return gap

    return run


@pytest.fixture
def copies(target):
    """Embeddings and head of a target under a drafter's names, as DeepSpec ships them."""

    def of(pair):
        return {"embed_tokens.weight": target(pair).embeddings.clone(), "lm_head.weight": target(pair).head.clone()}

    return of


@pytest.mark.family("DSpark (DeepSpec)", converts="yes", runs="yes", parity=BLOCKS)
def test_deepspec_with_copies_of_an_untied_targets_weights(check, copies):
    assert check(write_deepspec, "qwen35", own=copies("qwen35")).confidences > 0


@pytest.mark.family("DSpark (DeepSpec), weights that are not the target's", converts="yes", runs="yes", parity=BLOCKS)
def test_deepspec_with_a_head_that_is_not_the_targets(check, copies):
    own = copies("qwen35") | {"lm_head.weight": Draw(SEED).matrix(*copies("qwen35")["lm_head.weight"].shape)}
    check(write_deepspec, "qwen35", own=own)


@pytest.mark.family("DFlash (DeepSpec: markov_rank 0)", converts="yes", runs="yes", parity=BLOCKS)
def test_deepspec_without_markov_head(check, copies):
    check(write_deepspec, "qwen35", own=copies("qwen35"), **NO_MARKOV)


ROPE = {"rope_type": "default", "rope_theta": 1e4}


@pytest.mark.family("DSpark (DeepSpec), Gemma 4 layers", converts="yes", runs="yes", parity=BLOCKS)
@pytest.mark.parametrize("changes", [{}, {"rope_parameters": ROPE}, NO_MARKOV], ids=["published", "rope", "no heads"])
def test_deepspec_over_gemma4_layers(check, copies, changes):
    check(write_gemma4, own=copies("qwen3"), reference=Gemma4DSpark, logit=GELU_TOLERANCE, **changes)


@pytest.mark.family("DSpark (DeepSpec), Gemma 4 layers and capped logits", converts="yes", runs="yes", parity=BLOCKS)
def test_logits_are_capped_before_the_markov_bias(check, copies):
    # small enough that the cap bends the logits of these weights
    check(
        write_gemma4,
        own=copies("qwen3"),
        reference=Gemma4DSpark,
        logit=GELU_TOLERANCE,
        final_logit_softcapping=4.0,
    )


@pytest.mark.family("DSpark (SpecForge), scaled and capped logits", converts="yes", runs="yes", parity=BLOCKS)
def test_logits_are_scaled_and_capped_before_the_markov_bias(check):
    check(write_specforge, output_multiplier=0.25, final_logit_softcapping=2.0)


@pytest.mark.family("DSpark (SpecForge)", converts="yes", runs="yes", parity=BLOCKS)
def test_specforge(check):
    check(write_specforge)


@pytest.mark.family("DSpark (SpecForge), dspark_config", converts="yes", runs="yes", parity=BLOCKS)
def test_specforge_with_all_keys_in_dspark_config(check):
    def write(folder, *args, **changes):
        file = write_specforge(folder, *args, **changes) / "config.json"
        config = json.loads(file.read_text())
        config["dspark_config"] = config.pop("dflash_config")
        file.write_text(json.dumps(config))
        return folder

    check(write)


@pytest.mark.family("DSpark (SpecForge), yarn", converts="yes", runs="yes", parity=BLOCKS)
def test_specforge_with_yarn_for_a_target_with_several_rope_axes(check):
    check(write_specforge, "qwen35", rope_scaling=YARN)


@pytest.mark.family("DSpark (SpecForge), llama3 rope", converts="yes", runs="yes", parity=BLOCKS)
def test_specforge_with_llama3_rope(check):
    check(write_specforge, rope_scaling=LLAMA3)


@pytest.mark.family("DSpark (speculators)", converts="yes", runs="yes", parity=BLOCKS)
@pytest.mark.parametrize("pair", ["qwen3", "qwen35"])
def test_speculators_with_reduced_vocabulary(check, pair):
    check(write_dspark_speculators, pair, draft_vocab=300)


@pytest.mark.family("DSpark (speculators), bonus anchor", converts="yes", runs="yes", parity=BLOCKS)
@pytest.mark.parametrize("changes", [{"sample_from_anchor": False}, {"sample_from_anchor": None, "draft_vocab": 300}])
def test_speculators_with_a_bonus_anchor(check, changes):
    check(write_dspark_speculators, **changes)


@pytest.mark.family("DSpark (speculators), sliding and full layers", converts="yes", runs="yes", parity=BLOCKS)
def test_speculators_with_sliding_and_full_layers(check):
    check(write_dspark_speculators, **WINDOW, layer_types=[SLIDING, FULL])


@pytest.mark.family("DSpark (speculators), confidence of the state alone", converts="yes", runs="yes", parity=BLOCKS)
@pytest.mark.parametrize("changes", [{"markov_rank": 0}, {"sample_from_anchor": False}], ids=str)
def test_confidence_without_markov_embedding(check, changes):
    assert check(write_dspark_speculators, **changes, confidence_head_with_markov=False).confidences > 0


@pytest.mark.family("DSpark (speculators), gelu", converts="yes", runs="yes", parity=BLOCKS)
def test_activation_of_a_gemma_target(check):
    check(write_dspark_speculators, hidden_act="gelu_pytorch_tanh", logit=GELU_TOLERANCE)


@pytest.mark.family("DSpark (speculators), attention biases", converts="yes", runs="yes", parity=BLOCKS)
def test_attention_biases(check):
    check(write_dspark_speculators, attention_bias=True)


def test_reference_that_forgets_the_token_before_is_told_apart(drafts, drafter, tmp_path):
    mask = drafter(Case("qwen3", "dflash")).mask_token
    checkpoint = write_specforge(tmp_path / "hf", TINY / "qwen3" / "target", SEED, TAPS, mask)
    model = DSpark.load(checkpoint)
    model.weights["markov_head.markov_w1.weight"] = torch.zeros_like(model.weights["markov_head.markov_w1.weight"])
    gap = drafts("qwen3", checkpoint, "dflash", model)
    assert gap.same_draft == 0
    assert gap.confidence > 0.01
