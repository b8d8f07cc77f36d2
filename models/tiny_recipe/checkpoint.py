"""Write and read the published checkpoint layouts: a directory with config.json and model.safetensors in bf16."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from .corpus import END_OF_TEXT, IM_END
from .targets import CONTEXT
from .tokenizer import save_tokenizer


def save_target(model: PreTrainedModel, tokenizer: Tokenizer, directory: Path) -> None:
    """A target as transformers saves it, with its tokenizer and the tokens that end a text."""
    directory.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, directory, CONTEXT)
    ends = [tokenizer.token_to_id(IM_END), tokenizer.token_to_id(END_OF_TEXT)]
    model.generation_config.eos_token_id = ends
    model.generation_config.pad_token_id = ends[1]
    model.bfloat16().save_pretrained(directory)
    model.float()


def load_target(directory: Path) -> tuple[PreTrainedModel, Tokenizer]:
    """The target in f32, ready to run, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval().requires_grad_(False)
    return model, Tokenizer.from_file(str(directory / "tokenizer.json"))


def save_drafter(tensors: Mapping[str, Tensor], config: Mapping[str, Any], directory: Path) -> None:
    """A drafter: floats in bf16, integers and booleans as they are."""
    directory.mkdir(parents=True, exist_ok=True)
    stored = {k: (v.bfloat16() if v.is_floating_point() else v).contiguous() for k, v in tensors.items()}
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_drafter(directory: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (floats in f32) and config of a drafter."""
    tensors = load_file(directory / "model.safetensors")
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}, json.loads(
        (directory / "config.json").read_text()
    )
