"""The `general.*` keys: name, authorship and sampling hints from the drafter's own files, as llama.cpp's converter
writes them (model card, config, generation config, name of the directory)."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
from dflash_tools.errors import UserError

from dflash_convert.checkpoint import model_name
from dflash_convert.gguf_file import Metadata, Value

_TYPES: dict[gguf.GGUFValueType, tuple[type, ...]] = {
    gguf.GGUFValueType.STRING: (str,),
    gguf.GGUFValueType.UINT32: (int,),
    gguf.GGUFValueType.INT32: (int,),
    gguf.GGUFValueType.FLOAT32: (int, float),
    gguf.GGUFValueType.BOOL: (bool,),
}


def general_keys(directory: Path, n_parameters: int, file_type: gguf.LlamaFileType) -> Metadata:
    """`general.*` without `general.architecture`. Raises UserError for a model card that cannot be read."""
    logging.getLogger("gguf").setLevel(logging.CRITICAL)
    try:
        with _named_by_model(directory) as named:
            found = gguf.Metadata.load(None, named, None, n_parameters)
        if found.sampling_penalty_repeat is None:
            # the released gguf package does not look at transformers' name for it, the pinned one does
            found.sampling_penalty_repeat = _generation_config(directory).get("repetition_penalty")
        found.name = found.name if found.name is not None else model_name(directory)
        if found.size_label is None and n_parameters > 0:
            found.size_label = gguf.size_label(n_parameters, n_parameters, 0, 0)
        writer = gguf.GGUFWriter(path=None, arch="")
        writer.add_type(gguf.GGUFType.MODEL)
        found.set_gguf_meta_model(writer)
    except Exception as e:  # the model card is free-form YAML, and the package trusts its shape
        raise UserError(
            f"{directory}: README.md, config.json or generation_config.json confuses the model card reader "
            f"({type(e).__name__}: {str(e)[:200]}). Take the model card away or repair its head."
        ) from e
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    keys = {k: v for k, v in writer.kv_data[0].items() if k != "general.architecture"}
    return {key: _checked(directory, key, v) for key, v in keys.items()}


@contextmanager
def _named_by_model(directory: Path) -> Iterator[Path]:
    """`directory` under the name of its model, from which the package takes what the model card does not say."""
    if directory.name == model_name(directory):
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="convert-dflash-") as parent:
        link = Path(parent) / model_name(directory)
        link.symlink_to(directory, target_is_directory=True)
        yield link


def _generation_config(directory: Path) -> dict[str, Any]:
    path = directory / "generation_config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _checked(directory: Path, key: str, v: gguf.GGUFValue) -> Value:
    """The value, if its type is what its key is written as."""
    values = v.value if v.type == gguf.GGUFValueType.ARRAY else [v.value]
    types = (str,) if v.type == gguf.GGUFValueType.ARRAY else _TYPES[v.type]
    good = isinstance(values, list) and all(isinstance(x, types) and (bool in types or x is not True) for x in values)
    if good and int in types and float not in types:
        good = all(0 <= x < 2**31 for x in values)
    if good and float in types:
        good = all(abs(x) < 3e38 for x in values)
    if not good:
        raise UserError(f"{directory}: {key} would be {str(v.value)[:80]!r}, from README.md or generation_config.json")
    return Value(v.type, v.value, v.sub_type)
