"""The sides of a study, ready to be started: the target alone, with each drafter, and engines that run already."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from dflash_tools.bench.arms import Arm, LlamaArm
from dflash_tools.bench.openai import OpenAIArm
from dflash_tools.bench.study import DrafterSpec, ServerSpec, Study
from dflash_tools.fork.build import bin_dir as fork_bin_dir
from dflash_tools.server import LlamaServer

# A large model takes minutes to load from a slow disk.
_START_SECONDS = 900.0


@dataclass(frozen=True)
class Side:
    """One side of the comparison: its name, the side it is compared to ("" for none), and how to start it."""

    name: str
    baseline: str
    open: Callable[[], AbstractContextManager[Arm]]


def sides_of(study: Study) -> list[Side]:
    """Each build's target alone, then its drafters; then the servers."""
    sides = []
    for build in study.build if study.target is not None else ():
        bin_dir = build.bin or fork_bin_dir()
        plain = study.plain_name(build.name)
        sides.append(Side(plain, "", _starter(study, plain, bin_dir, None)))
        for drafter in study.drafters_of(build.name):
            name = study.drafted_name(drafter)
            sides.append(Side(name, plain, _starter(study, name, bin_dir, drafter)))
    return [*sides, *(Side(spec.name, spec.baseline, _connector(spec)) for spec in study.server)]


def _starter(
    study: Study, name: str, bin_dir: Path, drafter: DrafterSpec | None
) -> Callable[[], AbstractContextManager[Arm]]:
    @contextmanager
    def start() -> Iterator[Arm]:
        server = LlamaServer(
            bin_dir,
            study.target,
            drafter.path if drafter else None,
            switch=drafter.switch if drafter else (),
            extra=(*study.options, *(drafter.options if drafter else ())),
            log=study.work / f"{name.replace(' ', '-')}.log",
            start_seconds=_START_SECONDS,
            timeout=_START_SECONDS,
        )
        with server:
            yield LlamaArm(name, server, drafter is not None)

    return start


def _connector(spec: ServerSpec) -> Callable[[], AbstractContextManager[Arm]]:
    @contextmanager
    def connect() -> Iterator[Arm]:
        key = os.environ.get(spec.key_env, "") if spec.key_env else ""
        yield OpenAIArm(spec.name, spec.url, spec.model, key)

    return connect
