"""What a drafter file holds, what it expects of its target, and what is odd about it; nothing is written.

Reads what a conversion reads, by the same readers, so that nothing here can say yes where a conversion says no.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TypeVar

import numpy as np
from dflash_tools.errors import UserError, printable
from gguf import GGML_QUANT_SIZES

from dflash_convert.check import check_target, shape_text
from dflash_convert.checkpoint import Checkpoint, open_checkpoint
from dflash_convert.conversion import LoadedTarget
from dflash_convert.drafter import Drafter
from dflash_convert.families import read_drafter
from dflash_convert.families.gguf_drafter import read_gguf_drafter
from dflash_convert.gguf_file import GgufFile, TensorEntry, read_gguf
from dflash_convert.quantize import check_finite
from dflash_convert.target import Target
from dflash_convert.tensors import FLOAT_TYPES, INT_TYPES, FileReader, LazyTensor
from dflash_convert.upgrade import is_gguf

MAX_TEXT = 400
MAX_D2T = 1 << 24
# Fewer bits than this lose much in tensors whose error enters everywhere, or decides between close tokens.
_FINE_BITS = 5.5
_FINE = ("fc.", "selector_", "markov_", "conf_proj")
_T = TypeVar("_T")
_UNKNOWN = Target(
    path=Path("TARGET"), architecture="", hidden_size=None, vocab_size=None, n_layers=None, mrope=False, tied=False
)


@dataclass(frozen=True)
class Oddity:
    """Something that is not as it should be, and what to do. `wrong`: it cannot run (well) as it is."""

    what: str
    todo: str
    wrong: bool = True


@dataclass
class Report:
    """Rows of two tables, name -> text, and what is odd. `expects` has the drafter's and the target's text."""

    path: Path
    holds: dict[str, str] = field(default_factory=dict)
    expects: dict[str, tuple[str, str]] = field(default_factory=dict)
    oddities: list[Oddity] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not any(o.wrong for o in self.oddities)

    def __str__(self) -> str:
        """The report for a terminal; control characters of the file are shown, not sent."""
        lines = [_plain(str(self.path))]
        lines += [f"  {name:<14}{_plain(value)}" for name, value in self.holds.items()]
        if self.expects:
            width = max(len(own) for own, _ in self.expects.values()) + 3
            lines.append("expects of its target")
            for name, (own, other) in self.expects.items():
                theirs = f"target: {_plain(other)}" if other else ""
                lines.append(f"  {name:<14}{_plain(own):<{width}}{theirs}".rstrip())
        for o in self.oddities:
            lines += [f"{'wrong' if o.wrong else 'odd'}: {_plain(o.what)}", f"  -> {_plain(o.todo)}"]
        return "\n".join([*lines, "nothing is odd" if not self.oddities else ""]).rstrip()


def inspect(path: Path, target: LoadedTarget | None = None) -> Report:
    """Look at a drafter: a GGUF file of any dialect, or a checkpoint as `convert` takes it.

    With `target` it is also held against that. What cannot be read is an oddity of the report, not an exception.
    """
    report = Report(path)
    try:
        if is_gguf(path):
            _inspect_gguf(report, path, target)
        else:
            _inspect_checkpoint(report, path, target)
    except UserError as e:
        alone = target is None and f"{_UNKNOWN.path}/" in str(e)
        todo = "give its target too: without it nobody can tell" if alone else "it cannot be used before that is right"
        report.oddities.append(Oddity(str(e), todo))
    except OSError as e:
        report.oddities.append(Oddity(f"{e.filename or path}: {e.strerror or e}", "give a file that can be read"))
    return report


def _inspect_checkpoint(report: Report, path: Path, target: LoadedTarget | None) -> None:
    checkpoint = open_checkpoint(path)
    types = Counter(t.dtype for t in checkpoint.tensors.values())
    report.holds["file"] = f"checkpoint, {_size(sum(t.nbytes for t in checkpoint.tensors.values()))}"
    report.holds["architecture"] = ", ".join(checkpoint.config.strings("architectures")) or "not named"
    report.holds["weights"] = _counts(types, sum(t.size for t in checkpoint.tensors.values()))
    drafter = _fitting(report, target, lambda t: read_drafter(checkpoint, t))
    _describe(report, drafter, checkpoint)
    _expect(report, drafter, drafter.vocab_size, target)
    if target is not None and report.good:
        check_target(checkpoint.config.path, drafter, target.target)
    _check_numbers(report, [t.source for t in drafter.tensors if isinstance(t.source, LazyTensor)])


def _inspect_gguf(report: Report, path: Path, target: LoadedTarget | None) -> None:
    file = read_gguf(path)
    arch = file.string("general.architecture") or "none"
    report.holds["file"] = f"GGUF, {_size(path.stat().st_size)}"
    report.holds["architecture"] = arch
    if name := file.string("general.name"):
        report.holds["name"] = name
    types = Counter("unknown" if t.type is None else t.type.name for t in file.tensors.values())
    report.holds["weights"] = _counts(types, sum(prod(t.shape) for t in file.tensors.values()))
    drafter, changes = _fitting(report, target, lambda t: read_gguf_drafter(path, file, t))
    vocabulary = _tokens(file)
    _describe(report, drafter, None)
    _expect(report, drafter, len(vocabulary) or drafter.vocab_size, target)
    fits = report.good
    again = f"convert-dflash {path} --target-model-dir {'TARGET' if target is None else target.target.path}"
    for change in changes:
        report.oddities.append(Oddity(change, f"`{again}` writes it so"))
    if not vocabulary:
        report.oddities.append(Oddity("no tokenizer in the file", f"`{again}` takes the target's"))
    _check_tensors(report, path, file, drafter, len(vocabulary))
    stored = sum(t.nbytes for t in file.tensors.values())
    if stored > path.stat().st_size:
        what = f"tensors of {_size(stored)} in a file of {_size(path.stat().st_size)}: they overlap"
        report.oddities.append(Oddity(what, "the file is damaged: download it again, or convert the checkpoint"))
    else:
        kinds = {n: t.type.name for n, t in file.tensors.items() if t.type is not None and t.type.name in FLOAT_TYPES}
        floats = [(n, kind, file.tensors[n]) for n, kind in kinds.items()]
        _check_numbers(
            report, [LazyTensor(n, kind, t.shape, path, FileReader(path, t.offset, kind)) for n, kind, t in floats]
        )
    if target is not None and fits:
        check_target(path, drafter, target.target)
        _compare_tokens(report, vocabulary, target, drafter, again)


def _fitting(report: Report, loaded: LoadedTarget | None, read: Callable[[Target], _T]) -> _T:
    """What `read` makes of the drafter for this target; if it does not fit, that is noted and it is read for any."""
    if loaded is not None:
        try:
            return read(loaded.target)
        except UserError as e:
            found = read(_UNKNOWN)
            report.oddities.append(Oddity(str(e), "give the target that it was trained for"))
            return found
    return read(_UNKNOWN)


def _describe(report: Report, drafter: Drafter, checkpoint: Checkpoint | None) -> None:
    holds = report.holds
    holds["family"] = f"{drafter.family}, served with {drafter.switch}"
    heads = f"{drafter.heads} heads of {drafter.head_dim}, {drafter.kv_heads} of keys"
    holds["layers"] = f"{drafter.block_count} of width {drafter.hidden_size} ({heads}), MLP {drafter.feed_forward_size}"
    if drafter.block_size is not None:
        drafted = drafter.block_size - (not _drafts_from_anchor(drafter))
        holds["block"] = f"{drafter.block_size} tokens, anchor included: {drafted} drafted"
    if drafter.mask_token_id is not None:
        holds["mask token"] = str(drafter.mask_token_id)
    names = {t.name for t in drafter.tensors}
    own = [word for name, word in (("token_embd.weight", "embeddings"), ("output.weight", "head")) if name in names]
    holds["of its own"] = " and ".join(own) or "neither embeddings nor head: the target's"
    if drafter.draft_vocab_size not in (None, drafter.vocab_size):
        holds["drafts"] = f"{drafter.draft_vocab_size} of the target's tokens"
    for key, word in (("attention.sliding_window", "window"), ("attention.sliding_window_pattern", "sliding layers"),
                      ("attention.causal", "causal"), ("attention.causal_pattern", "causal layers")):  # fmt: skip
        if key in drafter.extra:
            holds[word] = str(drafter.extra[key].value)
    if checkpoint is not None and drafter.notes:
        holds["notes"] = "; ".join(drafter.notes)
    for warning in drafter.warnings:
        report.oddities.append(Oddity(warning, "if few drafts are accepted, this is the first thing to look at", False))


def _drafts_from_anchor(drafter: Drafter) -> bool:
    """Whether the anchor's own slot drafts, as in DSpark unless a key says otherwise."""
    said = drafter.extra.get("sample_from_anchor")
    return any(t.name == "markov_w1.weight" for t in drafter.tensors) and (said is None or bool(said.value))


def _expect(report: Report, drafter: Drafter, vocabulary: int, loaded: LoadedTarget | None) -> None:
    target = loaded.target if loaded else _UNKNOWN
    taps = ", ".join(map(str, drafter.taps))
    last = max(drafter.taps, default=0)
    # the input of layer n is the output of the last of n, which some targets hand out
    least = last if target.has_final_tap and target.n_layers == last else last + 1
    rows: Mapping[str, tuple[object, object]] = {
        "hidden size": (drafter.target_hidden_size, target.hidden_size),
        "layers": (f"{least} or more; reads the inputs of {taps}", target.n_layers),
        "vocabulary": (f"{vocabulary} tokens" if vocabulary else "not said", target.vocab_size),
    }
    unknown = "not said" if loaded else ""
    report.expects = {k: (str(own), unknown if other is None else str(other)) for k, (own, other) in rows.items()}
    if loaded:
        report.expects["architecture"] = ("any with these layers", target.architecture)


def _check_tensors(report: Report, path: Path, file: GgufFile, drafter: Drafter, vocabulary: int) -> None:
    for name, t in file.tensors.items():
        if t.type is None:
            report.oddities.append(
                Oddity(f"{name}: a type that this converter does not know", "use a newer build of it", wrong=False)
            )
            continue
        block, size = GGML_QUANT_SIZES[t.type]
        if name.startswith(_FINE) and len(t.shape) > 1 and 8 * size / block < _FINE_BITS:
            todo = "convert the checkpoint again; --outtype q4_k_m of convert-dflash keeps such tensors finer"
            report.oddities.append(Oddity(f"{name} is stored in {t.type.name}, too coarse for it", todo, wrong=False))
        if name.endswith("_norm.weight") and t.type.name != "F32":
            todo = "convert the checkpoint again: llama.cpp takes norms in F32"
            report.oddities.append(Oddity(f"{name} is stored in {t.type.name}", todo))
    d2t = file.tensors.get("d2t")
    if d2t is not None:
        _check_d2t(report, path, d2t, vocabulary)
    if drafter.mask_token_id is not None and vocabulary and drafter.mask_token_id >= vocabulary:
        what = f"mask token {drafter.mask_token_id}: the tokenizer ends at {vocabulary - 1}"
        report.oddities.append(Oddity(what, "convert the checkpoint again, with the target it was trained for"))


def _check_numbers(report: Report, tensors: list[LazyTensor]) -> None:
    """That floats are finite: all of them are read."""
    for tensor in tensors:
        if tensor.dtype not in FLOAT_TYPES:
            continue
        try:
            check_finite(tensor)
        except UserError as e:
            report.oddities.append(Oddity(str(e), "take another copy of the file"))
            return  # one says it


def _check_d2t(report: Report, path: Path, entry: TensorEntry, vocabulary: int) -> None:
    """That the table of drafted tokens names tokens of the target, itself and not by offsets."""
    kind, todo = entry.type.name if entry.type is not None else "", "convert the checkpoint again"
    if kind not in INT_TYPES or len(entry.shape) != 1 or entry.shape[0] > MAX_D2T:
        report.oddities.append(Oddity(f"d2t is {kind} {shape_text(entry.shape)}; a list of I64 is expected", todo))
        return
    ids = FileReader(path, entry.offset, kind)(0, entry.shape[0]).astype(np.int64)
    if vocabulary and len(ids) and (ids.min() < 0 or ids.max() >= vocabulary):
        what = f"d2t names the tokens {ids.min()} to {ids.max()}, the tokenizer has {vocabulary}"
        report.oddities.append(Oddity(what, todo))
    elif len(np.unique(ids)) < len(ids) and (np.diff(ids) >= 0).all():
        report.oddities.append(Oddity("d2t holds offsets; llama.cpp takes them as the tokens themselves", todo))


def _compare_tokens(report: Report, own: list[bytes], loaded: LoadedTarget, drafter: Drafter, again: str) -> None:
    found = loaded.tokenizer(llama_rules=drafter.arch == "eagle3").get("tokenizer.ggml.tokens")
    tokens = found.value if found is not None and isinstance(found.value, list) else []
    if not own or not tokens:
        return
    differ = [i for i, (a, b) in enumerate(zip(own, tokens, strict=False)) if a != b]
    if len(own) != len(tokens) or differ:
        first = f", the first at {differ[0]}: {own[differ[0]]!r} and {tokens[differ[0]]!r}" if differ else ""
        what = f"its tokenizer is not the target's: {len(own)} and {len(tokens)} tokens, {len(differ)} differ{first}"
        report.oddities.append(Oddity(what, f"is it the right target? If so, `{again}` takes its tokenizer"))


def _tokens(file: GgufFile) -> list[bytes]:
    found = file.metadata.get("tokenizer.ggml.tokens")
    values = found.value if found is not None and isinstance(found.value, list) else []
    return values if all(isinstance(v, bytes) for v in values) else []


def _counts(types: Counter[str], parameters: int) -> str:
    return f"{', '.join(f'{n} {kind}' for kind, n in types.most_common())}; {parameters / 1e6:.1f} M parameters"


def _size(n: int) -> str:
    return f"{n / 1e6:.1f} MB"


def _plain(value: str) -> str:
    """One line of printable text."""
    text = printable(value.replace("\n", " "))
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 3] + "..."
