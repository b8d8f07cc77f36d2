"""Name the pre-tokenizer of a byte-level BPE tokenizer as llama.cpp names it.

llama.cpp's converter recognises tokenizers by a hash over the ids of one test string, so any tokenizer with another
vocabulary is unknown to it, even when its pre-tokenizer is a common one. The pre-tokenizer itself stands in
`tokenizer.json`; this module compares it with the regular expressions that `src/llama-vocab.cpp` runs for each name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dflash_tools.errors import UserError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_CONTRACTIONS_SPELT = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_LINES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_PUNCT = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_ASCII_PUNCT = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
_DEEPSEEK_MAIN = (
    _ASCII_PUNCT
    + r"[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGIT = r"\p{N}"
QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_PUNCT}|{_LINES}"
QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_LINES}"
)
LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_PUNCT}|{_LINES}"
UFAKZEKA = rf"[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_PUNCT}|{_LINES}"
GPT4O = (
    _CASED % (_CONTRACTIONS + "?", _CONTRACTIONS + "?")
    + rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_LINES}"
)
TEKKEN = _CASED % ("", "") + rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_LINES}"
SEED_CODER = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
EXAONE_MOE = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
MINICPM5 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}+|{_PUNCT}|{_LINES}"
TINY_AYA_DIGITS = r"\d{1,3}(?=(?:\d{3})*\b)"
CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"

# (regular expressions in order, merges are looked up after the whole word: `ignore_merges`) -> name
KNOWN: dict[tuple[tuple[str, ...], bool], str] = {
    ((GPT2,), False): "gpt-2",
    ((DIGIT, GPT2), False): "smollm",
    ((QWEN2,), False): "qwen2",
    ((QWEN35,), False): "qwen35",
    ((LLAMA3,), True): "llama-bpe",
    ((LLAMA3,), False): "smaug-bpe",
    ((UFAKZEKA,), False): "ufakzeka",
    ((GPT4O,), False): "gpt-4o",
    ((TEKKEN,), True): "tekken",
    ((SEED_CODER,), False): "seed-coder",
    ((BAILING,), False): "bailingmoe",
    ((EXAONE_MOE,), False): "exaone-moe",
    ((r"\p{N}{1,3}", MINICPM5), True): "minicpm5",
    ((TINY_AYA_DIGITS, GPT4O), False): "tiny_aya",
    ((r"\p{N}{1,3}", CJK, _DEEPSEEK_MAIN), False): "deepseek-v3",
}

# Names for which llama.cpp adds a BOS token unless the file says otherwise.
ADDS_BOS_BY_DEFAULT = frozenset({"llama-bpe", "tekken"})


@dataclass(frozen=True)
class PreTokenizer:
    """What decides the name: the regular expressions in order and `ignore_merges`."""

    regexes: tuple[str, ...]
    ignore_merges: bool


def name_from_tokenizer_json(path: Path) -> str:
    """llama.cpp's name (`tokenizer.ggml.pre`) for the pre-tokenizer of `path`, a Hugging Face `tokenizer.json`.

    Raises UserError, with the regular expressions found, if none of the known names does the same.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path.parent}: the tokenizer is not one that llama.cpp knows by name, and there is no tokenizer.json "
            "to read its pre-tokenizer from. Save the tokenizer in the fast format (tokenizer.save_pretrained) there."
        ) from None
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(f"{path}: not readable as JSON: {e}") from e
    found = read_pretokenizer(data)
    name = KNOWN.get((found.regexes, found.ignore_merges)) if found else None
    if name is None:
        shown = json.dumps(data.get("pre_tokenizer") if isinstance(data, dict) else None, ensure_ascii=False)
        raise UserError(
            f"{path}: llama.cpp has no name for this pre-tokenizer"
            f"{' together with ignore_merges = true' if found and found.ignore_merges else ''}: {shown[:1500]}\n"
            f"Known: {', '.join(sorted(set(KNOWN.values())))}. If the tokenizer belongs to a published model, convert "
            "that model with llama.cpp's converter and give the resulting .gguf as --target-model-dir."
        )
    return name


def read_pretokenizer(data: Any) -> PreTokenizer | None:
    """The pre-tokenizer of a parsed `tokenizer.json`; None if it is no byte-level BPE or uses other kinds of steps."""
    if not isinstance(data, Mapping):
        return None
    model, pre = data.get("model"), data.get("pre_tokenizer")
    if not isinstance(model, Mapping) or model.get("type") not in (None, "BPE") or not isinstance(pre, Mapping):
        return None
    steps = pre.get("pretokenizers") if pre.get("type") == "Sequence" else [pre]
    if not isinstance(steps, list):
        return None
    regexes: list[str] = []
    byte_level = False
    for step in steps:
        kind = step.get("type") if isinstance(step, Mapping) else None
        if kind == "Split" and (regex := _split_regex(step)) is not None:
            regexes.append(_canonical(regex))
        elif kind == "Digits" and step.get("individual_digits") is True:
            regexes.append(DIGIT)
        elif kind == "ByteLevel":
            byte_level = True
            if step.get("use_regex", True):
                regexes.append(GPT2)
        else:
            return None
    if not byte_level:
        return None
    return PreTokenizer(tuple(regexes), model.get("ignore_merges") is True)


def _split_regex(step: Mapping[str, Any]) -> str | None:
    """The regular expression whose matches become words; None for a split that drops or joins text."""
    pattern = step.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, Mapping) else None
    # "Isolated" keeps matches and the text between them; "Removed" with invert keeps just the matches, which is the
    # same for expressions that match everywhere, as all of the table do when they stand alone.
    kept = (step.get("behavior"), bool(step.get("invert"))) in (("Isolated", False), ("Removed", True))
    return regex if kept and isinstance(regex, str) else None


def _canonical(regex: str) -> str:
    """One spelling for expressions that differ only in how they write line breaks and letter case."""
    regex = regex.replace("\r", r"\r").replace("\n", r"\n").replace(_CONTRACTIONS_SPELT, _CONTRACTIONS)
    return GPT2 if regex == GPT2.removesuffix(r"|\s+") else regex
