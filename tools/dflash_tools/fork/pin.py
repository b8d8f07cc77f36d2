"""Which llama.cpp the project stands on: a commit, and the hash of its tree as the proof."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pin:
    """One exact source tree and where else its git objects can be found.

    `commit` is the identity and `tree` (its git tree hash) the proof, checked whatever the source came from. `sdist`
    is a requirement of the Python package index whose source distribution, of hash `sdist_sha256`, carries the same
    commit as the git submodule `sdist_submodule`.
    """

    commit: str
    tree: str
    sdist: str
    sdist_sha256: str
    sdist_submodule: str = "vendor/llama.cpp"


PIN = Pin(
    commit="0c1e57098bba43ac29e6e3b677cdceebdd22334f",
    tree="b2da53584951ec8aa40680229509a6646a637560",
    sdist="llama-cpp-python==0.3.36",
    sdist_sha256="832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
)
