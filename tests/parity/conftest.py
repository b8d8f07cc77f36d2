"""The tiny pairs on both sides: as probed runs of the built fork, and as reference models."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import cache
from itertools import cycle
from pathlib import Path

import pytest
import torch
from dflash_convert.cli import convert
from draft_gap import Gap, compare
from parity_cases import CASES, DRAFTED_TOKENS, EXACT, LENGTHS, N_PREDICT, TINY, Case
from probe_run import Job, build_probe, run_probe
from reference_dflash import DFlash
from reference_eagle3 import Eagle3
from reference_target import Run, Target
from transformers import AutoTokenizer


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(params=LENGTHS)
def length(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def target() -> Callable[[str], Target]:
    return cache(lambda pair: Target(TINY / pair / "target"))


@pytest.fixture(scope="session")
def drafter() -> Callable[[Case], DFlash | Eagle3]:
    kinds = {"dflash": DFlash, "eagle3": Eagle3}
    return cache(lambda case: kinds[case.engine].load(TINY / case.pair / case.engine))


@pytest.fixture(scope="session")
def held_out() -> Callable[[str], list[list[int]]]:
    """Token ids of the held-out prompts, chats through the chat template, by the Hugging Face tokenizer of a pair."""

    def tokens(pair: str) -> list[list[int]]:
        tokenizer = AutoTokenizer.from_pretrained(TINY / pair / "target")
        prompts = json.loads((TINY / "prompts.json").read_text())
        texts = [
            p["prompt"]
            if "prompt" in p
            else tokenizer.apply_chat_template(p["messages"], add_generation_prompt=True, tokenize=False)
            for p in prompts
        ]
        return [tokenizer(text, add_special_tokens=False).input_ids for text in texts]

    return cache(tokens)


@pytest.fixture(scope="session")
def prompts(held_out: Callable[[str], list[list[int]]]) -> Callable[[str, str], list[list[int]]]:
    """Three prompts of one of LENGTHS: held-out prompts as they are, or joined until they are long enough."""

    def of_length(pair: str, length: str) -> list[list[int]]:
        wanted, source = LENGTHS[length], cycle(held_out(pair))
        found = []
        for _ in range(3):
            prompt = list(next(source))
            while wanted and len(prompt) < wanted:
                prompt += next(source)
            found.append(prompt[-wanted:] if wanted else prompt)
        return found

    return of_length


@pytest.fixture(scope="session")
def probe(bin_dir: Path, source_tree: Path, request: pytest.FixtureRequest) -> Path:
    return build_probe(source_tree, bin_dir, request.config.cache.mkdir("parity"))


@pytest.fixture(scope="session")
def jobs(
    probe: Path,
    prompts: Callable[[str, str], list[list[int]]],
    tiny_gguf: Callable[[str, str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[Case, str], list[Job]]:
    """Greedy runs of the fork's driver, all of one length; each case is run once."""

    def run(case: Case, length: str) -> list[Job]:
        work = tmp_path_factory.mktemp("probe") / f"{case}-{length}"
        models = ("-m", str(tiny_gguf(case.pair, "target")), "-md", str(tiny_gguf(case.pair, case.engine)))
        return run_probe(probe, work, prompts(case.pair, length), N_PREDICT, (*models, f"--{case.engine}", *EXACT))

    return cache(run)


@pytest.fixture
def drafts(
    probe: Path,
    prompts: Callable[[str, str], list[list[int]]],
    tiny_gguf: Callable[[str, str], Path],
    target: Callable[[str], Target],
    tmp_path: Path,
) -> Callable[..., Gap]:
    """Convert a checkpoint of random weights, let the built driver draft after 100 and 600 tokens, and compare.

    drafts(pair, checkpoint, engine, reference) returns the gap over at least 40 blocks, not yet judged. `edit` changes
    the drafter's file before it is run; `conversion` takes another target than the pair's GGUF; `switch`: words that
    select the engine, where they are not the fork's.
    """

    def run(
        pair: str,
        checkpoint: Path,
        engine: str,
        model: DFlash | Eagle3,
        edit: Callable[[Path], None] = lambda path: None,
        conversion: Path | None = None,
        switch: tuple[str, ...] | None = None,
    ) -> Gap:
        work = Path(tempfile.mkdtemp(dir=tmp_path))
        gguf = work / "drafter.gguf"
        convert(checkpoint, conversion or tiny_gguf(pair, "target"), gguf, "f32")
        edit(gguf)
        models = ("-m", str(tiny_gguf(pair, "target")), "-md", str(gguf))
        texts = [prompts(pair, "hundred")[0], prompts(pair, "beyond-a-batch")[0]]
        # EAGLE3 drafts three tokens unless told otherwise; a longer chain feeds on itself more often
        depth = ("--spec-draft-n-max", "7") if engine == "eagle3" else ()
        words = (f"--{engine}", *depth) if switch is None else switch
        found = run_probe(probe, work / "probe", texts, DRAFTED_TOKENS, (*models, *words, *EXACT))
        truths = [(job, target(pair).run(job.tokens)) for job in found]
        for job, truth in truths:
            start = len(job.prompt)
            greedy = truth.logits[start - 1 : -1].argmax(-1).tolist()
            assert job.tokens[start:] == greedy, "the text is not the target's own"
        gap = compare(truths, model, target(pair))
        assert gap.blocks >= 40, f"only {gap.blocks} blocks were drafted"
        assert gap.distinct >= 1.5 * gap.blocks, f"slots of a block hardly differ, the comparison shows little: {gap}"
        return gap

    return run


@pytest.fixture(scope="session")
def truth(target: Callable[[str], Target]) -> Callable[[str, Job], Run]:
    """The reference's forward over a whole probed text."""
    known: dict[tuple[str, tuple[int, ...]], Run] = {}

    def run(pair: str, job: Job) -> Run:
        key = pair, tuple(job.tokens)
        if key not in known:
            known[key] = target(pair).run(job.tokens)
        return known[key]

    return run


@pytest.fixture(scope="session")
def end_tokens() -> Callable[[str], list[int]]:
    """Ids that end a text, as llama.cpp knows them: it goes by their names, not only by the one the config names."""

    def ids(pair: str) -> list[int]:
        tokenizer = AutoTokenizer.from_pretrained(TINY / pair / "target")
        named = {tokenizer.convert_tokens_to_ids(name) for name in ("<|endoftext|>", "<|im_end|>")}
        return sorted({*named, tokenizer.eos_token_id} - {None, tokenizer.unk_token_id})

    return cache(ids)
