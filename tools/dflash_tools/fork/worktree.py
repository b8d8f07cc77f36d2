"""The git work tree in which patches are made: every patch of the series as a commit, and back.

`.fork/llama.cpp` has the branch `fork`, the tag `pinned` below the first patch, and two notes to itself:
`refs/dflash/series`, the commit that was last checked out or exported, and `refs/dflash/before-force`, what a forced
checkout set aside.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from dflash_tools.errors import UserError
from dflash_tools.fork.git import GitError, git, git_line
from dflash_tools.fork.series import EXTRA_FILES, Series, apply_series, patch_name, read_series, validate, write_patches
from dflash_tools.fork.source import fetch_source
from dflash_tools.fork.workspace import Say, Workspace, quiet

EXPORTED = "refs/dflash/series"
BEFORE_FORCE = "refs/dflash/before-force"
IN_PROGRESS = {
    "rebase-merge": "a rebase",
    "rebase-apply": "a rebase or git am",
    "MERGE_HEAD": "a merge",
    "CHERRY_PICK_HEAD": "a cherry-pick",
}
NOBODY = {"GIT_AUTHOR_NAME": "build-fork", "GIT_AUTHOR_EMAIL": "build-fork@localhost"}
NOBODY |= {key.replace("AUTHOR", "COMMITTER"): value for key, value in NOBODY.items()}


def checkout(ws: Workspace, force: bool = False, say: Say = quiet) -> str:
    """Bring `.fork/llama.cpp` to the series in `patches/` and return its commit. Unchanged files are not touched.

    Raises UserError, changing nothing, when a patch does not apply, or when the work tree holds edits or commits that
    are not in `patches/` and `force` is not set. What `force` replaces stays reachable as refs/dflash/before-force.
    """
    fetch_source(ws, say=say)
    with ws.lock("tree", say):
        series = read_series(ws.patches)
        if not (ws.tree / ".git").is_dir():
            if ws.tree.exists():
                raise UserError(f"{ws.show(ws.tree)} is in the way: it is not a git work tree. Move it away.")
            head = _create(ws, series)
        else:
            head = _update(ws, series, force, say)
        say(f"{ws.show(ws.tree)}: {_count(len(series.names), 'patch')} on llama.cpp {ws.pin.commit[:9]}")
        return head


def _create(ws: Workspace, series: Series) -> str:
    with ws.scratch() as tree:  # a sibling of the final place, so that the relative path to the pinned objects holds
        tree.chmod(0o755)
        git("init", "--quiet", "--template=", "--initial-branch=fork", tree)
        meta = tree / ".git"
        (meta / "objects" / "info").mkdir(exist_ok=True)
        (meta / "objects" / "info" / "alternates").write_text(f"../../../{ws.pinned_git.name}/objects\n")
        (meta / "shallow").write_text(f"{ws.pin.commit}\n")
        (meta / "info").mkdir(exist_ok=True)
        for key, value in {"core.autocrlf": "false", "advice.detachedHead": "false", "gc.auto": "0"}.items():
            git("config", key, value, cwd=tree)
        with ws.scratch() as scratch:
            commits = apply_series(ws, series, meta / "objects", scratch)
        head = commits[-1] if commits else ws.pin.commit
        git("update-ref", "refs/tags/pinned", ws.pin.commit, cwd=tree)
        git("update-ref", "refs/heads/fork", head, cwd=tree)
        git("update-ref", EXPORTED, head, cwd=tree)
        git("reset", "--hard", "--quiet", cwd=tree)
        tree.rename(ws.tree)
    return head


def _update(ws: Workspace, series: Series, force: bool, say: Say) -> str:
    with ws.scratch() as scratch:
        commits = apply_series(ws, series, ws.tree / ".git" / "objects", scratch)
    head = commits[-1] if commits else ws.pin.commit
    unsaved = unsaved_work(ws, head)
    if unsaved and not force:
        raise UserError(
            f"{ws.show(ws.tree)} has work that is not in patches/: {'; '.join(unsaved)}. Finish it, commit it and "
            "'build-fork export' it, or set it aside with 'build-fork checkout --force'."
        )
    if unsaved:
        git("add", "--update", cwd=ws.tree)  # files in conflict cannot be stashed
        kept = git_line("stash", "create", cwd=ws.tree, env=NOBODY) or git_line("rev-parse", "HEAD", cwd=ws.tree)
        git("update-ref", BEFORE_FORCE, kept, cwd=ws.tree)
        say(f"set aside in {ws.show(ws.tree)} as {BEFORE_FORCE}: {'; '.join(unsaved)}")
        for name in IN_PROGRESS:
            path = ws.tree / ".git" / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    try:
        git("checkout", "--quiet", *(["--force"] if force else []), "-B", "fork", head, cwd=ws.tree)
    except GitError as e:
        raise UserError(f"{ws.show(ws.tree)}: {e}") from e
    git("update-ref", EXPORTED, head, cwd=ws.tree)
    return head


def unsaved_work(ws: Workspace, series_head: str | None = None) -> list[str]:
    """What a new checkout would lose, in words; empty when all of the work tree is in `patches/` or was never changed.

    `series_head` is the commit that the series leads to, if known: a work tree that is there has nothing to lose.
    Files git does not know are not counted: a checkout leaves them alone.
    """
    work = [f"{what} is in progress" for name, what in IN_PROGRESS.items() if (ws.tree / ".git" / name).exists()]
    if edits := _edits(ws):
        work.append(f"{_count(len(edits), 'edited file')} ({', '.join(edits[:3])}{', ...' if len(edits) > 3 else ''})")
    head, exported = (_commit(ws, name) for name in ("HEAD", EXPORTED))
    if head not in (exported, series_head):
        new = int(git_line("rev-list", "--count", f"{exported}..HEAD", cwd=ws.tree)) if exported else 0
        work.append(
            f"{_count(new, 'commit')} since the last checkout or export" if new else "fewer commits than exported"
        )
    return work


def _commit(ws: Workspace, name: str) -> str:
    try:
        return git_line("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}", cwd=ws.tree)
    except GitError:
        return ""


def _edits(ws: Workspace) -> list[str]:
    lines = git("status", "--porcelain", "-z", "--untracked-files=no", "--no-renames", cwd=ws.tree).split(b"\0")
    return [line[3:].decode("utf-8", "replace") for line in lines if line]


def export(ws: Workspace, say: Say = quiet) -> list[str]:
    """Rewrite `patches/` from the commits of `.fork/llama.cpp`; returns the names in order.

    The new files are proven like `validate` proves them before one old file is touched; files of patches that are gone
    are removed. Raises UserError, changing nothing, when the commits or their messages do not make valid patches.
    """
    with ws.lock("tree", say):
        if not (ws.tree / ".git").is_dir():
            raise UserError(f"{ws.show(ws.tree)} is not there yet: run 'build-fork checkout' first.")
        busy = [what for name, what in IN_PROGRESS.items() if (ws.tree / ".git" / name).exists()]
        if busy:
            raise UserError(f"{ws.show(ws.tree)}: {busy[0]} is in progress; finish it first.")
        if edits := _edits(ws):
            raise UserError(
                f"{ws.show(ws.tree)}: {', '.join(edits)} changed and not committed. Only commits are exported: commit "
                "them (git commit --fixup, then git rebase --autosquash pinned), or put them away (git stash)."
            )
        head = git_line("rev-parse", "HEAD", cwd=ws.tree)
        _check_line_of_commits(ws, head)
        old = read_series(ws.patches)
        with ws.scratch() as scratch:
            new = _write_series(ws, head, old, scratch)
            _replace(old, new)
        git("update-ref", EXPORTED, head, cwd=ws.tree)
    unknown = git("ls-files", "--others", "--exclude-standard", "-z", cwd=ws.tree).split(b"\0")[:-1]
    if unknown:
        say(f"not exported, because git does not know them: {', '.join(name.decode() for name in unknown)}")
    return new.names


def _check_line_of_commits(ws: Workspace, head: str) -> None:
    try:
        git("merge-base", "--is-ancestor", ws.pin.commit, head, cwd=ws.tree)
    except GitError:
        raise UserError(f"{ws.show(ws.tree)}: HEAD does not stand on the pinned commit {ws.pin.commit}.") from None
    merges = git_line("rev-list", "--min-parents=2", f"{ws.pin.commit}..{head}", cwd=ws.tree)
    if merges:
        raise UserError(f"{ws.show(ws.tree)}: {merges.split()[0]} is a merge; a series is a line (git rebase pinned).")


def _write_series(ws: Workspace, head: str, old: Series, scratch: Path) -> Series:
    """The commits up to `head` as a proven series in a folder below `scratch`."""
    new = Series(scratch / "patches", old.comment)
    new.folder.mkdir()
    (scratch / "numbered").mkdir()
    subjects = git("log", "--reverse", "--format=%s", f"{ws.pin.commit}..{head}", cwd=ws.tree).decode(
        "utf-8", "replace"
    )
    files = write_patches(ws, head, ws.tree / ".git" / "objects", scratch / "numbered")
    for position, (subject, data) in enumerate(zip(subjects.splitlines(), files, strict=True), 1):
        name = patch_name(position, subject)
        if name is None:
            raise UserError(f"{ws.show(ws.tree)}: the subject {subject!r} is not 'module : title'; reword the commit.")
        new.names.append(name)
        (new.folder / name).parent.mkdir(exist_ok=True)
        (new.folder / name).write_bytes(data)
    (new.folder / "series").write_text(new.text(), "utf-8")
    problems = [f"  {result.name}: {p}" for result in validate(ws, new.folder) for p in result.problems]
    if problems:
        raise UserError("these commits do not make valid patches; nothing was exported\n" + "\n".join(problems))
    return new


def _replace(old: Series, new: Series) -> None:
    """Put the files of `new` into the folder of `old`, each by a rename, the list after what it names."""
    old.folder.mkdir(exist_ok=True)
    for name in [*new.names, "series"]:
        target = old.folder / name
        if not target.is_file() or target.read_bytes() != (new.folder / name).read_bytes():
            target.parent.mkdir(exist_ok=True)
            (new.folder / name).replace(target)
    for path in sorted(old.folder.rglob("*"), reverse=True):
        name = path.relative_to(old.folder).as_posix()
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif name not in EXTRA_FILES and name not in new.names and re.fullmatch(r".*\.patch", name):
            path.unlink()


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}{'es' if what.endswith('ch') else 's'}"
