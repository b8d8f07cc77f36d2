"""The types that llama.cpp's own quantiser makes (`llama-quantize` of the built fork), in one step with the conversion.

The drafter is first written in the type of its weights beside the output, then quantised from there.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from dflash_tools.errors import UserError
from dflash_tools.fork.build import bin_dir

from dflash_convert import child
from dflash_convert.checkpoint import Checkpoint
from dflash_convert.gguf_file import GgufFile, read_gguf

# Those that need no importance matrix. K-quants cut rows into 256, the others into 32.
QUANTISED = (
    "q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_0", "q4_1", "q4_k_s", "q4_k_m", "q5_0", "q5_1", "q5_k_s", "q5_k_m",
    "q6_k", "iq4_nl", "iq4_xs",
)  # fmt: skip

# What stays better than the rest (patterns of names, type; None: as in the checkpoint). Vectors, norms and whatever
# does not end in .weight (d2t, convolution bases) stay by llama-quantize's own rules.
#
# - The last word on a token: Markov head, candidate selector and confidence head correct or choose among logits that
#   lie close together, row by row of a table with 256 columns; and tables are looked up, which CUDA does not do in
#   K-quants. They are a few percent of the file.
# - The convolutions of DFlash2 mix neighbouring slots in every layer, and are small.
# - fc makes the features of the target, which all layers read at every position, so its error enters everywhere.
_KEPT: tuple[tuple[str, str | None], ...] = (
    (r"^(markov_|selector_|conf_proj)", None),
    (r"^blk\.[0-9]+\.(attn|ffn)_conv_proj", None),
    (r"^fc\.", "q8_0"),
)


def write_quantised(
    write: Callable[[str, Path], object], plain_type: str, outtype: str, outfile: Path
) -> tuple[int, str]:
    """Have `write(type, path)` write the drafter to a temporary file in `plain_type`, and quantise that to `outfile`.

    Returns the size in bytes, and a sentence on the types that came out. Raises UserError without a build of the fork,
    and if the quantiser fails; nothing is left behind then.
    """
    program = _program()
    plain = outfile.with_name(f".{outfile.name}.{os.getpid()}.{plain_type}")
    part = outfile.with_name(f".{outfile.name}.{os.getpid()}.part")
    try:
        _write_plain(write, plain_type, plain, outfile)
        kept = [f"{pattern}={kind or plain_type}" for pattern, kind in _KEPT]
        _run(program, [w for pattern in kept for w in ("--tensor-type", pattern)], plain, part, outtype)
        said = _types(read_gguf(part), plain_type, outtype)
        part.replace(outfile)
        return outfile.stat().st_size, said
    finally:
        plain.unlink(missing_ok=True)
        part.unlink(missing_ok=True)


def _write_plain(write: Callable[[str, Path], object], kind: str, plain: Path, outfile: Path) -> None:
    """Errors name the file that the user asked for, not the temporary one."""
    try:
        write(kind, plain)
    except UserError as e:
        raise UserError(str(e).replace(plain.name, outfile.name)) from e


def plain_type(checkpoint: Checkpoint) -> str:
    """The type to quantise from: the one that loses nothing of the weights."""
    found = {t.dtype for t in checkpoint.tensors.values() if len(t.shape) >= 2}
    return next((kind for kind, only in (("bf16", {"BF16"}), ("f16", {"F16"})) if found <= only), "f32")


def _program() -> Path:
    try:
        return bin_dir() / "llama-quantize"
    except UserError as e:
        raise UserError(
            f"this --outtype is made by llama-quantize of the built fork: {e} Without a build: --outtype q8_0"
        ) from e


def _run(program: Path, words: list[str], source: Path, target: Path, outtype: str) -> None:
    try:
        done = child.run([program, *words, source, target, outtype.upper()])
    except OSError as e:
        raise UserError(f"{program}: cannot be run: {e.strerror}") from e
    if done.returncode != 0 or not target.is_file():
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        tail = "\n  ".join(line[:200] for line in said[-4:])
        raise UserError(f"{program} failed (exit status {done.returncode}); its last lines:\n  {tail}")


def _types(file: GgufFile, plain: str, outtype: str) -> str:
    """Which types the matrices have, and which of them another than asked for because of their width."""
    matrices = (t for n, t in file.tensors.items() if len(t.shape) >= 2 and n.endswith(".weight"))
    kinds = [(t.type.name, t.shape[-1]) for t in matrices if t.type is not None]
    counts = Counter(kind for kind, _ in kinds if kind != plain.upper())
    text = "matrices: " + ", ".join(f"{n} in {kind}" for kind, n in counts.most_common())
    if len(kinds) > counts.total():
        text += f", {len(kinds) - counts.total()} kept in {plain.upper()}"
    block = 256 if "_k" in outtype or outtype == "iq4_xs" else 32
    for width in sorted({width for kind, width in kinds if width % block and kind != plain.upper()}):
        others = sorted({kind for kind, w in kinds if w == width})
        text += f"; rows of {width} are no multiple of {block}, so those are in {' or '.join(others)}"
    return text
