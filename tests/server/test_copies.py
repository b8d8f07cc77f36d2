"""What a verify brings to the host: ids where the device samples, and the rows that are read where the host does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from dflash_tools.server import LlamaServer
from serving import COMMON, EXACT, LAYOUTS, Request, preloadable

SHIM = Path(__file__).with_name("count_copies.cpp")
PARAMS: dict[str, Any] = {"n_predict": 48, "seed": 3, "cache_prompt": False}
SAMPLED: tuple[dict[str, Any], ...] = ({"temperature": 0.0}, {"temperature": 0.8}, {"temperature": 0.8, "top_k": 0})
IDS = ("greedy_argmax", "dist_sampled_token", "dist_index")
LISTS = ("result_output", "logits_rows", "dist_probs", "top_", "min_p", "temp_")


@dataclass(frozen=True)
class Copy:
    """One copy of a result of a graph to the host."""

    name: str
    size: int


@pytest.fixture(scope="module")
def shim(bin_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return preloadable(SHIM, bin_dir, tmp_path_factory.mktemp("copies"))


@pytest.fixture
def counted(bin_dir, tiny_gguf, shim, tmp_path, monkeypatch):
    """`with counted(pair, *options) as (server, copies)`: a server, and what was copied since the last `copies()`."""

    @contextmanager
    def start(pair, *options: str) -> Iterator[Any]:
        file = tmp_path / "copies"
        file.touch()
        monkeypatch.setenv("LD_PRELOAD", str(shim))
        monkeypatch.setenv("COPIES_FILE", str(file))
        server = LlamaServer(
            bin_dir,
            tiny_gguf(pair.family, "target"),
            tiny_gguf(pair.family, pair.engine),
            switch=pair.switch,
            # the state of a hybrid target is saved by a graph of its own, before which all that may be read is copied
            extra=(*COMMON, *EXACT, *LAYOUTS[1], "--ctx-checkpoints", "0", "--cache-ram", "0", *options),
            log=tmp_path / "server.log",
        )

        def copies() -> list[Copy]:
            lines = file.read_text().splitlines()
            file.write_text("")
            return [Copy(line.rpartition(" ")[0], int(line.rpartition(" ")[2])) for line in lines]

        with server:
            server.completion("1", n_predict=1)  # the first one sets things up
            yield server, copies

    return start


@pytest.mark.parametrize("more", SAMPLED, ids=str)
def test_ids_come_to_the_host_where_the_device_samples(more, pair, counted, prompt):
    request = Request(prompt(pair, 40, 2), {**PARAMS, "ignore_eos": True, **more})
    with counted(pair, "-bs") as (server, copies):
        copies()
        before = server.spec_counters()
        answer = request.send(server)
        rounds = (server.spec_counters() - before).verified
        found = copies()
    assert answer.timings.draft_n > 2 * rounds > 0
    assert not [copy for copy in found if copy.name.startswith(LISTS)]
    ids = [copy for copy in found if copy.name.startswith(IDS)]
    # one copy of a verify and one of each draft, an EAGLE3 drafter drafts one row after the other
    drafts = answer.timings.draft_n if pair.engine == "eagle3" else rounds
    assert 0 < len(ids) <= rounds + drafts + 2


def test_rows_come_to_the_host_when_they_are_sampled_there(pair, counted, prompt):
    request = Request(prompt(pair, 40, 2), {**PARAMS, "ignore_eos": True, "temperature": 0.8})
    with counted(pair, "--no-backend-sampling") as (server, copies):
        copies()
        before = server.spec_counters()
        answer = request.send(server)
        rounds = (server.spec_counters() - before).verified
        found = [copy.size for copy in copies() if copy.name == "result_output"]
    row = min(found)
    assert all(size % row == 0 for size in found)
    rows = sum(found) // row
    verified = answer.timings.draft_n + rounds
    tokens = answer.timings.predicted_n
    print(f"{rows} of {verified} verified rows of {row} bytes came to the host, for {tokens} tokens")
    # each token is sampled from a row, the last round may sample more than are asked for
    assert tokens <= rows <= tokens + 16
    assert rows < verified
