"""Get the pinned llama.cpp and prove that it is the pinned one.

The source is content-addressed: whatever it came from, its objects are copied object by object into a fresh repository
where git computes every hash anew, and the tree hash must be the pinned one. So all ways give the same bytes or none.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from dflash_tools.errors import UserError
from dflash_tools.fork.git import LOCAL_VARIABLES, GitError, git, git_line
from dflash_tools.fork.pin import Pin
from dflash_tools.fork.sdist import BadSourceError, NoSourceError, download_sdist, take_objects
from dflash_tools.fork.workspace import Say, Workspace, find_workspace, quiet

SILENCE = 20.0  # seconds without a word from the other side, after which a fetch is given up


def pinned_tree(ws: Workspace | None = None, say: Say = quiet) -> Path:
    """Folder with the files of the pinned llama.cpp, fetched and exported on first use, checked on every use (~0.1 s).

    Read it, run its converters, but do not edit it: an edited file is an error here, the place for edits is
    `.fork/llama.cpp`. Raises UserError when no way to the source works or the folder was changed.
    """
    ws = ws or find_workspace()
    fetch_source(ws, say=say)
    with ws.lock("pinned", say):
        if not ws.pinned.is_dir():
            with ws.scratch() as scratch:
                _export(ws, scratch / "pinned", scratch / "index")
                (scratch / "index").replace(ws.pinned_git / "export-index")
                (scratch / "pinned").replace(ws.pinned)
        changed = _changes(ws)
    if changed:
        shown = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        raise UserError(
            f"{ws.show(ws.pinned)} is a verified copy of llama.cpp {ws.pin.commit[:9]}, and it was changed: {shown}. "
            f"Edits belong into {ws.show(ws.tree)} (build-fork checkout). "
            f"Remove {ws.show(ws.pinned)} to have it made again."
        )
    return ws.pinned


def fetch_source(
    ws: Workspace, source: Path | None = None, url: str | None = None, say: Say = quiet, full_check: bool = False
) -> Path:
    """Bare repository with exactly the objects of the pinned commit; made if it is not there.

    `source` (a git repository, or a packed or unpacked sdist) is the only way tried when given, here or by the
    environment variable DFLASH_SOURCE. Else, in order: the submodule, a fetch of the one commit from `url`
    (DFLASH_SOURCE_URL, or the URL in .gitmodules), the sdist from the package index. `full_check` hashes all objects
    of a repository that is already there. Raises UserError naming every way tried and why it failed.
    """
    given = os.environ.get("DFLASH_SOURCE")
    source = source or (Path(given).expanduser() if given else None)
    with ws.lock("source", say):
        if ws.pinned_git.is_dir():
            damage = _damage(ws.pinned_git, ws.pin, full_check)
            if not damage:
                return ws.pinned_git
            say(f"{ws.show(ws.pinned_git)} is damaged ({damage}), fetching it again")
            shutil.rmtree(ws.pinned_git)
        if source is not None:
            ways: dict[str, Callable[[Path], Path]] = {
                str(source): lambda scratch: _given_repo(ws.pin, source, scratch)
            }
        else:
            ways = {
                "submodule": lambda _: _submodule_repo(ws),
                "git fetch": lambda scratch: _fetched_repo(ws, url, scratch),
                f"sdist {ws.pin.sdist}": lambda scratch: _sdist_repo(ws.pin, download_sdist(ws.pin, scratch), scratch),
            }
        failures = []
        for name, way in ways.items():
            with ws.scratch() as scratch:
                try:
                    _adopt(way(scratch), ws.pin, scratch / "adopted.git")
                except (NoSourceError, BadSourceError) as e:
                    kind = "refused: " if isinstance(e, BadSourceError) else ""
                    failures.append(f"{name}: {kind}{e}")
                    say(failures[-1])
                    continue
                (scratch / "adopted.git").replace(ws.pinned_git)
            say(f"{name}: llama.cpp {ws.pin.commit[:9]}, tree {ws.pin.tree} verified")
            return ws.pinned_git
    raise UserError(
        f"no way to the source of llama.cpp {ws.pin.commit[:9]} works here.\n"
        + "\n".join(f"  {line}" for failure in failures for line in failure.splitlines())
        + "\nGive it with --source PATH: a clone of llama.cpp that has this commit, or the file "
        f"{ws.pin.sdist.replace('==', '-').replace('-', '_', ws.pin.sdist.count('-'))}.tar.gz (or a folder it was "
        "unpacked to); or name another repository with --source-url."
    )


# The ways: each returns a git repository (below `scratch`, or somebody else's, which is only read)


def _submodule_repo(ws: Workspace) -> Path:
    if not (ws.submodule / ".git").exists():  # asking git would find the checkout around the empty folder
        raise NoSourceError("llama.cpp/ is not initialised (that is fine)")
    return ws.submodule


def _fetched_repo(ws: Workspace, url: str | None, scratch: Path) -> Path:
    url = url or os.environ.get("DFLASH_SOURCE_URL")
    if not url:
        try:
            url = git_line("config", "--file", ws.root / ".gitmodules", "submodule.llama.cpp.url")
        except GitError:
            raise NoSourceError(".gitmodules does not name a URL for llama.cpp") from None
    repo = scratch / "fetched.git"
    git("init", "--quiet", "--bare", "--template=", repo)
    words = ["git", "--git-dir", str(repo), "fetch", "--progress", "--depth=1", "--no-tags", "--", url, ws.pin.commit]
    said = _run_unless_silent(words, SILENCE)
    if said is not None:
        raise NoSourceError(f"{url}: {said}")
    return repo


def _run_unless_silent(words: list[str], patience: float) -> str | None:
    """Run a command with the user's own git settings (proxies, mirrors); end it when it says nothing for `patience` s.

    A dead route would keep git waiting for minutes. Returns None, or the line that says why it failed.
    """
    env = {k: v for k, v in os.environ.items() if k not in LOCAL_VARIABLES}
    env |= {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    env.setdefault("GIT_SSH_COMMAND", "ssh -o BatchMode=yes -o ConnectTimeout=15")
    process = subprocess.Popen(
        words,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    said: list[bytes] = []
    heard = time.monotonic()
    gave_up = False

    def watch() -> None:
        nonlocal gave_up
        while process.poll() is None:
            time.sleep(0.1)
            if time.monotonic() - heard > patience:
                gave_up = True
                _end_group(process)

    threading.Thread(target=watch, daemon=True).start()
    assert process.stderr is not None
    try:
        while block := os.read(process.stderr.fileno(), 4096):
            said.append(block)
            heard = time.monotonic()
        status = process.wait()
    except BaseException:
        _end_group(process)
        raise
    if gave_up:
        return f"no answer for {patience:g} s"
    if status:
        lines = [x for x in re.split(r"[\r\n]+", b"".join(said).decode("utf-8", "replace")) if x.strip()]
        return next(
            (x for x in lines if x.startswith(("fatal:", "error:"))), lines[-1] if lines else f"status {status}"
        )
    return None


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End git and the helpers (remote-https, ssh) it started in its session."""
    try:
        os.killpg(process.pid, signal.SIGTERM)
    except (ProcessLookupError, PermissionError):
        process.terminate()


def _sdist_repo(pin: Pin, sdist: Path, scratch: Path) -> Path:
    repo = scratch / "sdist.git"
    take_objects(pin, sdist, repo)
    return repo


def _given_repo(pin: Pin, source: Path, scratch: Path) -> Path:
    if source.is_file():
        return _sdist_repo(pin, source, scratch)
    if not source.is_dir():
        raise NoSourceError("there is no such file or folder")
    unpacked = source / ".git" / "modules" / pin.sdist_submodule
    for repo in (unpacked, source / ".git", source):
        if (repo / "objects").is_dir() or repo.is_file():  # a work tree of a submodule has a file named .git
            return source if repo.is_file() else repo
    raise NoSourceError("neither a git repository nor an unpacked sdist: it has no git objects to verify")


# Proof


def _adopt(repo: Path, pin: Pin, to: Path) -> None:
    """Copy the objects of the pinned commit from `repo` into the new bare repository `to`, hashing each anew."""

    def ask(*args: str, stdin: bytes | None = None) -> bytes:
        # GIT_NO_LAZY_FETCH: a partial clone must not start to download in the middle of a proof
        return git("-C", repo, *args, stdin=stdin, env={"GIT_NO_LAZY_FETCH": "1", "GIT_NO_REPLACE_OBJECTS": "1"})

    try:
        kind = ask("cat-file", "-t", pin.commit)
    except GitError as e:
        if re.search(r"corrupt|inflate|mismatch|unable to (read|unpack)|unable to mmap", str(e)):
            raise _damaged(pin, e) from e
        raise NoSourceError(f"does not have commit {pin.commit}{_head_of(repo)}") from e
    try:
        tree = ask("rev-parse", f"{pin.commit}^{{tree}}").decode().strip() if kind == b"commit\n" else "none"
        if tree != pin.tree:
            raise BadSourceError(_two_hashes(pin, tree))
        names = [line[:40] for line in ask("rev-list", "--objects", "--no-walk", pin.commit).splitlines()]
        # --window=0: take stored deltas as they are, look for no better ones
        pack = ask(
            "pack-objects", "--stdout", "-q", "--window=0", "--delta-base-offset", stdin=b"\n".join(names) + b"\n"
        )
        git("init", "--quiet", "--bare", "--template=", to)
        git("index-pack", "--stdin", git_dir=to, stdin=pack)
        (to / "shallow").write_text(f"{pin.commit}\n")
        git("update-ref", "refs/heads/pinned", pin.commit, git_dir=to)
        git("symbolic-ref", "HEAD", "refs/heads/pinned", git_dir=to)
        git("rev-list", "--objects", "--no-walk", pin.commit, git_dir=to)
        found = git_line("rev-parse", f"{pin.commit}^{{tree}}", git_dir=to)
    except GitError as e:
        raise _damaged(pin, e) from e
    if found != pin.tree:
        raise BadSourceError(_two_hashes(pin, found))


def _two_hashes(pin: Pin, found: str) -> str:
    return f"its tree is not the pinned one\n  expected tree {pin.tree}\n  found    tree {found}"


def _damaged(pin: Pin, error: GitError) -> BadSourceError:
    return BadSourceError(
        f"its objects are damaged\n  expected tree {pin.tree}\n  found    tree that cannot be read: {error.line}"
    )


def _head_of(repo: Path) -> str:
    try:
        return f" (it is at {git_line('-C', repo, 'rev-parse', '--verify', '--quiet', 'HEAD')})"
    except GitError:
        return ""


def _damage(repo: Path, pin: Pin, full: bool) -> str | None:
    """What is wrong with our own repository, or None. Cheap unless `full`: the tree hash only, not every object."""
    try:
        tree = git_line("rev-parse", f"{pin.commit}^{{tree}}", git_dir=repo)
        if tree != pin.tree:
            return f"tree {tree}, expected {pin.tree}"
        if full:
            git("fsck", "--full", "--no-dangling", "--no-progress", git_dir=repo)
    except GitError as e:
        return e.line
    return None


# The exported tree


def _export(ws: Workspace, to: Path, index: Path) -> None:
    """Write the files of the pinned tree into the new folder `to` and hash them once more from there."""
    to.mkdir()
    view = {"GIT_INDEX_FILE": str(index), "GIT_WORK_TREE": str(to)}
    try:
        git("read-tree", ws.pin.tree, git_dir=ws.pinned_git, env=view)
        git("checkout-index", "--all", "--index", git_dir=ws.pinned_git, env=view)
        index.unlink()  # its notes on the files would let the check below believe instead of reading
        git("read-tree", ws.pin.tree, git_dir=ws.pinned_git, env=view)
        git("update-index", "--refresh", "-q", git_dir=ws.pinned_git, env=view)
        git("diff-files", "--quiet", git_dir=ws.pinned_git, env=view)
    except GitError as e:
        raise UserError(
            f"{ws.show(ws.pinned_git)} could not be written out as tree {ws.pin.tree}: {e.line}. "
            f"Remove {ws.show(ws.pinned_git)} to have it fetched again; is the disk full?"
        ) from e


def _changes(ws: Workspace) -> list[str]:
    """Names of files in the exported tree that are not as exported. Reads only files whose size or time changed."""
    index = ws.pinned_git / "export-index"
    view = {"GIT_INDEX_FILE": str(index), "GIT_WORK_TREE": str(ws.pinned)}
    if not index.is_file():
        git("read-tree", ws.pin.tree, git_dir=ws.pinned_git, env=view)
    if git_line("write-tree", git_dir=ws.pinned_git, env=view) != ws.pin.tree:
        return ["export-index"]
    with contextlib.suppress(GitError):  # it fails because something differs, and the next line says what
        git("update-index", "--refresh", "-q", git_dir=ws.pinned_git, env=view)
    changed = git("diff-files", "--name-only", "-z", git_dir=ws.pinned_git, env=view)
    added = git("ls-files", "--others", "-z", git_dir=ws.pinned_git, cwd=ws.pinned, env=view)
    names = [name.decode("utf-8", "replace") for name in (changed + added).split(b"\0") if name]
    return [name for name in names if "__pycache__" not in name.split("/")]  # running a converter makes those
