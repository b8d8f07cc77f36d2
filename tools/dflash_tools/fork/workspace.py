"""The folders of one checkout: where the series lies and where everything that is made goes (`.fork/`)."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dflash_tools.errors import UserError
from dflash_tools.fork.pin import PIN, Pin

try:
    import fcntl
except ImportError:  # not on Windows: two runs at once are then the user's to avoid
    fcntl = None  # type: ignore[assignment]

Say = Callable[[str], None]


def quiet(_line: str) -> None:
    """A `Say` that says nothing."""


@dataclass(frozen=True)
class Workspace:
    """The paths of a checkout of this project. All that build-fork makes lies under `made`, which git ignores."""

    root: Path
    pin: Pin = PIN

    @property
    def patches(self) -> Path:
        return self.root / "patches"

    @property
    def submodule(self) -> Path:
        return self.root / "llama.cpp"

    @property
    def made(self) -> Path:
        return self.root / ".fork"

    @property
    def pinned_git(self) -> Path:
        """Bare repository with the objects of the pinned commit and nothing else."""
        return self.made / "pinned.git"

    @property
    def pinned(self) -> Path:
        """The pinned tree, exported and verified."""
        return self.made / "pinned"

    @property
    def tree(self) -> Path:
        """The git work tree with every patch as a commit: what is edited and what is built."""
        return self.made / "llama.cpp"

    @property
    def bin(self) -> Path:
        """Symbolic link to the programs of the last build that passed its self-test."""
        return self.made / "bin"

    @property
    def upstream(self) -> Path:
        """Folder of builds without patches. From it the source is `llama.cpp`, as it is for the fork's builds: with the
        same relative paths a compiler cache finds what both have in common.
        """
        return self.made / "upstream"

    @property
    def upstream_bin(self) -> Path:
        """The same of the last build without patches, to measure the fork against."""
        return self.made / "upstream-bin"

    @contextlib.contextmanager
    def lock(self, name: str, say: Say = quiet) -> Iterator[None]:
        """Hold `.fork/<name>.lock`, so that two runs in one checkout follow each other instead of colliding."""
        self.made.mkdir(exist_ok=True)
        with (self.made / f"{name}.lock").open("w") as handle:
            if fcntl is not None:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    say("waiting for another build-fork in this checkout")
                    fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A new folder under `.fork/`, so that renaming out of it is atomic; gone at the end, whatever happens.

        What a killed run left is swept a day later.
        """
        self.made.mkdir(exist_ok=True)
        for left in self.made.glob("tmp-*"):
            with contextlib.suppress(OSError):  # another run may be sweeping too
                if time.time() - left.stat().st_mtime > 86400:
                    shutil.rmtree(left)
        folder = Path(tempfile.mkdtemp(prefix="tmp-", dir=self.made))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def show(self, path: Path) -> str:
        """`path` as a person standing in the checkout would type it."""
        try:
            return path.relative_to(self.root).as_posix()
        except ValueError:
            return str(path)


def find_workspace(start: Path | None = None) -> Workspace:
    """The checkout that the current folder (or `start`) lies in, else the one this package is run from.

    Raises UserError when neither is a checkout of llama-dflash.
    """
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[3]):
        project = folder / "pyproject.toml"
        if project.is_file() and re.search(r'^name = "llama-dflash"$', project.read_text("utf-8"), re.MULTILINE):
            return Workspace(folder)
    raise UserError(
        f"{here} is not inside a checkout of llama-dflash (no pyproject.toml of that name here or above). "
        "The patches and the pin belong to a checkout: clone the project and run build-fork there."
    )
