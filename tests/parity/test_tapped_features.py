"""The hidden states that the drafter gets are those of the Hugging Face target, row by row.

The probed runs are speculative, so the rows come from prompt batches and from verify batches, of which the rejected
rows were rolled back: a row left over from a rejected draft, or a recurrent state that was not restored, shows here.
"""

from __future__ import annotations

import torch

# Of the largest feature: float32 with sums in another order, over up to 8 layers. Measured at most 3.8e-6 (0.00044 of
# 115) on qwen3 and 2.8e-6 (0.00056 of 201) on qwen35, both at position 660: rotation angles are float32 on both sides,
# so the gap grows with the position (a float64 target lies between them). A wrong layer or row differs by more than 15.
TOLERANCE = 1e-5


def test_features_equal_the_layer_outputs_of_the_reference(case, length, jobs, truth, target, drafter):
    taps = drafter(case).taps_of(target(case.pair).layer_count)
    gaps, rows, accepted, rolled_back = [], 0, 0, 0
    for job in jobs(case, length):
        assert job.taps == [tap + 1 for tap in taps], "llama.cpp names the layer after the tapped one"
        wanted = truth(case.pair, job).features(taps)[: len(job.features)]
        gaps.append((job.features - wanted).abs().max().item())
        rows += len(job.features)
        accepted += sum(r.accepted for r in job.rounds)
        rolled_back += sum(len(r.draft) - r.accepted for r in job.rounds)
    allowed = TOLERANCE * (scale := wanted.abs().max().item())
    print(f"{case} {length}: {rows} rows x {len(taps)} taps, max abs error {max(gaps):.2g} at values up to {scale:.3g}")
    assert accepted > 0, "no draft was accepted: no row of these runs comes from a verify batch of several tokens"
    assert rolled_back > 0, "no draft was rejected: nothing was rolled back in these runs"
    assert max(gaps) <= allowed, f"max abs error per text {gaps}, allowed {allowed:.2g}"


def test_a_tap_one_layer_off_would_be_noticed(case, jobs, truth, target, drafter):
    taps = drafter(case).taps_of(target(case.pair).layer_count)
    job = jobs(case, "short")[0]
    run = truth(case.pair, job)
    gaps = {}
    for shift in (-1, 1):
        wanted = run.features([tap + shift for tap in taps])[: len(job.features)]
        per_tap = (job.features - wanted).abs().amax(0).view(len(taps), -1).amax(1)
        gaps[shift] = per_tap.min().item()
    noticed = 100 * TOLERANCE * run.features(taps).abs().max().item()
    print(f"{case}: taps shifted by -1 and 1: max abs error of the best tap {gaps}")
    assert min(gaps.values()) > noticed, f"a shifted tap differs by only {gaps}, not by {noticed:.2g}"


def test_a_row_one_position_off_would_be_noticed(case, jobs, truth, target, drafter):
    taps = drafter(case).taps_of(target(case.pair).layer_count)
    job = jobs(case, "short")[0]
    wanted = truth(case.pair, job).features(taps)[: len(job.features)]
    gap = (job.features - torch.roll(wanted, 1, 0))[1:].abs().amax(1).min().item()
    print(f"{case}: rows shifted by one: max abs error of the best row {gap:.2g}")
    noticed = 100 * TOLERANCE * wanted.abs().max().item()
    assert gap > noticed, f"some neighbouring rows differ by only {gap}, not by {noticed:.2g}"
