"""A small repository that stands in for llama.cpp, in every form the source can come in."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from dflash_tools.fork.pin import Pin
from dflash_tools.fork.source import fetch_source
from dflash_tools.fork.workspace import Workspace
from dflash_tools.fork.worktree import checkout, export

# Programs of the names that build-fork wants, each of one line. BROKEN is there to be defined by a test.
FAKE_CMAKE = """\
cmake_minimum_required(VERSION 3.14)
project(stand-in CXX)
include(CTest)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
foreach(name llama-server llama-cli llama-speculative-simple llama-quantize llama-bench test-backend-ops
        test-arg-parser test-sampling test-batch-alloc test-llama-archs test-recurrent-state-rollback
        test-save-load-state test-model-resolution)
    add_executable(${name} src/program.cpp)
    add_test(NAME ${name} COMMAND ${name})
endforeach()
"""
FAKE_PROGRAM = """\
#include <cstdio>
int main() { std::puts("version: stand-in"); return 0; }
"""
WHO = {"NAME": "A. Person", "EMAIL": "a@example.org", "DATE": "2026-01-02T03:04:05+0200"}
HEADER = "Why: it is needed.\nUpstream: not proposed.\nDrop-when: the line is there."


def run_git(*args: str | Path, cwd: Path, stdin: str | None = None) -> str:
    """git as a user runs it, except for the configuration of this machine."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    env |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    env |= {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in WHO.items()}
    words = ["git", *map(str, args)]
    done = subprocess.run(words, cwd=cwd, env=env, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout.strip()


@dataclass(frozen=True)
class Upstream:
    """The stand-in: a clone with history (`repo`), a source distribution with its objects, and the pin of both."""

    repo: Path
    sdist: Path
    pin: Pin


def write_fake_source(folder: Path) -> None:
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "long.cpp").write_text("".join(f"int line_{n} = {n};\n" for n in range(1, 61)))
    # the same ten lines twice, so that a hunk can fit in two places
    (folder / "src" / "twice.cpp").write_text("".join(f"case {n % 10}: break;\n" for n in range(40)))
    (folder / "CMakeLists.txt").write_text(FAKE_CMAKE)
    (folder / "src" / "program.cpp").write_text(FAKE_PROGRAM)
    (folder / "README.md").write_text("Déjà vu\n", "utf-8")
    (folder / "dos.txt").write_bytes(b"one\r\ntwo\r\n")
    (folder / "tool.sh").write_text("#!/bin/sh\necho tool\n")
    (folder / "tool.sh").chmod(0o755)
    (folder / "link").symlink_to("tool.sh")
    (folder / ".gitignore").write_text("/build*\n*.o\n")
    (folder / "kept.o").write_text("tracked although ignored\n")


def make_sdist(path: Path, repo: Path, extra: dict[str, bytes] | None = None) -> None:
    """A source distribution like the real one: the submodule's git folder, files, a build backend that must not run."""
    inside = "llama_stand_in-1.0"
    bomb = b"raise SystemExit('code of the package was run')\n"
    members = {
        f"{inside}/PKG-INFO": b"Metadata-Version: 2.1\nName: llama_stand_in\nVersion: 1.0\n",
        f"{inside}/pyproject.toml": b'[build-system]\nrequires = []\nbuild-backend = "scikit_build_core.build"\n',
        f"{inside}/setup.py": bomb,
        f"{inside}/.git/modules/vendor/llama.cpp/config": b"[core]\n\tfsmonitor = touch fsmonitor-ran\n",
        f"{inside}/.git/modules/vendor/llama.cpp/hooks/post-checkout": b"#!/bin/sh\ntouch hook-ran\n",
    }
    for file in sorted((repo / ".git" / "objects").rglob("*")):
        if file.is_file():
            members[f"{inside}/.git/modules/vendor/llama.cpp/{file.relative_to(repo / '.git')}"] = file.read_bytes()
    with tarfile.open(path, "w:gz") as tar:
        for name, data in (members | (extra or {})).items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="session")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Upstream:
    folder = tmp_path_factory.mktemp("upstream")
    repo = folder / "repo"
    write_fake_source(repo)
    run_git("init", "-q", "-b", "master", cwd=repo)
    run_git("add", "-A", "-f", cwd=repo)
    run_git("commit", "-q", "-m", "first", cwd=repo)
    (repo / "src" / "new.cpp").write_text("int main() { return 0; }\n")
    run_git("add", "-A", cwd=repo)
    run_git("commit", "-q", "-m", "the pinned one", cwd=repo)
    commit = run_git("rev-parse", "HEAD", cwd=repo)
    tree = run_git("rev-parse", "HEAD^{tree}", cwd=repo)
    (repo / "README.md").write_text("later\n")
    run_git("commit", "-q", "-a", "-m", "later", cwd=repo)
    run_git("repack", "-q", "-a", "-d", cwd=repo)
    sdist = folder / "llama_stand_in-1.0.tar.gz"
    make_sdist(sdist, repo)
    sha = hashlib.sha256(sdist.read_bytes()).hexdigest()
    return Upstream(repo, sdist, Pin(commit, tree, "llama-stand-in==1.0", sha))


def _checkout_of_the_project(root: Path) -> None:
    (root / "patches").mkdir(parents=True)
    (root / "llama.cpp").mkdir()
    url = f"file://{root.parent / 'no-such-repository'}"
    (root / ".gitmodules").write_text(f'[submodule "llama.cpp"]\n\tpath = llama.cpp\n\turl = {url}\n')


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing outside the test's own folders can be fetched, and no setting of this machine shows through."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "no-such-index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name in ("DFLASH_SOURCE", "DFLASH_SOURCE_URL", "PIP_CONSTRAINT", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def ws(tmp_path: Path, upstream: Upstream, offline: None) -> Workspace:
    """A checkout of the project without any source."""
    _checkout_of_the_project(tmp_path / "checkout")
    return Workspace(tmp_path / "checkout", upstream.pin)


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> dict[str, Path]:
    """Checkouts that tests copy, because making them takes some sixty runs of git."""
    folder = tmp_path_factory.mktemp("templates")
    ws = Workspace(folder / "fetched", upstream.pin)
    _checkout_of_the_project(ws.root)
    fetch_source(ws, upstream.repo)
    shutil.copytree(ws.root, folder / "series", symlinks=True)
    ws = Workspace(folder / "series", upstream.pin)
    checkout(ws)
    commit(ws, "switch : name the tenth line", replace_line(ws, "src/long.cpp", "line_10 ", "tenth "))
    commit(ws, "loop : add a loop", {"src/loop.cpp": "void loop() {}\n", "tests/test-loop.cpp": "int main() {}\n"})
    export(ws)
    return {"fetched": folder / "fetched", "series": folder / "series"}


@pytest.fixture
def fetched(tmp_path: Path, templates: dict[str, Path], upstream: Upstream, offline: None) -> Workspace:
    """A checkout with the pinned objects in place and no patches."""
    shutil.copytree(templates["fetched"], tmp_path / "checkout", symlinks=True)
    return Workspace(tmp_path / "checkout", upstream.pin)


@pytest.fixture
def series(tmp_path: Path, templates: dict[str, Path], upstream: Upstream, offline: None) -> Workspace:
    """A checkout with two exported patches: one that changes a file, one that adds two, one of them a test."""
    shutil.copytree(templates["series"], tmp_path / "checkout", symlinks=True)
    return Workspace(tmp_path / "checkout", upstream.pin)


def with_pin(ws: Workspace, **changes: str) -> Workspace:
    return replace(ws, pin=replace(ws.pin, **changes))


def commit(ws: Workspace, subject: str, edits: dict[str, str | bytes], header: str = HEADER) -> str:
    """Commit file contents in the work tree, as a developer does."""
    for name, content in edits.items():
        path = ws.tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    run_git("add", "-A", "-f", cwd=ws.tree)
    run_git("commit", "-q", "-F", "-", cwd=ws.tree, stdin=f"{subject}\n\n{header}\n")
    return run_git("rev-parse", "HEAD", cwd=ws.tree)


def replace_line(ws: Workspace, name: str, old: str, new: str) -> dict[str, str | bytes]:
    """The edit that changes one text in one file of the work tree, for `commit`."""
    text = (ws.tree / name).read_text("utf-8")
    assert text.count(old) == 1
    return {name: text.replace(old, new)}


def patch_files(ws: Workspace) -> dict[str, bytes]:
    return {p.relative_to(ws.patches).as_posix(): p.read_bytes() for p in ws.patches.rglob("*") if p.is_file()}
