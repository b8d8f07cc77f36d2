"""What a drafter must know of its target, from a Hugging Face directory or from a GGUF file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from dflash_tools.errors import UserError
from gguf import GGMLQuantizationType

from dflash_convert.checkpoint import find_weight_files, name_gguf
from dflash_convert.gguf_file import GgufFile, read_gguf
from dflash_convert.jsonfile import MAX_FLOAT, Config, read_json_object
from dflash_convert.safetensors_file import read_safetensors
from dflash_convert.tensors import FileReader, LazyTensor

# Targets of which the fork hands out what leaves the last layer, before the final norm (`t_layer_inp[n_layer]`).
_FINAL_TAP = frozenset({
    "DeepseekV4ForCausalLM", "NemotronHForCausalLM", "MiMoV2ForCausalLM", "MiMoV2FlashForCausalLM",
    "Gemma4ForCausalLM", "Gemma4ForConditionalGeneration", "Gemma4UnifiedForConditionalGeneration", "GptOssForCausalLM",
    "LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM",
    "Qwen3NextForCausalLM", "Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForCausalLM",
    "Qwen3_5MoeForConditionalGeneration", "Step3p5ForCausalLM",
    "deepseek4", "nemotron_h", "nemotron_h_moe", "mimo2", "gemma4", "gpt-oss", "llama", "qwen3", "qwen35",
    "qwen35moe", "qwen3moe", "qwen3next", "step35",
})  # fmt: skip
_DRAFTER_ARCHS = frozenset({"dflash", "eagle3", "dflash-draft", "qwen35-dflash-draft", "gemma4-dflash-draft"})
_TEXT_PREFIXES = ("model.", "model.language_model.", "language_model.model.", "language_model.", "")
_PLAIN_GGUF_TYPES = {
    GGMLQuantizationType.F32: "F32",
    GGMLQuantizationType.F16: "F16",
    GGMLQuantizationType.BF16: "BF16",
}


@dataclass(frozen=True)
class Target:
    """A target model. Sizes are None where the files do not say.

    mrope: its rope has sections, so a drafter's positions have several axes too
    embedding_scale: factor on its embeddings, where its GGUF stores one
    rope_theta: base of its rotary embedding, where there is one for all layers
    gguf: the parsed file if it is one, None for an HF directory
    """

    path: Path
    architecture: str
    hidden_size: int | None
    vocab_size: int | None
    n_layers: int | None
    mrope: bool
    tied: bool
    embedding_scale: float | None = None
    rope_theta: float | None = None
    gguf: GgufFile | None = None

    @property
    def has_final_tap(self) -> bool:
        """Whether a drafter can read what leaves its last layer."""
        return self.architecture in _FINAL_TAP

    def embedding(self) -> LazyTensor | None:
        """Its token embeddings, None if the weights are not here or quantised."""
        return self._weight("embed_tokens.weight", "token_embd.weight")

    def head(self) -> LazyTensor | None:
        """Its output matrix (the embeddings if tied), None if the weights are not here or quantised."""
        return self.embedding() if self.tied else self._weight("lm_head.weight", "output.weight")

    def _weight(self, hf_name: str, gguf_name: str) -> LazyTensor | None:
        if self.gguf is not None:
            entry = self.gguf.tensors.get(gguf_name)
            dtype = _PLAIN_GGUF_TYPES.get(entry.type) if entry and entry.nbytes else None
            if entry is None or dtype is None:
                return None
            return LazyTensor(gguf_name, dtype, entry.shape, self.path, FileReader(self.path, entry.offset, dtype))
        for file in find_weight_files(self.path):
            if file.suffix != ".safetensors" or not file.is_file():
                continue
            tensors = read_safetensors(file)
            for prefix in _TEXT_PREFIXES:
                if prefix + hf_name in tensors:
                    return tensors[prefix + hf_name]
        return None


def read_target(path: Path) -> Target:
    """Read a target's description; its weights are not needed. Raises UserError if `path` is neither kind."""
    if path.is_file():
        if path.suffix in (".json", ".safetensors", ".bin"):
            raise UserError(f"{path}: a file of a model; give the target's HF directory, {path.parent}, or its .gguf")
        return _read_gguf_target(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such directory or file; give the target's HF directory or its .gguf")
    config = path / "config.json"
    if not config.is_file():
        hint = name_gguf(path)
        raise UserError(f"{config}: not found; the target directory needs config.json and the tokenizer files{hint}")
    top = Config(config, read_json_object(config))
    text = _text_config(top)
    architectures = text.strings("architectures") or top.strings("architectures")
    rope = text.section("rope_parameters") if text.values.get("rope_parameters") else text.section("rope_scaling")
    return Target(
        path=Path(os.path.abspath(path)),  # noqa: PTH100 (its name matters, not where a link leads)
        architecture=architectures[0] if architectures else "",
        hidden_size=_first_integer(text, "hidden_size", "n_embd", "dim"),
        vocab_size=_first_integer(text, "vocab_size"),
        n_layers=_first_integer(text, "n_layers", "num_hidden_layers", "n_layer", "num_layers"),
        mrope=rope.has("mrope_section"),
        tied=text.flag("tie_word_embeddings", top.flag("tie_word_embeddings", False)),
        rope_theta=_positive(rope.values.get("rope_theta")) or _positive(text.values.get("rope_theta")),
    )


def _text_config(top: Config) -> Config:
    """The config of the text model: multimodal ones keep it in a section, over keys at the top."""
    section = next((k for k in ("llm_config", "lm_config", "language_config", "lfm") if top.has(k)), "text_config")
    text = top.section("thinker_config").section("text_config") if top.has("thinker_config") else top.section(section)
    return Config(top.path, {**top.values, **text.values}, text.prefix if text.values else "")


def _first_integer(config: Config, *keys: str) -> int | None:
    return next((config.integer(k, least=1) for k in keys if config.has(k)), None)


def _positive(value: object) -> float | None:
    """`value` as a 32-bit float holds it, None if it is no positive number: few drafters need to know."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < MAX_FLOAT
    return float(np.float32(value)) if good else None


def _read_gguf_target(path: Path) -> Target:
    file = read_gguf(path)
    arch = file.string("general.architecture") or ""
    if arch in _DRAFTER_ARCHS:
        raise UserError(f"{path}: this is a drafter ({arch}), not a target; give the model it drafts for")
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if tokens is None or file.string("tokenizer.ggml.model") is None or not isinstance(tokens.value, list):
        raise UserError(
            f"{path}: holds no tokenizer (tokenizer.ggml.model and .tokens); give the target's text model, "
            "and of a split one the first file"
        )
    layers, extra = file.integer(f"{arch}.block_count"), file.integer(f"{arch}.nextn_predict_layers")
    sections = file.metadata.get(f"{arch}.rope.dimension_sections")
    scale, base = (file.metadata.get(f"{arch}.{key}") for key in ("embedding_scale", "rope.freq_base"))
    return Target(
        path=Path(os.path.abspath(path)),  # noqa: PTH100
        architecture=arch,
        hidden_size=file.integer(f"{arch}.embedding_length"),
        vocab_size=len(tokens.value),
        n_layers=layers - (extra or 0) if layers is not None else None,
        mrope=sections is not None and isinstance(sections.value, list) and any(sections.value),
        # a part of a split file may have the head elsewhere
        tied="output.weight" not in file.tensors and file.integer("split.count") in (None, 0, 1),
        embedding_scale=scale.value if scale and isinstance(scale.value, float) else None,
        rope_theta=_positive(base.value) if base else None,
        gguf=file,
    )
