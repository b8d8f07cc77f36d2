"""The two things taken from the pinned llama.cpp's own converter: tokenizers, and whole targets.

Both run in a process of their own (`upstream_bridge`), offline, and never run code that a model directory ships.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

import dflash_tools
from dflash_tools.errors import UserError

import dflash_convert
from dflash_convert import child
from dflash_convert.checkpoint import find_weight_files
from dflash_convert.upstream_bridge import USER_ERROR_MARK, USER_ERROR_STATUS

TARGET_OUTTYPES = ("f32", "f16", "bf16", "q8_0", "auto")


def convert_target(hf_dir: Path, outfile: Path, outtype: str = "f16", *, llama_cpp: Path | None = None) -> Path:
    """Convert a whole target model (HF directory with weights) to `outfile`, with upstream's converter.

    Upstream's work, with two repairs: a tokenizer that its hash does not know is named by its pre-tokenizer, and a
    Qwen3.5 checkpoint without MTP tensors is converted without an MTP block. Needs torch. `llama_cpp` is the llama.cpp
    source tree to use, by default the verified pinned one. Returns `outfile`, which appears only when complete.

    Raises UserError if torch is not installed or upstream's converter fails (its last lines are in the message).
    """
    if outtype not in TARGET_OUTTYPES:
        raise UserError(f"outtype {outtype!r} is not one of {', '.join(TARGET_OUTTYPES)}")
    if importlib.util.find_spec("torch") is None:
        raise UserError(
            "converting a whole target needs torch: `pip install torch` (converting a drafter does not need it)"
        )
    hf_dir, outfile = Path(hf_dir), Path(outfile)
    if not find_weight_files(hf_dir):
        # upstream would write a file without tensors
        raise UserError(f"{hf_dir}: no weights here (model*.safetensors or pytorch_model*.bin)")
    if not outfile.parent.is_dir():
        raise UserError(f"{outfile}: the directory {outfile.parent} does not exist")
    part = outfile.with_name(f".{outfile.name}.{os.getpid()}.part")
    try:
        _run_bridge(["convert", "--target", hf_dir, "--outfile", part, "--outtype", outtype], llama_cpp)
        part.replace(outfile)
    finally:
        part.unlink(missing_ok=True)
    return outfile


def export_tokenizer(target: Path, *, llama_rules: bool = False, llama_cpp: Path | None = None) -> bytes:
    """A GGUF without tensors (its bytes) whose `tokenizer.*` keys describe the tokenizer of the HF directory `target`.

    Needs config and tokenizer files only, no weights and no torch. `llama_rules` reads it as upstream reads the target
    of an EAGLE3 drafter. Raises UserError if upstream cannot read the tokenizer or nobody knows its pre-tokenizer.
    """
    with tempfile.TemporaryDirectory(prefix="convert-dflash-") as tmp:
        out = Path(tmp) / "tokenizer.gguf"
        rules = "llama" if llama_rules else "target"
        _run_bridge(["tokenizer", "--target", target, "--rules", rules, "--outfile", out], llama_cpp)
        return out.read_bytes()


def pinned_tree() -> Path:
    """The verified llama.cpp tree, fetched on demand."""
    from dflash_tools.fork.source import pinned_tree as find

    return find()


def _run_bridge(args: list[str | Path], llama_cpp: Path | None) -> None:
    tree = Path(llama_cpp) if llama_cpp is not None else pinned_tree()
    if not (tree / "convert_hf_to_gguf.py").is_file():
        raise UserError(f"{tree}: no convert_hf_to_gguf.py here; is this a llama.cpp source tree?")
    roots = [str(Path(p.__file__).resolve().parents[1]) for p in (dflash_convert, dflash_tools) if p.__file__]
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([*roots, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    }
    job, *rest = args
    command = [sys.executable, "-m", "dflash_convert.upstream_bridge", job, "--llama-cpp", tree.resolve(), *rest]
    done = child.run(command, env)
    if done.returncode == 0:
        return
    target = rest[rest.index("--target") + 1]
    if done.returncode == USER_ERROR_STATUS and USER_ERROR_MARK in done.stderr:
        raise UserError(done.stderr.rpartition(USER_ERROR_MARK)[2].strip())
    tail = "\n  ".join(line for line in done.stderr.strip().splitlines()[-6:])
    what = "read the tokenizer of" if job == "tokenizer" else "convert"
    raise UserError(f"{target}: llama.cpp's converter could not {what} this directory; its last lines:\n  {tail}")
