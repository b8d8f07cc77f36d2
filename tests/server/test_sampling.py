"""Speculation must not change what is sampled, only how many steps it takes."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from dflash_tools.client import LlamaClient
from scipy.stats import chisquare
from serving import MANY

DRAWS = 1500
COUNTED = 3
# The first token comes from the prompt; with three more to go, the second and the third are drafted together.
N_PREDICT = 4
TEMPERATURE = 0.8
# Every other sampler off, so that the distribution is the softmax at this temperature and nothing else.
PURE = {"temperature": TEMPERATURE, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "ignore_eos": True}
MIN_EXPECTED = 10
MIN_CELLS = 12
SIGNIFICANCE = 1e-3

Path3 = tuple[int, ...]


def next_tokens(plain: LlamaClient, ids: Path3, floor: float) -> dict[int, float]:
    """Probability of every next token above `floor`, as the server without drafter samples it."""
    return {token: p for token, p in plain.next_probabilities(ids, **PURE).items() if p >= floor}


def expected_paths(plain: LlamaClient, ids: Path3, floor: float) -> dict[Path3, float]:
    """Probability of every way to go on for COUNTED tokens that is likelier than `floor`."""
    paths: dict[Path3, float] = {(): 1.0}
    for _ in range(COUNTED):
        paths = {
            (*path, token): p * q
            for path, p in paths.items()
            for token, q in next_tokens(plain, (*ids, *path), floor / p).items()
        }
    return paths


def test_sampled_tokens_have_the_distribution_of_plain_decoding(pair, serving, prompt):
    plain, drafted = serving.plain(pair), serving.drafted(pair, MANY)
    candidates = (prompt(pair, 16, number) for number in range(32))
    open_ends = ((ids, expected_paths(plain, ids, MIN_EXPECTED / DRAWS)) for ids in candidates)
    found = next((some for some in open_ends if len(some[1]) >= MIN_CELLS), None)
    assert found, "the model is too certain of everything to test its sampling"
    ids, expected = found

    def draw(seed: int) -> tuple[Path3, int]:
        answer = drafted.completion(ids, n_predict=N_PREDICT, seed=seed, return_tokens=True, **PURE)
        return answer.tokens[:COUNTED], answer.timings.draft_n

    with ThreadPoolExecutor(24) as threads:
        drawn = list(threads.map(draw, range(DRAWS)))
    assert all(drafts > 0 for _, drafts in drawn), "the drafter did not take part in every draw"

    counts = Counter(path for path, _ in drawn)
    observed = [counts[path] for path in expected]
    likely = [DRAWS * p for p in expected.values()]
    # All that is rarer is one cell.
    observed.append(DRAWS - sum(observed))
    likely.append(DRAWS - sum(likely))
    if likely[-1] < MIN_EXPECTED:
        observed[-2:], likely[-2:] = [sum(observed[-2:])], [sum(likely[-2:])]
    p_value = chisquare(observed, likely).pvalue
    worst = max(zip(observed, likely, expected, strict=False), key=lambda cell: abs(cell[0] - cell[1]) / cell[1] ** 0.5)
    print(f"seeds 0..{DRAWS - 1}, {len(likely)} cells, p = {p_value:.4f}, worst cell (found, expected, ids): {worst}")
    assert p_value > SIGNIFICANCE
