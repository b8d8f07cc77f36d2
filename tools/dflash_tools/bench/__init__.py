"""bench-dflash: what a round of speculation costs, and what a drafter brings."""
