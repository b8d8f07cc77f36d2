"""What the pinned llama.cpp without patches drafts with files that its own converter would write, or that people have.

Only what no comparison of files shows: where its file equals ours, or is not its own. Skipped where it is not built
(`build-fork build --upstream`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from dflash_tools.tiny import CHECKOUT
from draft_gap import Gap
from old_gguf import rewrite
from parity_cases import TINY, Case
from probe_run import build_probe
from random_drafters import write_dflash
from random_dspark import write_dspark_speculators, write_specforge
from reference_dflash import DFlash
from reference_dspark import DSpark

SEED = 31
TAPS = [1, 3, 4]
TARGET = TINY / "qwen3" / "target"
SLIDING = {"use_sliding_window": True, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}
BUILT, PINNED = CHECKOUT / ".fork" / "upstream-bin", CHECKOUT / ".fork" / "pinned"


@pytest.fixture(scope="module")
def probe(request: pytest.FixtureRequest) -> Path:
    """The probe of upstream's build, in place of the fork's."""
    if not (BUILT.is_dir() and PINNED.is_dir()):
        pytest.skip("llama.cpp without patches is not built: build-fork build --upstream")
    return build_probe(PINNED, BUILT, request.config.cache.mkdir("parity"))


@pytest.fixture
def mask(drafter: Callable[[Case], DFlash]) -> int:
    return drafter(Case("qwen3", "dflash")).mask_token


def switch(engine: str, depth: int) -> tuple[str, ...]:
    return ("--spec-type", f"draft-{engine}", "--spec-draft-n-max", str(depth))


@pytest.mark.family("DFlash (z-lab), window shorter than the block", upstream="its end is not hidden: not all equal")
def test_slots_see_what_lies_beyond_the_window(drafts: Callable[..., Gap], mask: int, tmp_path: Path) -> None:
    checkpoint = write_dflash(tmp_path / "hf", TARGET, SEED, TAPS, mask, is_causal=False, **SLIDING)
    gap = drafts("qwen3", checkpoint, "dflash", DFlash.load(checkpoint), switch=switch("dflash", 7))
    print(gap)
    assert gap.same_draft < gap.blocks


@pytest.mark.family("DSpark (SpecForge), scaled and capped logits", upstream="neither runs: at most 1 block in 4 equal")
def test_logits_are_neither_scaled_nor_capped(drafts: Callable[..., Gap], mask: int, tmp_path: Path) -> None:
    changes = {"output_multiplier": 0.25, "final_logit_softcapping": 2.0}
    checkpoint = write_specforge(tmp_path / "hf", TARGET, SEED, TAPS, mask, **changes)
    gap = drafts("qwen3", checkpoint, "dflash", DSpark.load(checkpoint), switch=switch("dspark", 7))
    print(gap)
    assert gap.same_draft <= gap.blocks / 4


NOT_LOADED = [
    pytest.param(write, engine, changes, said, marks=pytest.mark.family(row, upstream="the same file; not loaded"))
    for row, write, engine, changes, said in (
        ("DFlash (z-lab), attention biases", write_dflash, "dflash", {"attention_bias": True}, "number of tensors"),
        ("DSpark (speculators), attention biases", write_dspark_speculators, "dspark", {"attention_bias": True},
         "number of tensors"),
        ("DSpark (speculators), confidence of the state alone", write_dspark_speculators, "dspark",
         {"confidence_head_with_markov": False}, "conf_proj.weight"),
    )
]  # fmt: skip


@pytest.mark.parametrize(("write", "engine", "changes", "said"), NOT_LOADED)
def test_file_does_not_load(
    write: Callable[..., Path], engine: str, changes: dict[str, bool], said: str, drafts: Callable[..., Gap], mask: int,
    tmp_path: Path,
) -> None:  # fmt: skip
    checkpoint = write(tmp_path / "hf", TARGET, SEED, TAPS, mask, **changes)
    with pytest.raises(AssertionError, match=said):
        drafts("qwen3", checkpoint, "dflash", DFlash.load(checkpoint), switch=switch(engine, 7))


@pytest.mark.family("GGUF dflash, ids left as outputs (BeeLlama's migration)", upstream="other layers read")
def test_ids_that_a_migration_left_as_outputs_are_read_as_inputs(
    drafts: Callable[..., Gap], mask: int, tmp_path: Path
) -> None:
    folder = write_dflash(tmp_path / "hf", TARGET, SEED, TAPS, mask)

    def migrated(path: Path) -> None:
        rewrite(path, path.with_name("left.gguf"), keys={"dflash.target_layers": TAPS}).replace(path)

    gap = drafts("qwen3", folder, "dflash", DFlash.load(folder), edit=migrated, switch=switch("dflash", 7))
    print(gap)
    assert gap.same_draft == 0
