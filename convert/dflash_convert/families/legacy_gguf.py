"""Drafters that other engines keep as GGUF, translated to the keys and names of llama.cpp's `dflash`.

- `dflash-draft`, of buun's and BeeLlama's llama.cpp (and lucebox, for DSpark): `dflash_fc`, `post_attention_norm`, the
  drafter's own tokenizer, `attention.causal` false whatever the layers are;
- `qwen35-dflash-draft`, of lucebox: `dflash.fc`, no tokenizer, often a wrong rope base;
- `gemma4-dflash-draft`, of lucebox: the same, with window and soft cap under `dflash.`;
- `dflash` with old keys, of BeeLlama's migration script: new names, but layer ids copied as they were.

All name tapped layers by their *output*, one less than llama.cpp does. Nothing of their loaders is needed: what a key
means follows from what wrote it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from dflash_tools.errors import UserError, join_words

from dflash_convert.gguf_file import GgufFile, Metadata, StoredTensor, TensorEntry, Value, f32, flag, flag_array, u32
from dflash_convert.gguf_keys import Keys
from dflash_convert.shape import MAX_DIM, MAX_LAYERS, Shape
from dflash_convert.target import Target

ARCHITECTURES = frozenset({"dflash-draft", "qwen35-dflash-draft", "gemma4-dflash-draft"})
# Keys that only old writers leave in a file, below the prefix of the architecture.
_OLD_MARKS = ("target_layer_ids", "n_target_features", "dflash.target_layer_ids", "dflash.block_size")
_CARRIED = frozenset({
    "block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.layer_norm_rms_epsilon",
    "attention.sliding_window", "attention.sliding_window_pattern", "rope.freq_base", "rope.scaling.type",
    "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "block_size",
    "final_logit_softcapping", "conv_kernel_size", "conv_group_size", "selector_rank", "selector_top_k",
})  # fmt: skip
_RENAMED = {
    "dflash.block_size": "block_size",
    "dflash.sliding_window": "attention.sliding_window",
    "dflash.logit_softcap": "final_logit_softcapping",
}
_IDS = ("dflash.target_layer_ids", "target_layer_ids", "target_layers")
_MASK = ("dflash.mask_token_id", "mask_token_id")
# Read below, or said once more elsewhere.
_USED_UP = {*_IDS, *_MASK, "attention.causal", "rope.dimension_count", "vocab_size", "dflash.n_target_layers",
            "dflash.n_target_features", "n_target_features", "dflash.target_hidden", "dflash.context_kv_layer_norm",
            "dflash.dspark.enabled", "dflash.dspark.markov_rank", "dflash.dspark.vocab_size",
            "dflash.dspark.confidence_dim"}  # fmt: skip
_TENSORS = {
    "dflash_fc.weight": "fc.weight",
    "dflash.fc.weight": "fc.weight",
    "dflash_hidden_norm.weight": "enc.output_norm.weight",
    "dflash.hidden_norm.weight": "enc.output_norm.weight",
    "hidden_norm.weight": "enc.output_norm.weight",
    "dflash.dspark.markov.w1": "markov_w1.weight",
    "dflash.dspark.markov.w2": "markov_w2.weight",
    "dflash.dspark.confidence.weight": "conf_proj.weight",
    "dflash.dspark.confidence.bias": "conf_proj.bias",
}
_POST_ATTENTION = re.compile(r"blk\.(\d+)\.post_attention_norm\.weight")
# The ids of the 27B drafters that lucebox's converter was made for and left out; no rule gives those of others.
_PUBLISHED_IDS = {(64, 5): (1, 16, 31, 46, 61)}
_NOT_RUN = {
    "dflash.domino.": "a Domino head, for which llama.cpp has no graph",
    "dflash.aux_hidden_norm.": "norms per tapped layer (Laguna), for which llama.cpp has no graph",
}


@dataclass
class GgufDrafter:
    """A drafter of a GGUF file in llama.cpp's spelling.

    arch: "dflash" or "eagle3"; was: the architecture the file names
    keys: without the architecture's prefix, tapped layers and mask token
    ids: tapped layers as the file names them; taps: those whose *input* is read
    vocab: size of the vocabulary where a key says it
    changes: what was translated or repaired, for the user
    """

    path: Path
    arch: str
    was: str
    keys: Metadata
    ids: tuple[int, ...]
    taps: tuple[int, ...]
    mask_token: int | None
    vocab: int | None
    tensors: dict[str, StoredTensor]
    changes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def reader(self) -> Keys:
        return Keys(self.path, f"{self.was}.", self.keys)

    def shape(self) -> Shape:
        """Sizes of the transformer (the vocabulary's is not among these keys). Raises UserError for impossible ones."""
        keys = self.reader()
        hidden = keys.integer("embedding_length", least=1, most=MAX_DIM)
        heads = keys.integer("attention.head_count", least=1, most=MAX_DIM)
        kv_heads = keys.optional_integer("attention.head_count_kv", least=1, most=MAX_DIM) or heads
        stated = keys.optional_integer("attention.key_length", least=1, most=MAX_DIM)
        if heads % kv_heads or (stated is None and hidden % heads):
            raise UserError(f"{keys.where('attention.head_count')}: {heads} heads, {kv_heads} of keys, width {hidden}")
        return Shape(
            layers=keys.integer("block_count", least=1, most=MAX_LAYERS),
            hidden=hidden,
            feed_forward=keys.integer("feed_forward_length", least=1, most=MAX_DIM),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=stated or hidden // heads,
            head_dim_stated=stated is not None,
            rms_eps=keys.number("attention.layer_norm_rms_epsilon"),
            vocab=0,
            context=keys.optional_integer("context_length"),
        )


def is_legacy(file: GgufFile) -> bool:
    """Whether the file is in one of the older dialects."""
    arch = file.string("general.architecture") or ""
    return arch in ARCHITECTURES or (arch == "dflash" and any(f"dflash.{k}" in file.metadata for k in _OLD_MARKS))


def translate(path: Path, file: GgufFile, target: Target, taps: tuple[int, ...] | None) -> GgufDrafter:
    """Keys and names as llama.cpp's. `taps`: the layers if the user names them, needed where the file does not.

    Raises UserError where something is missing that cannot be derived, or the drafter cannot run.
    """
    was = file.string("general.architecture") or ""
    old = Keys(path, f"{was}.", below(file.metadata, was))
    _refuse(path, old, file)
    tensors = _tensors(path, file)
    drafter = GgufDrafter(path, "dflash", was, {}, (), (), None, old.optional_integer("vocab_size"), {})
    if was != "dflash":
        drafter.changes.append(f"general.architecture: {was} -> dflash")
    _rename_tensors(drafter, tensors)
    drafter.mask_token = _mask_token(old, file, drafter.changes)
    drafter.ids, drafter.taps = _taps(old, drafter, target, taps)
    _carry_keys(drafter, old)
    _rope_base(drafter, old, target)
    if old.flag("attention.causal", False):
        drafter.keys["attention.causal"] = flag(True)
    n_rot = old.optional_integer("rope.dimension_count")
    if n_rot is not None and n_rot != _head_dim(drafter):
        drafter.keys["rope.dimension_count"] = old.values["rope.dimension_count"]
    if "markov_w1.weight" in drafter.tensors:
        drafter.keys["sample_from_anchor"] = flag(True)
        drafter.keys["has_confidence_head"] = flag("conf_proj.weight" in drafter.tensors)
        drafter.changes.append("DSpark's keys sample_from_anchor and has_confidence_head are written")
    return drafter


def below(metadata: Metadata, arch: str) -> Metadata:
    """The keys under `arch.`, without that prefix."""
    return {k.removeprefix(f"{arch}."): v for k, v in metadata.items() if k.startswith(f"{arch}.")}


def stored(path: Path, name: str, entry: TensorEntry) -> StoredTensor:
    """A tensor to be copied. Raises UserError if its size is not known."""
    if entry.type is None:
        raise UserError(f"{path}: {name[:80]} is of a type that is not known here, so it cannot be copied")
    return StoredTensor(name, entry.shape, entry.type, path, entry.offset, entry.nbytes)


def _refuse(path: Path, old: Keys, file: GgufFile) -> None:
    names = (*file.tensors, *(k for k, v in old.values.items() if v.value))
    for start, what in _NOT_RUN.items():
        if any(n.startswith(start) for n in names):
            raise UserError(f"{path}: the drafter has {what}")
    if old.flag("dflash.context_kv_layer_norm", False):
        raise UserError(f"{old.where('dflash.context_kv_layer_norm')} is set (Laguna); llama.cpp has no graph for it")


def _tensors(path: Path, file: GgufFile) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    for name, entry in file.tensors.items():
        renamed = _TENSORS.get(name, name)
        if match := _POST_ATTENTION.fullmatch(name):
            renamed = f"blk.{match[1]}.ffn_norm.weight"
        if renamed in found:
            raise UserError(f"{path}: {found[renamed].name} and {name} are both {renamed}")
        found[renamed] = stored(path, name, entry)
    return found


def _rename_tensors(drafter: GgufDrafter, tensors: dict[str, StoredTensor]) -> None:
    drafter.tensors = tensors
    renamed = {re.sub(r"blk\.\d+\.", "blk.*.", t.name): re.sub(r"blk\.\d+\.", "blk.*.", n) for n, t in tensors.items()}
    pairs = [f"{a} -> {b}" for a, b in renamed.items() if a != b]
    if pairs:
        drafter.changes.append(f"tensors: {', '.join(pairs)}")


def _mask_token(old: Keys, file: GgufFile, changes: list[str]) -> int:
    found = {f"{old.prefix}{k}": old.integer(k) for k in _MASK if old.has(k)}
    tokenizer = Keys(old.path, "tokenizer.ggml.", below(file.metadata, "tokenizer.ggml"))
    if tokenizer.has("mask_token_id"):
        found["tokenizer.ggml.mask_token_id"] = tokenizer.integer("mask_token_id")
    if not found:
        raise UserError(
            f"{old.where(_MASK[0])} is missing: without the token that fills the block the drafter cannot run. Convert "
            "its original checkpoint instead."
        )
    if len(set(found.values())) > 1:
        both = join_words([f"{k} {v}" for k, v in found.items()])
        raise UserError(f"{old.path}: the mask token is named differently: {both}. Convert the original checkpoint.")
    key, mask = next(iter(found.items()))
    if not tokenizer.has("mask_token_id"):
        changes.append(f"mask token {mask}: {key} -> tokenizer.ggml.mask_token_id")
    return mask


def _taps(
    old: Keys, drafter: GgufDrafter, target: Target, named: tuple[int, ...] | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    key = next((k for k in _IDS if old.has(k)), None)
    ids = old.integers(key, least=-1, most=4096) if key else ()
    if not ids and named is None:
        n_taps = old.optional_integer("dflash.n_target_layers")
        ids = _PUBLISHED_IDS.get((target.n_layers or 0, n_taps or 0), ())
        if not ids:
            raise UserError(
                f"{old.where(_IDS[0])} is missing, and which layers a drafter reads cannot be guessed. The config.json "
                "of the original checkpoint names their outputs (target_layer_ids): give each plus one, such as "
                "--taps 2,17,32,47,62"
            )
        drafter.changes.append(f"tapped layers are not named: those of the published 27B drafters, outputs {list(ids)}")
    taps = tuple(i + 1 for i in ids)
    if ids:
        drafter.changes.append(
            f"tapped layers: outputs {list(ids)} -> inputs {list(taps)} (target_layers)"
            + (", which the migration script left as they were" if key == "target_layers" else "")
        )
    return ids, taps if ids else named or ()


def _carry_keys(drafter: GgufDrafter, old: Keys) -> None:
    dropped = []
    for key, value in old.values.items():
        name = _RENAMED.get(key, key)
        if name in drafter.keys:
            if drafter.keys[name].value != _as_llama_cpp_reads_it(old, key, value).value:
                raise UserError(f"{old.where(key)} contradicts {name}")
        elif name in _CARRIED:
            drafter.keys[name] = _as_llama_cpp_reads_it(old, key, value)
        elif key not in _USED_UP:
            dropped.append(key)
    if renamed := [f"{k} -> {v}" for k, v in _RENAMED.items() if old.has(k)]:
        drafter.changes.append(f"keys: {', '.join(renamed)}")
    if dropped:
        drafter.changes.append(f"left out, as llama.cpp knows no such keys: {', '.join(sorted(dropped))[:400]}")


def _as_llama_cpp_reads_it(old: Keys, key: str, value: Value) -> Value:
    """llama.cpp refuses a key of another type than its own, whatever its value."""
    if key.endswith("_pattern"):
        return flag_array(old.flags(key, old.integer("block_count", least=1, most=MAX_LAYERS)))
    if isinstance(value.value, bytes):
        return value
    return f32(old.number(key)) if isinstance(value.value, float) else u32(old.integer(key))


def _rope_base(drafter: GgufDrafter, old: Keys, target: Target) -> None:
    """lucebox wrote a base of 1e6 into every file and used its target's at run time, which is what they mean."""
    stated = old.number("rope.freq_base") if old.has("rope.freq_base") else None
    base = target.rope_theta
    if stated == base or (stated is not None and drafter.was != "qwen35-dflash-draft"):
        return
    if base is None:
        if stated is None:
            raise UserError(f"{old.where('rope.freq_base')} is missing, and {target.path} does not say its own")
        drafter.warnings.append(f"rope base {stated:g} is kept, but files of this kind often have a wrong one, and "
                                f"{target.path} does not say the target's")  # fmt: skip
        return
    drafter.keys["rope.freq_base"] = f32(base)
    drafter.changes.append(f"rope base: {'none' if stated is None else f'{stated:g}'} -> {base:g}, the target's")


def _head_dim(drafter: GgufDrafter) -> int | None:
    value: Value | None = drafter.keys.get("attention.key_length")
    return value.value if value is not None and isinstance(value.value, int) else None
