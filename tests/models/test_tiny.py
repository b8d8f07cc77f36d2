"""The committed tiny pairs are what other tests take them for: complete, published layouts, trained, held out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tiny_recipe import checkpoint, dflash, measure, prompts  # noqa: E402
from tiny_recipe.acceptance import dflash_draft, greedy  # noqa: E402
from tiny_recipe.corpus import held_out_documents, is_held_out, training_documents  # noqa: E402
from tiny_recipe.targets import FAMILIES  # noqa: E402
from train_tiny import SEEDS  # noqa: E402

PAIRS = tuple(FAMILIES)
LEAST = {"dflash": 4.0, "eagle3": 2.5}  # tokens per verify step
BYTES = 14_000_000


def config_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "config.json").read_text())


def shapes_of(directory: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(directory / "model.safetensors", "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module", params=PAIRS)
def pair(request: pytest.FixtureRequest, tiny: Path) -> Path:
    return tiny / request.param


@pytest.fixture(scope="module")
def tokenizer(pair: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(pair / "target")


def test_all_pairs_together_stay_small(tiny: Path) -> None:
    assert sum(path.stat().st_size for path in tiny.rglob("*") if path.is_file()) <= BYTES


def test_targets_have_the_published_classes_and_heads(tiny: Path) -> None:
    plain, hybrid = config_of(tiny / "qwen3/target"), config_of(tiny / "qwen35/target")
    assert plain["architectures"] == ["Qwen3ForCausalLM"]
    assert plain["tie_word_embeddings"] is True
    assert "lm_head.weight" not in shapes_of(tiny / "qwen3/target")
    assert hybrid["architectures"] == ["Qwen3_5ForCausalLM"]
    assert hybrid["tie_word_embeddings"] is False
    assert "lm_head.weight" in shapes_of(tiny / "qwen35/target")
    assert [i for i, kind in enumerate(hybrid["layer_types"]) if kind == "full_attention"] == [3, 7]
    assert sum(hybrid["rope_parameters"]["mrope_section"]) * 2 == hybrid["head_dim"] * 0.5
    for config in (plain, hybrid):
        assert config["num_attention_heads"] == 2 * config["num_key_value_heads"]


def test_dflash_tensors_are_those_of_the_flat_layout(pair: Path) -> None:
    target, config = config_of(pair / "target"), config_of(pair / "dflash")
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    taps = config["dflash_config"]["target_layer_ids"]
    expected: dict[str, tuple[int, ...]] = {
        "fc.weight": (hidden, len(taps) * hidden),
        "hidden_norm.weight": (hidden,),
        "norm.weight": (hidden,),
    }
    for i in range(config["num_hidden_layers"]):
        expected |= {
            f"layers.{i}.{name}.weight": shape
            for name, shape in {
                "input_layernorm": (hidden,),
                "post_attention_layernorm": (hidden,),
                "self_attn.q_proj": (queries, hidden),
                "self_attn.k_proj": (keys, hidden),
                "self_attn.v_proj": (keys, hidden),
                "self_attn.o_proj": (hidden, queries),
                "self_attn.q_norm": (head,),
                "self_attn.k_norm": (head,),
                "mlp.gate_proj": (inner, hidden),
                "mlp.up_proj": (inner, hidden),
                "mlp.down_proj": (hidden, inner),
            }.items()
        }
    assert shapes_of(pair / "dflash") == expected
    assert config["architectures"] == ["DFlashDraftModel"]
    assert config["block_size"] == 8
    assert config["hidden_size"] == target["hidden_size"]
    assert config["vocab_size"] == target["vocab_size"]
    assert config["num_target_layers"] == target["num_hidden_layers"]
    assert max(taps) < target["num_hidden_layers"] - 1, "the last layer's output is normed in transformers' states"


def test_eagle3_tensors_are_those_of_the_specforge_layout(tiny: Path) -> None:
    directory = tiny / "qwen3/eagle3"
    target, config = config_of(tiny / "qwen3/target"), config_of(directory)
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["draft_vocab_size"]
    queries, keys = (config[f"num_{kind}_heads"] * config["head_dim"] for kind in ("attention", "key_value"))
    assert shapes_of(directory) == {
        "fc.weight": (hidden, 3 * hidden),
        "midlayer.input_layernorm.weight": (hidden,),
        "midlayer.hidden_norm.weight": (hidden,),
        "midlayer.post_attention_layernorm.weight": (hidden,),
        "midlayer.self_attn.q_proj.weight": (queries, 2 * hidden),
        "midlayer.self_attn.k_proj.weight": (keys, 2 * hidden),
        "midlayer.self_attn.v_proj.weight": (keys, 2 * hidden),
        "midlayer.self_attn.o_proj.weight": (hidden, queries),
        "midlayer.mlp.gate_proj.weight": (inner, hidden),
        "midlayer.mlp.up_proj.weight": (inner, hidden),
        "midlayer.mlp.down_proj.weight": (hidden, inner),
        "norm.weight": (hidden,),
        "lm_head.weight": (vocabulary, hidden),
        "d2t": (vocabulary,),
        "t2d": (target["vocab_size"],),
    }
    assert config["architectures"] == ["LlamaForCausalLMEagle3"]
    assert vocabulary < target["vocab_size"]
    taps = config["eagle_aux_hidden_state_layer_ids"]
    assert len(taps) == 3
    assert max(taps) < target["num_hidden_layers"]
    tensors, _ = checkpoint.load_drafter(directory)
    ids = tensors["d2t"] + torch.arange(vocabulary)
    assert torch.equal(ids, tensors["t2d"].nonzero().flatten()), "d2t holds offsets, in the order of target ids"
    _, tokenizer = checkpoint.load_target(tiny / "qwen3/target")
    assert {tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")} <= set(ids.tolist())


def test_weights_are_16_bit_and_finite(pair: Path) -> None:
    for part in (path.parent for path in pair.glob("*/model.safetensors")):
        with safe_open(part / "model.safetensors", "pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                if tensor.is_floating_point():
                    assert tensor.dtype in (torch.bfloat16, torch.float16), f"{part.name} {name}"
                    assert tensor.isfinite().all(), f"{part.name} {name}"


@pytest.mark.parametrize(
    "text",
    [
        "".join(map(chr, range(0x100))),
        "e\u0301 \u00e9 \u1112\u1161\u11ab \u0915\u094d\u0937 \u0e01\u0e33",  # nothing may be normalised
        "\U0001f600 a\r\n\r\n  b\t\tc   \n   d 12345 it's I'LL\u00a0\u2003x",
        "def f(x):\n    return {'a': [1, 2.5e-3], \"b\": None}  # \u03bb\n",
    ],
)
def test_tokenizer_returns_any_text(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_auto_tokenizer_splits_as_the_file_says(tokenizer: Any, pair: Path) -> None:
    """transformers replaces the pre-tokenizer of some classes; then its ids are not those of llama.cpp."""
    _, raw = checkpoint.load_target(pair / "target")
    text = "Hello 2024! \u0915\u094d\u0937 it's <|im_start|>user\n  x\n\n\ny<|im_end|>"
    assert tokenizer.encode(text, add_special_tokens=False) == raw.encode(text).ids


def test_every_byte_has_a_token_and_special_tokens_are_last(tokenizer: Any, pair: Path) -> None:
    vocabulary = tokenizer.get_vocab()
    mask = config_of(pair / "dflash")["dflash_config"]["mask_token_id"]
    assert tokenizer.convert_ids_to_tokens(mask) == "<|mask|>"
    assert sum(len(token) == 1 for token in vocabulary) == 256
    special = [vocabulary[token] for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|mask|>")]
    assert special == list(range(len(vocabulary) - 4, len(vocabulary)))
    assert len(vocabulary) <= config_of(pair / "target")["vocab_size"]


def test_chat_template_writes_what_was_trained(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi!"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "What is 2 plus 2?"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    turns = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    assert text == turns + "<|im_start|>assistant\n"


def test_generation_ends_at_both_end_tokens(tokenizer: Any, pair: Path) -> None:
    ends = json.loads((pair / "target/generation_config.json").read_text())["eos_token_id"]
    assert tokenizer.convert_ids_to_tokens(ends) == ["<|im_end|>", "<|endoftext|>"]


def test_hash_rule_separates_training_from_held_out() -> None:
    training = list(islice(training_documents(seed=1), 3000))
    held_out = list(islice(held_out_documents(seed=1), 100))
    assert not any(is_held_out(prompt) for document in training for prompt in document.prompts)
    assert all(is_held_out(document.prompts[0]) for document in held_out)
    code = next(d for d in training if d.kind == "code" and len(d.turns) == 2)
    assert code.prompts[1] in code.turns[1][1], "the head of a function in an answer is a prompt of the plain texts"


def training_streams() -> Iterator[str]:
    for name, seed in SEEDS.items():
        if name != "prompts":
            yield "".join(prompts.training_text(seed, prompts.DOCUMENTS))


def test_prompts_were_never_seen_in_training(tiny: Path) -> None:
    entries = prompts.load_prompts(tiny / "prompts.json")
    assert len(entries) == prompts.PROMPTS
    assert len({prompts.prompt_text(entry) for entry in entries}) == prompts.PROMPTS
    assert all(is_held_out(prompts.prompt_text(entry)) for entry in entries)
    for text in training_streams():
        assert prompts.leaked(entries, text) == []


@torch.no_grad()
@pytest.mark.parametrize("name", PAIRS)
def test_drafters_notice_features_of_other_layers(tiny: Path, name: str) -> None:
    """A pair whose drafter does as well on the wrong features would hide every mistake with layer ids."""
    target, raw = checkpoint.load_target(tiny / name / "target")
    tensors, config = checkpoint.load_drafter(tiny / name / "dflash")
    shape = dflash.shape_from_config(config)
    rotated = (*shape.taps[1:], shape.taps[0])
    one_early = tuple(tap - 1 for tap in shape.taps)
    drafts = {}
    for taps in (shape.taps, rotated, one_early):
        drafter = dflash.DFlash(replace(shape, taps=taps)).eval()
        drafter.load_state_dict(tensors)
        drafts[str(taps)] = dflash_draft(target, drafter)
    right = dict.fromkeys(drafts, 0)
    for entry in prompts.load_prompts(tiny / "prompts.json")[2::6]:
        prompt = measure.prompt_ids(raw, entry)
        text = prompt + greedy(target, prompt, 64, target.generation_config.eos_token_id)
        states = target(torch.tensor([text]), output_hidden_states=True).hidden_states
        # guesses at every sixth place of the target's own text, as verification would find them
        for place in range(len(prompt) + 1, len(text), 6):
            known = tuple(state[:, : place - 1] for state in states)
            for name, draft in drafts.items():
                guesses = draft(torch.tensor(text[:place]), known)
                agree = (guess == token for guess, token in zip(guesses, text[place:], strict=False))
                right[name] += sum(takewhile(bool, agree))
    counts = list(right.values())
    assert max(counts[1:]) < 0.9 * counts[0], right


@pytest.mark.parametrize("name", PAIRS)
def test_drafters_are_worth_it_and_change_no_text(tiny: Path, name: str) -> None:
    """A few held-out prompts; models/README.md has the figures over all of them."""
    target, raw = checkpoint.load_target(tiny / name / "target")
    entries = prompts.load_prompts(tiny / "prompts.json")[::4]
    tallies, texts = measure.measure(target, raw, measure.load_drafts(target, tiny / name), entries)
    assert all(texts)
    for drafter, tally in tallies.items():
        assert tally.mean_length >= LEAST[drafter], f"{drafter}: {sorted(tally.lengths.items())}"
        assert len(tally.lengths) >= 5, f"{drafter} is never rejected at some places: {sorted(tally.lengths.items())}"
        differ = tally.slots_that_differ()
        off_diagonal = differ[~torch.eye(len(differ), dtype=torch.bool)]
        assert off_diagonal.min() > 0.3, f"two places of a {drafter} draft hold mostly the same token: {differ}"
