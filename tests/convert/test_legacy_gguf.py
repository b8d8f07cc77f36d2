"""Drafters that people have as GGUF: upgraded, they equal the file made from the checkpoint; each change is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dflash_convert.write
import gguf
import pytest
from checkpoints import MASK, dflash_config, dflash_tensors, eagle3_config, eagle3_tensors, make_target, save
from dflash_convert.cli import main
from dflash_convert.conversion import LoadedTarget, convert
from dflash_convert.inspection import inspect
from dflash_tools.errors import UserError
from dspark_checkpoints import RANK, dspark_tensors, specforge
from gguf import GGMLQuantizationType as T
from old_gguf import BUUN, LUCEBOX, MIGRATED, rewrite, tokenizer_of, write_old
from test_oracle import QWEN35, contents

IDS = [0, 2, 5]
SLIDING = {
    "layer_types": ["sliding_attention", "full_attention"],
    "use_sliding_window": True,
    "sliding_window": 64,
    "max_window_layers": 2,
}
OLD = {"dflash.block_size": 8, "dflash.mask_token_id": MASK, "dflash.target_layer_ids": IDS}
WINDOW = {"attention.sliding_window": 64, "attention.sliding_window_pattern": [True, False]}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_target(tmp_path_factory.mktemp("target"), rope_parameters={"rope_type": "default", "rope_theta": 1e7})


@pytest.fixture
def direct(tmp_path: Path, target: Path) -> Any:
    """`direct(**config)`: checkpoint, its tensors, and the file made from it."""

    def make(on: Path = target, outtype: str = "bf16", **config: Any) -> tuple[dict[str, Any], Any, Path]:
        full = dflash_config(rope_theta=1e7, **config)
        tensors = dflash_tensors(full)
        checkpoint = save(tmp_path / "checkpoint", full, tensors)
        made = tmp_path / "direct.gguf"
        convert(checkpoint, on, made, outtype)
        return full, tensors, made

    return make


def upgraded(old: Path, target: Path, **options: Any) -> tuple[dict[str, Any], str, list[str]]:
    """What the upgraded file holds, what was said to be changed, and the warnings."""
    drafter, out, _ = convert(old, target, old.with_name("new.gguf"), **options)
    assert out == old.with_name("new.gguf"), drafter.notes
    return contents(out), "\n".join(drafter.notes), drafter.warnings


def same(found: dict[str, Any], made: Path) -> None:
    """Key for key and tensor for tensor, `general.*` aside: those are the old file's own."""
    a, b = ({k: v for k, v in c.items() if not k.startswith("general.")} for c in (found, contents(made)))
    assert a.keys() == b.keys()
    assert not {k for k in a if a[k] != b[k]}


def test_buuns_and_beellamas_file_equals_the_one_made_from_the_checkpoint(tmp_path, direct, target) -> None:
    config, tensors, made = direct(**SLIDING)
    keys = {**OLD, **WINDOW, "attention.causal": False, "rope.dimension_count": 32, "dflash.n_target_features": 192}
    old = write_old(tmp_path / "old.gguf", "dflash-draft", config, tensors, names=BUUN, keys=keys,
                    tokenizer=tokenizer_of(made))  # fmt: skip
    found, said, _ = upgraded(old, target)
    same(found, made)
    assert found["general.name"][1] == "An Old Drafter"
    for part in (
        "general.architecture: dflash-draft -> dflash",
        "dflash_fc.weight -> fc.weight",
        "blk.*.post_attention_norm.weight -> blk.*.ffn_norm.weight",
        "outputs [0, 2, 5] -> inputs [1, 3, 6]",
        f"mask token {MASK}",
        "causality inside a block: sliding layers causal",
    ):
        assert part in said
    assert "rope base" not in said and "tokenizer" not in said.replace("tokenizer.ggml.mask_token_id", "")


def test_luceboxs_file_equals_the_one_made_from_the_checkpoint(tmp_path, direct, target) -> None:
    config, tensors, made = direct()
    keys = {**OLD, "vocab_size": 320, "dflash.n_target_layers": 3}
    wrong = {**config, "rope_theta": 1e6}
    old = write_old(tmp_path / "old.gguf", "qwen35-dflash-draft", wrong, tensors, names=LUCEBOX, keys=keys)
    found, said, warnings = upgraded(old, target)
    same(found, made)
    assert "rope base: 1e+06 -> 1e+07, the target's" in said
    assert "tokenizer: taken from the target, the file has none" in said
    assert "--sliding-window 2048" in warnings[0]


def test_luceboxs_dspark_file_equals_the_one_made_from_the_checkpoint(tmp_path, target) -> None:
    config = specforge(rope_theta=1e7)
    tensors, made = dspark_tensors(config), tmp_path / "direct.gguf"
    convert(save(tmp_path / "checkpoint", config, tensors), target, made, "bf16")
    keys = {**OLD, "dflash.block_size": 7, "dflash.dspark.enabled": 1, "dflash.dspark.markov_rank": RANK,
            "dflash.dspark.vocab_size": 320, "dflash.dspark.confidence_dim": 64 + RANK}  # fmt: skip
    old = write_old(tmp_path / "old.gguf", "dflash-draft", config, tensors, names=LUCEBOX, keys=keys)
    found, said, _ = upgraded(old, target)
    same(found, made)
    assert "dflash.dspark.markov.w1 -> markov_w1.weight" in said and "sample_from_anchor" in said


@pytest.mark.family("GGUF gemma4-dflash-draft (lucebox)", converts="yes")
def test_luceboxs_gemma_file_gets_its_window_and_soft_cap(tmp_path, direct, target) -> None:
    config, tensors, made = direct(**SLIDING, final_logit_softcapping=30.0)
    keys = {**OLD, "dflash.sliding_window": 64, "dflash.logit_softcap": 30.0, "dflash.target_hidden": 64}
    old = write_old(tmp_path / "old.gguf", "gemma4-dflash-draft", config, tensors, names=LUCEBOX, keys=keys)
    found, said, _ = upgraded(old, target)
    same(found, made)
    assert "window of 64: the file does not say of which layers; of all but the last" in said
    assert "dflash.logit_softcap -> final_logit_softcapping" in said


@pytest.mark.parametrize(
    "arch",
    [
        pytest.param(arch, marks=pytest.mark.family(f"GGUF {arch} ({by})", upstream="unknown architecture"))
        for arch, by in (
            ("dflash-draft", "buun, BeeLlama"),
            ("qwen35-dflash-draft", "lucebox"),
            ("gemma4-dflash-draft", "lucebox"),
        )
    ],
)
def test_upstream_does_not_know_the_architecture(arch: str, llama_cpp: Path) -> None:
    known = (llama_cpp / "src" / "llama-arch.cpp").read_text(encoding="utf-8")
    assert '"dflash"' in known and f'"{arch}"' not in known


@pytest.mark.family("GGUF dflash, ids left as outputs (BeeLlama's migration)", converts="yes")
def test_ids_that_a_migration_left_as_outputs_are_shifted(tmp_path, direct, target) -> None:
    config, tensors, made = direct(**SLIDING)
    keys = {**WINDOW, "target_layers": IDS, "block_size": 8, "n_target_features": 192, "attention.causal": False,
            "rope.dimension_count": 32}  # fmt: skip

    def tokenizer(writer: gguf.GGUFWriter) -> None:
        tokenizer_of(made)(writer)
        writer.add_uint32("tokenizer.ggml.mask_token_id", MASK)

    old = write_old(tmp_path / "old.gguf", "dflash", config, tensors, names=MIGRATED, keys=keys, tokenizer=tokenizer)
    found, said, _ = upgraded(old, target)
    same(found, made)
    assert "outputs [0, 2, 5] -> inputs [1, 3, 6] (target_layers), which the migration script left" in said


def test_mask_token_under_an_old_key_alone_moves_nothing_else(tmp_path, direct, target) -> None:
    _, _, made = direct(is_causal=False, input_embedding_scale=2.0)
    drop = ("tokenizer.ggml.mask_token_id",)
    refused(rewrite(made, tmp_path / "none.gguf", drop=drop), target, "tokenizer.ggml.mask_token_id is missing")
    old = rewrite(made, tmp_path / "old.gguf", drop=drop, keys={"dflash.mask_token_id": MASK})
    found, said, _ = upgraded(old, target)
    same(found, made)
    assert f"mask token {MASK}: dflash.mask_token_id" in said and "outputs" not in said


def test_file_with_a_tokenizer_of_another_model_is_warned_about(tmp_path, direct, target) -> None:
    _, _, made = direct()
    assert not convert(rewrite(made, tmp_path / "a.gguf"), target)[0].warnings
    tokens = gguf.GGUFReader(made).fields["tokenizer.ggml.tokens"].contents()
    padded = [*tokens[:-9], *(f"[PAD{i}]" for i in range(9))]
    few = rewrite(made, tmp_path / "few.gguf", keys={"tokenizer.ggml.tokens": padded})
    other = rewrite(made, tmp_path / "other.gguf", keys={"tokenizer.ggml.tokens": tokens[::-1]})
    assert not upgraded(few, target)[2]
    (warning,) = upgraded(other, target)[2]
    assert "% of its tokens are others" in warning and "trained for?" in warning


def test_quantised_tensors_are_copied_byte_for_byte(tmp_path, direct, target, monkeypatch) -> None:
    monkeypatch.setattr(dflash_convert.write, "COPY_BYTES", 1000)  # so that a tensor takes several steps
    config, tensors, made = direct()
    old = write_old(tmp_path / "old.gguf", "dflash-draft", config, tensors, names=BUUN, keys=OLD, matrices=T.Q4_0)
    found, _, _ = upgraded(old, target)
    before = contents(old)
    assert found["fc.weight"] == before["dflash_fc.weight"] and found["fc.weight"][0] == "Q4_0"
    assert found["blk.1.ffn_norm.weight"] == before["blk.1.post_attention_norm.weight"]
    assert {k for k, v in contents(made).items() if len(v) == 3} == {k for k, v in found.items() if len(v) == 3}


def test_drafter_of_an_m_rope_target_gets_its_sections(tmp_path, direct) -> None:
    mrope = make_target(tmp_path / "mrope", **QWEN35)
    config, tensors, made = direct(mrope)
    old = write_old(tmp_path / "old.gguf", "dflash-draft", config, tensors, names=BUUN, keys=OLD)
    found, said, _ = upgraded(old, mrope)
    same(found, made)
    assert found["dflash.rope.dimension_sections"][1] == [16, 0, 0, 0]
    assert "rope.dimension_sections added" in said


def test_a_window_that_the_file_lost_can_be_given(tmp_path, direct, target) -> None:
    config, tensors, made = direct(**SLIDING)
    old = write_old(tmp_path / "old.gguf", "dflash-draft", config, tensors, names=BUUN, keys=OLD)
    found, said, warnings = upgraded(old, target, window=64)
    same(found, made)
    assert "--sliding-window: 64 instead of none" in said and not warnings
    with pytest.raises(UserError, match="--sliding-window is 0"):
        convert(old, target, window=0)
    with pytest.raises(UserError, match="for drafters that are GGUF"):
        convert(tmp_path / "checkpoint", target, window=64)


def test_taps_can_be_given_where_the_file_is_wrong_or_says_nothing(tmp_path, direct, target) -> None:
    config, tensors, made = direct()
    old = write_old(tmp_path / "old.gguf", "dflash-draft", config, tensors, names=BUUN, keys=OLD)
    assert upgraded(old, target, taps="inputs")[0]["dflash.target_layers"][1] == IDS
    assert upgraded(old, target, taps="2,3,4")[0]["dflash.target_layers"][1] == [2, 3, 4]
    silent = write_old(tmp_path / "silent.gguf", "dflash-draft", config, tensors, names=BUUN, keys=OLD,
                       drop=("dflash.target_layer_ids",))  # fmt: skip
    refused(silent, target, "dflash-draft.dflash.target_layer_ids is missing", "--taps")
    found, _, _ = upgraded(silent, target, taps="1,3,6")
    same(found, made)
    mute = rewrite(made, tmp_path / "mute.gguf", drop=("dflash.target_layers",))
    refused(mute, target, "dflash.target_layers is missing", "--taps")
    found, said, _ = upgraded(mute, target, taps="1,3,6")
    same(found, made)
    assert "the file names none" in said


def test_lone_embeddings_are_left_out(tmp_path, direct, target) -> None:
    config, _, made = direct()
    own = dflash_tensors(config, own=("embed_tokens",))
    old = write_old(tmp_path / "old.gguf", "gemma4-dflash-draft", config, own, names=LUCEBOX, keys=OLD)
    found, said, _ = upgraded(old, target)
    same(found, made)
    assert "token_embd.weight left out" in said


def test_a_good_file_is_left_alone(tmp_path, direct, target, capsys) -> None:
    _, _, made = direct(**SLIDING)
    _, out, size = convert(made, target, tmp_path / "new.gguf")
    assert (out, size) == (made, made.stat().st_size)
    assert not (tmp_path / "new.gguf").exists()
    assert main([str(made), "--target-model-dir", str(target), "--outfile", str(tmp_path / "new.gguf")]) == 0
    assert "nothing to change" in capsys.readouterr().out
    config = eagle3_config(eagle_aux_hidden_state_layer_ids=[1, 3, 6])
    eagle3 = tmp_path / "eagle3.gguf"
    convert(save(tmp_path / "e", config, eagle3_tensors(config)), target, eagle3)
    assert convert(eagle3, target, tmp_path / "new.gguf")[1] == eagle3
    refused(eagle3, target, "EAGLE3 has no window", window=64)
    assert upgraded(eagle3, target, taps="outputs")[0]["eagle3.target_layers"][1] == [2, 4, 7]


def test_norm_of_an_eagle3_file_runs_although_upstream_missed_its_flag(tmp_path, target) -> None:
    config = eagle3_config(eagle_config={"norm_before_fc": True})
    made = tmp_path / "direct.gguf"
    convert(save(tmp_path / "e", config, eagle3_tensors(config)), target, made)
    theirs = rewrite(made, tmp_path / "old.gguf", keys={"eagle3.norm_before_fc": False})
    found, said, _ = upgraded(theirs, target)
    same(found, made)
    assert "norm_before_fc: false -> true" in said
    assert "[2, 4, 5] are the usual ones" in said and "eagle_config" in said


def test_file_of_upstreams_converter_gets_the_causality_of_its_layers(tmp_path, direct, target) -> None:
    _, _, made = direct(**SLIDING)
    theirs = rewrite(made, tmp_path / "old.gguf", drop=("dflash.attention.causal_pattern",))
    found, said, _ = upgraded(theirs, target)
    same(found, made)
    assert "causality inside a block" in said
    all_slide = rewrite(theirs, tmp_path / "all.gguf", keys={"dflash.attention.sliding_window_pattern": [True, True]})
    drafter, out, _ = convert(all_slide, target, tmp_path / "new2.gguf")
    assert out == all_slide and "whether they are causal" in drafter.warnings[0]
    stated = rewrite(theirs, tmp_path / "stated.gguf", keys={"dflash.attention.causal": True})
    assert convert(stated, target, tmp_path / "new2.gguf")[1] == stated


def test_window_of_no_layer_is_left_out(tmp_path, direct, target) -> None:
    _, _, made = direct()
    window = {"dflash.attention.sliding_window": 64, "dflash.attention.sliding_window_pattern": [False, False]}
    found, said, _ = upgraded(rewrite(made, tmp_path / "old.gguf", keys=window), target)
    same(found, made)
    assert "as no layer has a window" in said


def test_other_tokenizer_is_replaced_and_another_vocabulary_refused(tmp_path, direct, target) -> None:
    _, _, made = direct()
    tokens = contents(made)["tokenizer.ggml.tokens"][1]
    swapped = rewrite(made, tmp_path / "old.gguf", keys={"tokenizer.ggml.tokens": [tokens[1], tokens[0], *tokens[2:]]})
    found, said, _ = upgraded(swapped, target)
    same(found, made)
    assert "tokenizer: the target's, from which the file's differs in tokens" in said
    short = rewrite(made, tmp_path / "short.gguf", keys={"tokenizer.ggml.tokens": tokens[:-1]})
    refused(short, target, "319 tokens", "320")
    keys = tuple(k for k in contents(made) if k.startswith("tokenizer.") and "mask" not in k)
    bare = rewrite(made, tmp_path / "old.gguf", drop=keys)
    found, said, _ = upgraded(bare, target)
    same(found, made)


def test_suspicious_files_are_warned_about(tmp_path, direct, target) -> None:
    config, tensors, made = direct()
    usual = rewrite(made, tmp_path / "usual.gguf", keys={"dflash.target_layers": [1, 3, 5]})
    drafter, _, _ = convert(usual, target, tmp_path / "new.gguf")
    assert "try --taps outputs" in drafter.warnings[0]
    named = tmp_path / "Qwen3.8-27B-DFlash2.gguf"
    old = write_old(named, "qwen35-dflash-draft", config, tensors, names=LUCEBOX, keys=OLD)
    assert any("named as DFlash2" in w for w in upgraded(old, target)[2])


@pytest.mark.parametrize(
    ("key", "value", "odd"), [("yarn_beta_fast", 24.0, True), ("yarn_beta_fast", 32.0, False),
                              ("yarn_attn_factor", 1.0, True), ("yarn_attn_factor", 1.1386294, False)],
)  # fmt: skip
def test_settings_of_yarn_that_no_drafter_reads_are_warned_about(key, value, odd, tmp_path, direct, target) -> None:
    """As upstream's converter writes them."""
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    made = direct(rope_scaling=scaling)[2]
    file = rewrite(made, tmp_path / "upstream.gguf", keys={f"dflash.rope.scaling.{key}": value})
    report = inspect(file, LoadedTarget(target))
    assert any(key in o.what for o in report.oddities) == odd


def refused(old: Path, target: Path, *parts: str, **options: Any) -> None:
    out = old.with_name("refused.gguf")
    with pytest.raises(UserError) as e:
        convert(old, target, out, **options)
    for part in (old.name, *parts):
        assert part in str(e.value), e.value
    assert not out.exists() and not list(out.parent.glob(".refused*"))


@pytest.fixture
def old(tmp_path: Path) -> Any:
    """`old(...)`: an old file with keys added, left out, or other tensors."""

    def make(arch: str = "dflash-draft", drop: tuple[str, ...] = (), more: Any = None, **keys: Any) -> Path:
        config = dflash_config(rope_theta=1e7)
        tensors = {**dflash_tensors(config), **(more or {})}
        tensors = {n: t for n, t in tensors.items() if n not in drop}
        return write_old(tmp_path / "old.gguf", arch, config, tensors, names=BUUN, keys={**OLD, **keys}, drop=drop)

    return make


@pytest.mark.parametrize(
    "key",
    ["block_count", "embedding_length", "feed_forward_length", "attention.head_count", "dflash.mask_token_id",
     "attention.layer_norm_rms_epsilon"],
)  # fmt: skip
def test_missing_keys_are_named(key: str, old, target) -> None:
    refused(old(drop=(key,)), target, f"dflash-draft.{key} is missing", "original checkpoint")


@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        ({"mask_token_id": 3}, ("named differently", f"dflash.mask_token_id {MASK}", "mask_token_id 3")),
        ({"dflash.mask_token_id": 400}, ("mask_token_id is 400",)),
        ({"dflash.target_layer_ids": [0, 2, 9]}, ("input of layer 10", "has 8 layers")),
        ({"dflash.target_layer_ids": [0, 2]}, ("fc.weight is (64, 192); 2 tapped layers", "(64, 128)")),
        ({"dflash.target_layer_ids": "all"}, ("whole numbers",)),
        ({"block_count": 3}, ("missing: blk.2.",)),
        ({"block_count": 1}, ("not part of this family: blk.1.",)),
        ({"block_count": 10**9}, ("block_count is 1000000000",)),
        ({"attention.key_length": 16}, ("odd shape: blk.0.attn_q.weight is (128, 64), the keys call for (64, 64)",)),
        ({"vocab_size": 999}, ("vocab_size is 999",)),
        ({"attention.sliding_window": 64, "attention.sliding_window_pattern": [True]}, ("each of 2 layers",)),
        ({"rope.freq_base": float("nan")}, ("finite positive",)),
        ({"dflash.context_kv_layer_norm": True}, ("Laguna",)),
        ({"dflash.domino.enabled": 1}, ("Domino",)),
        ({"dflash.block_size": 1}, ("block_size is 1",)),
    ],
)  # fmt: skip
def test_keys_that_lie_are_refused(keys: dict[str, Any], parts: tuple[str, ...], old, target) -> None:
    refused(old(**keys), target, *parts)


def test_missing_tensor_is_named(old, target) -> None:
    refused(old(drop=("layers.1.mlp.up_proj.weight",)), target, "missing: blk.1.ffn_up.weight (96, 64)")


def test_wrong_target_is_refused(old, target, tmp_path) -> None:
    refused(old(), make_target(tmp_path / "wide", hidden_size=128), "hidden size 128")


def test_file_that_ends_early_is_refused(old, target) -> None:
    file = old()
    data = file.read_bytes()
    for n in (len(data) - 40, 3000, 40, 5):
        file.write_bytes(data[:n])
        refused(file, target, "truncated", f"the file has {n}")
    file.write_bytes(b"GG")
    refused(file, target, "truncated")


def test_other_architectures_and_parts_are_refused(old, target, tmp_path) -> None:
    refused(old(arch="llama"), target, "general.architecture is llama", "dflash-draft")
    refused(rewrite(old(), tmp_path / "part.gguf", keys={"split.count": 2}), target, "one of 2 parts", "--merge")


def test_outtype_and_the_input_itself_are_refused(old, target) -> None:
    file = old()
    refused(file, target, "--outtype", outtype="q8_0")
    with pytest.raises(UserError, match="one of the inputs"):
        convert(file, target, file)
    assert gguf.GGUFReader(file).fields["general.architecture"].contents() == "dflash-draft"


def test_tensor_named_twice_after_renaming_is_refused(old, target) -> None:
    refused(old(more={"fc.weight2": dflash_tensors(dflash_config())["norm.weight"]}), target, "not part of this family")
