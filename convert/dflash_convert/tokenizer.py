"""The target's tokenizer as GGUF keys: exported from an HF directory, or copied from the target's GGUF."""

from __future__ import annotations

from pathlib import Path

from dflash_tools.errors import UserError

from dflash_convert.gguf_file import Metadata, read_gguf
from dflash_convert.target import Target
from dflash_convert.upstream import export_tokenizer

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")


def tokenizer_keys(target: Target, *, llama_rules: bool = False, llama_cpp: Path | None = None) -> Metadata:
    """All `tokenizer.*` keys of the target, chat template and special tokens included.

    `llama_rules`: see `upstream.export_tokenizer`; they do not matter for a GGUF target, which is copied. Raises
    UserError if the target has no tokenizer, or one that llama.cpp cannot express.
    """
    if target.gguf is not None:
        return _only_tokenizer(target.gguf.metadata)
    if not any((target.path / name).is_file() for name in _FILES) and not any(target.path.glob("*.tiktoken")):
        raise UserError(
            f"{target.path}: no tokenizer here (none of {', '.join(_FILES)}); the drafter's GGUF carries its "
            "target's tokenizer. Download the tokenizer files of the target, or give the target as .gguf."
        )
    exported = export_tokenizer(target.path, llama_rules=llama_rules, llama_cpp=llama_cpp)
    return _only_tokenizer(read_gguf(exported).metadata)


def _only_tokenizer(metadata: Metadata) -> Metadata:
    # GGUF has no use for empty arrays and its writer refuses them
    return {k: v for k, v in metadata.items() if k.startswith("tokenizer.") and v.value != []}
