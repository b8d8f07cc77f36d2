"""Run llama.cpp's own convert_hf_to_gguf.py on a list of argument lists, in one process (imports take seconds).

usage: python upstream_oracle.py LLAMA_CPP JOBS.json   with JOBS.json = [[PRE, argument, ...], ...]

The fixtures' tokenizers have no hash that it knows: PRE is the name it is told for them, nothing else is changed.
Prints one JSON list: for each job null, or the error that it ended with.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path


def main() -> None:
    tree, jobs = sys.argv[1:]
    sys.path[:0] = [tree, f"{tree}/gguf-py"]
    import convert_hf_to_gguf
    from conversion.base import TextModel

    original = TextModel.get_vocab_base_pre

    told = ""

    def get_vocab_base_pre(self: object, tokenizer: object) -> str:
        try:
            return original(self, tokenizer)
        except NotImplementedError:
            return told

    TextModel.get_vocab_base_pre = get_vocab_base_pre
    results: list[str | None] = []
    for told, *arguments in json.loads(Path(jobs).read_text(encoding="utf-8")):  # noqa: B007 (the closure reads it)
        sys.argv = ["convert_hf_to_gguf.py", *arguments]
        try:
            convert_hf_to_gguf.main()
            results.append(None)
        except (Exception, SystemExit) as e:
            logging.exception("job failed")
            results.append(f"{type(e).__name__}: {e}")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
