"""Run the pinned llama.cpp converter in a process of its own: its tokenizer export, or a whole target.

Not for import: `upstream.py` starts it with `python -m dflash_convert.upstream_bridge`. A process of its own, because
the pinned tree brings its own `gguf` package, and because the tokenizer export runs without torch behind a stand-in
module. Nothing here runs code that a model directory ships.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import itertools
import json
import logging
import sys
import types
from pathlib import Path
from typing import Any

from dflash_tools.errors import UserError

from dflash_convert.pretokenizer import ADDS_BOS_BY_DEFAULT, name_from_tokenizer_json

USER_ERROR_STATUS = 3
USER_ERROR_MARK = "convert-dflash user error: "


def main(argv: list[str] | None = None) -> int:
    """`tokenizer` or `convert`; see `upstream.py` for the arguments."""
    parser = argparse.ArgumentParser(prog="upstream_bridge")
    parser.add_argument("job", choices=["tokenizer", "convert"])
    parser.add_argument("--llama-cpp", type=Path, required=True)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--outfile", type=Path, required=True)
    parser.add_argument("--rules", choices=["target", "llama"], default="target")
    parser.add_argument("--outtype", default="f16")
    args = parser.parse_args(argv)
    try:
        if args.job == "tokenizer":
            sys.modules["torch"] = None  # type: ignore[assignment]  # as if it were not installed
        _import_transformers()
        if args.job == "tokenizer":
            _stand_in_for_torch()
        sys.path[:0] = [str(args.llama_cpp), str(args.llama_cpp / "gguf-py")]
        _name_pretokenizers_by_their_regex()
        if args.job == "tokenizer":
            _export_tokenizer(args.target, args.rules, args.outfile)
        else:
            _convert(args.target, args.outfile, args.outtype)
    except UserError as e:
        print(f"{USER_ERROR_MARK}{e}", file=sys.stderr)
        return USER_ERROR_STATUS
    return 0


def _import_transformers() -> None:
    """Load what upstream uses of transformers, and shut the door to code from model directories."""
    import transformers
    from transformers.utils import is_torch_available

    is_torch_available()  # remembers its answer: it must not see the stand-in
    for name in ("AutoTokenizer", "AutoConfig"):
        cls = getattr(transformers, name)
        original = cls.from_pretrained.__func__

        def no_remote_code(c: type, *args: Any, _original: Any = original, **kwargs: Any) -> Any:
            kwargs["trust_remote_code"] = False
            return _original(c, *args, **kwargs)

        cls.from_pretrained = classmethod(no_remote_code)


class _StandIn(types.ModuleType):
    """Answers any attribute; enough for the type annotations and dtype tables that upstream evaluates on import."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = type(name, (), {"__class_getitem__": classmethod(lambda cls, _: cls)})
        setattr(self, name, value)
        return value


def _stand_in_for_torch() -> None:
    """Upstream imports torch at module level everywhere; the tokenizer export never computes with it.

    Used even where torch is installed: one way to test, and half the time.
    """
    for name in ("torch", "torch.nn", "torch.nn.functional"):
        module = _StandIn(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__path__ = []
        sys.modules[name] = module


def _name_pretokenizers_by_their_regex() -> None:
    """Where upstream's hash does not know a tokenizer, name it by the regular expression in its tokenizer.json."""
    from conversion.base import TextModel

    original = TextModel.get_vocab_base_pre

    def get_vocab_base_pre(self: Any, tokenizer: Any) -> str:
        # upstream prints a banner before it raises
        logging.disable(logging.WARNING)
        try:
            return original(self, tokenizer)
        except NotImplementedError:
            name = name_from_tokenizer_json(self.dir_model / "tokenizer.json")
        finally:
            logging.disable(logging.NOTSET)
        if name in ADDS_BOS_BY_DEFAULT:
            # SpecialVocab overwrites this when tokenizer_config.json says so itself
            ids = tokenizer.encode("a")
            self.gguf_writer.add_add_bos_token(len(ids) > 1 and ids[0] == tokenizer.bos_token_id)
        return name

    TextModel.get_vocab_base_pre = get_vocab_base_pre


def _target_class(target: Path) -> tuple[type, dict[str, Any], str]:
    """Upstream's converter class for the target, its config and the name of its architecture."""
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    try:
        hparams = ModelBase.load_hparams(target, False)
        name = get_model_architecture(hparams, ModelType.TEXT)
    except (OSError, ValueError, KeyError) as e:
        raise UserError(f"{target}/config.json: cannot tell the architecture of the target: {e}") from e
    try:
        return get_model_class(name), hparams, name
    except NotImplementedError:
        raise UserError(f"{target}/config.json: llama.cpp does not know the target's architecture {name}") from None


def _export_tokenizer(target: Path, rules: str, outfile: Path) -> None:
    """Write a GGUF without tensors whose `tokenizer.*` keys are what upstream's converter would write."""
    from conversion.llama import LlamaModel

    cls, hparams, _ = _target_class(target)
    keys = _tokenizer_keys(cls, target, hparams)
    if rules == "llama" and not issubclass(cls, LlamaModel):
        # Upstream reads the tokenizer of every EAGLE3 target with its Llama rules. Follow it where that changes
        # nothing but flags; where it would make another tokenizer of it (Gemma), the target's own rules are right.
        vocab_size = {**hparams, **hparams.get("text_config", {})}.get("vocab_size")
        as_llama = {"architectures": ["LlamaForCausalLM"], "vocab_size": vocab_size}
        try:
            llama = _tokenizer_keys(LlamaModel, target, {k: v for k, v in as_llama.items() if v is not None})
        except Exception as e:
            logging.warning("Llama rules do not fit this tokenizer: %r", e)
        else:
            same = ("tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens", "tokenizer.ggml.merges")
            if all(_value(keys, k) == _value(llama, k) for k in same):
                keys = llama
    _write_keys(keys, outfile)


def _value(keys: dict[str, Any], key: str) -> Any:
    return keys[key].value if key in keys else None


def _tokenizer_keys(cls: Any, target: Path, hparams: dict[str, Any]) -> dict[str, Any]:
    """`tokenizer.*` as `cls` writes it for the directory `target`; no weights are looked at."""
    import gguf
    from conversion import ModelBase

    ModelBase.index_tensors = lambda self, remote_hf_model_id=None: {}
    if cls.supports_mtp_export:
        cls.no_mtp = True
    model = cls(target, gguf.LlamaFileType.ALL_F32, target, hparams={"num_hidden_layers": 1, **hparams})
    model.set_vocab()
    return {k: v for shard in model.gguf_writer.kv_data for k, v in shard.items() if k.startswith("tokenizer.")}


def _write_keys(keys: dict[str, Any], outfile: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(path=None, arch="tokenizer")
    for key, value in keys.items():
        writer.add_key_value(key, value.value, value.type, value.sub_type)
    writer.write_header_to_file(path=outfile)
    writer.write_kv_data_to_file()
    writer.close()


def _convert(target: Path, outfile: Path, outtype: str) -> None:
    """Upstream's own command line on a target directory, without an MTP block where the weights have none."""
    import convert_hf_to_gguf

    cls, hparams, _ = _target_class(target)
    argv = ["convert_hf_to_gguf.py", str(target), "--outfile", str(outfile), "--outtype", outtype]
    if cls.supports_mtp_export and not _has_mtp(target, {**hparams, **hparams.get("text_config", {})}):
        argv.append("--no-mtp")
    sys.argv = argv
    convert_hf_to_gguf.main()


def _has_mtp(target: Path, hparams: dict[str, Any]) -> bool:
    """Whether the checkpoint ships multi-token-prediction tensors: `mtp.*`, or layers beyond the configured ones."""
    n_layers = hparams.get("num_hidden_layers", 0)
    for name in _tensor_names(target):
        parts = name.split(".")
        if "mtp" in parts:
            return True
        layer = next((int(p) for before, p in itertools.pairwise(parts) if before == "layers" and p.isdecimal()), None)
        if layer is not None and n_layers and layer >= n_layers and "visual" not in name and "vision" not in name:
            return True
    return False


def _tensor_names(target: Path) -> set[str]:
    index = target / "model.safetensors.index.json"
    if index.is_file():
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    names: set[str] = set()
    for path in target.glob("model*.safetensors"):
        with path.open("rb") as f:
            size = int.from_bytes(f.read(8), "little")
            if size <= path.stat().st_size:
                names.update(json.loads(f.read(size)))
    return names - {"__metadata__"}


if __name__ == "__main__":
    sys.exit(main())
