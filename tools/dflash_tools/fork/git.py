"""Run git the same way on every machine: no user configuration, no prompt, English messages, no other repository."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from dflash_tools.errors import UserError

# From `git rev-parse --local-env-vars`: set when we are called from a git hook or alias, about another repository.
LOCAL_VARIABLES = (
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_CONFIG",
    "GIT_OBJECT_DIRECTORY",
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_IMPLICIT_WORK_TREE",
    "GIT_GRAFT_FILE",
    "GIT_INDEX_FILE",
    "GIT_NO_REPLACE_OBJECTS",
    "GIT_REPLACE_REF_BASE",
    "GIT_PREFIX",
    "GIT_SHALLOW_FILE",
    "GIT_COMMON_DIR",
)

# Settings of the user or of a repository that would change bytes on disk, and hence hashes.
PLAIN = (
    *("-c", "core.autocrlf=false"),
    *("-c", "core.eol=lf"),
    *("-c", "core.attributesFile=/dev/null"),
    *("-c", "core.checkStat=minimal"),
    *("-c", "core.trustctime=false"),
    *("-c", "core.fsmonitor=false"),
    *("-c", "core.quotePath=false"),
    *("-c", "gc.auto=0"),
    *("-c", "safe.directory=*"),
)


class GitError(UserError):
    """git failed. `str()` is what it wrote, as one text.

    Where a caller can say more it catches this; where it cannot (disk full, no permission), git's own words must do.
    """

    def __init__(self, args: Sequence[str], status: int, stderr: str):
        super().__init__(stderr.strip() or f"git {' '.join(args)} ended with status {status}")

    @property
    def line(self) -> str:
        """The line that says most: the first `fatal:` or `error:`, else the last one."""
        lines = str(self).splitlines()
        return next((x for x in lines if x.startswith(("fatal:", "error:"))), lines[-1])


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for `git` below: the user's, without any `GIT_*` and without configuration files."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    env |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    return env | dict(extra or {})


def git(
    *args: str | Path,
    git_dir: Path | None = None,
    cwd: Path | None = None,
    stdin: bytes | None = None,
    env: Mapping[str, str] | None = None,
) -> bytes:
    """Standard output of `git args`, in isolation from the user's configuration.

    `git_dir` names the repository (never searched for upwards when given); `env` adds variables such as GIT_INDEX_FILE.
    Raises GitError when git does, UserError when there is no git.
    """
    words = ["git", *PLAIN, *([f"--git-dir={git_dir}"] if git_dir else []), *map(str, args)]
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            input=stdin if stdin is not None else b"",
            env=environment(env),
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        raise UserError("git is not installed; the source and the patches are kept with it. Install git.") from None
    if done.returncode:
        raise GitError([str(a) for a in args], done.returncode, done.stderr.decode("utf-8", "replace"))
    return done.stdout


def git_line(*args: str | Path, **kwargs: object) -> str:
    """`git` for commands that answer with one line."""
    return git(*args, **kwargs).decode("utf-8", "replace").strip()  # type: ignore[arg-type]
