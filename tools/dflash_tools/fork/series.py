"""The patch series: its form, and the proof that it applies exactly.

`patches/series` lists the patches in order. Each is one commit as `git format-patch` writes it, and its name follows
from its place and subject: patch 3, `recurrent : replay accepted rows`, is `recurrent/0003-replay-accepted-rows.patch`.
So nothing about a patch is kept anywhere but in the patch.

The proof is a round trip. Applying a patch makes a commit; writing that commit out must give the same file byte for
byte. A hunk that git moved, context that only nearly fits, a short hash, an edited line count: all change the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from pathlib import Path, PurePosixPath

from dflash_tools.errors import UserError
from dflash_tools.fork.git import GitError, git, git_line
from dflash_tools.fork.workspace import Workspace

FORMAT = ("format-patch", "--zero-commit", "--no-signature", "--full-index", "-N")
FIRST_LINE = b"From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001"
REQUIRED = ("Why", "Upstream", "Drop-when")
SUBJECT = re.compile(r"(?P<module>[a-z0-9][a-z0-9-]*) : (?P<title>\S.*)")
CODE = {
    *(".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".cuh", ".m", ".mm", ".metal", ".cl", ".comp", ".glsl", ".wgsl"),
    *(".py", ".sh", ".cmake", ".in"),
}
CODE_NAMES = {"CMakeLists.txt", "Makefile"}
# Besides the patches: the operators of ggml that the series touches, for the self-test of a build
EXTRA_FILES = {"series", "backend-ops"}


@dataclass
class Series:
    """The list in `patches/series`: comment lines at its top, then one patch a line, relative to the folder."""

    folder: Path
    comment: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def data(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def text(self) -> str:
        return "".join(f"{line}\n" for line in [*self.comment, *self.names])


@dataclass(frozen=True)
class Result:
    """What `validate` found about one patch (or, with an empty `name`, about the folder). No problem: it is proven."""

    name: str
    problems: tuple[str, ...]
    commit: str = ""


class PatchError(UserError):
    """A patch that git cannot put on the tree its predecessors leave."""


def read_series(folder: Path) -> Series:
    """The series of a patches folder; an absent list is an empty one. What the list says is not checked here."""
    series = Series(folder)
    listing = folder / "series"
    for line in listing.read_text("utf-8").splitlines() if listing.is_file() else []:
        if not series.names and (not line.strip() or line.startswith("#")):
            series.comment.append(line)
        else:
            series.names.append(line)
    return series


def patch_name(position: int, subject: str) -> str | None:
    """Path under `patches/` of the patch at `position` (from 1), or None when the subject is not `module : title`."""
    match = SUBJECT.fullmatch(subject)
    if not match:
        return None
    words = re.sub(r"[^a-z0-9]+", "-", match["title"].lower()).strip("-")
    if len(words) > 60:
        words = words[:61].rpartition("-")[0] or words[:60]
    return f"{match['module']}/{position:04d}-{words}.patch"


def folder_problems(series: Series) -> list[str]:
    """Whether the list and the files in the folder are the same set."""
    problems = []
    seen: set[str] = set()
    for name in series.names:
        path = PurePosixPath(name)
        if not name.strip() or name.startswith("#"):
            problems.append(f"series: {name!r} stands after the first patch; comments and empty lines only at the top")
        elif path.is_absolute() or ".." in path.parts or not re.fullmatch(r"[a-z0-9-]+/[a-z0-9-]+\.patch", name):
            problems.append(f"series: {name!r} is not of the form module/0001-name.patch")
        elif name in seen:
            problems.append(f"series: {name} is listed twice")
        elif not (series.folder / name).is_file() or (series.folder / name).is_symlink():
            problems.append(f"series: {name} is listed and there is no such file")
        seen.add(name)
    for path in sorted(series.folder.rglob("*")):
        name = path.relative_to(series.folder).as_posix()
        if not path.is_dir() and name not in seen and name not in EXTRA_FILES:
            problems.append(f"{name}: not listed in series; list it or remove it")
    return problems


def form_problems(name: str, position: int, data: bytes) -> list[str]:
    """What is wrong with the form of one patch, as far as the file alone tells."""
    problems = []
    lines = data.split(b"\n")
    if lines[0] != FIRST_LINE:
        problems.append(f"line 1 is {_shown(lines[0])}; format-patch --zero-commit writes From and forty zeros")
    head, _, diff = data.partition(b"\ndiff --git ")
    message = head.partition(b"\n---\n")[0].decode("utf-8", "replace")
    subject = _subject(message)
    if subject is None:
        problems.append("no line 'Subject: [PATCH] module : title' (format-patch -N writes it without numbers)")
    else:
        expected = patch_name(position, subject)
        if expected is None:
            problems.append(f"subject is {subject!r}, expected 'module : title', the module being the folder")
        elif expected != name:
            problems.append(f"place and subject name it {expected}; checkout and export rename it")
    body = message.partition("\n\n")[2]
    missing = [key for key in REQUIRED if not re.search(rf"^{key}: *\S", body, re.MULTILINE)]
    problems += [f"no '{key}:' line in the header" for key in missing]
    if not diff:
        problems.append("changes nothing: there is no 'diff --git' in it")
    for at, line in enumerate(lines, 1):
        if line.startswith(b"index ") and not re.fullmatch(rb"index [0-9a-f]{40}\.\.[0-9a-f]{40}( [0-7]{6})?", line):
            problems.append(f"line {at}: {_shown(line)}; format-patch --full-index writes hashes of 40 digits")
        if line in (b"GIT binary patch", b"-- ") or line.startswith(b"Binary files "):
            problems.append(f"line {at}: {_shown(line)} (no binary files, no signature: nobody can review them)")
    for path, at, text in _added_lines(lines):
        code = PurePosixPath(path).suffix in CODE or PurePosixPath(path).name in CODE_NAMES
        if code and (not text.isascii() or text.endswith(b"\r")):
            what = "a carriage return" if text.endswith(b"\r") else "non-ASCII text"
            problems.append(f"line {at}: adds {what} to {path}: {_shown(text)}")
    return problems


def _subject(message: str) -> str | None:
    """The subject as it was written, from its form in a mail header: folded, and encoded where it is not ASCII."""
    raw = re.search(r"^Subject: ((?:.|\n )*)$", message, re.MULTILINE)
    try:
        subject = str(make_header(decode_header(raw[1].replace("\n ", " ")))) if raw else ""
    except (HeaderParseError, LookupError, UnicodeError):
        return None
    return subject.removeprefix("[PATCH] ") if subject.startswith("[PATCH] ") else None


def _added_lines(lines: Sequence[bytes]) -> Iterator[tuple[str, int, bytes]]:
    """(file, line number in the patch, text) of every line a patch adds."""
    path, left_old, left_new = "", 0, 0
    for at, line in enumerate(lines, 1):
        if left_old > 0 or left_new > 0:
            left_old -= line[:1] in (b" ", b"-", b"")
            left_new -= line[:1] in (b" ", b"+", b"")
            if line.startswith(b"+"):
                yield path, at, line[1:]
        elif line.startswith(b"+++ "):
            path = line[4:].decode("utf-8", "replace").removeprefix("b/")
        elif hunk := re.match(rb"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@", line):
            left_old, left_new = (int(n) if n is not None else 1 for n in hunk.groups())


def _shown(line: bytes) -> str:
    text = line[:60].decode("utf-8", "replace")
    return f"'{ascii(text)[1:-1]}{'...' if len(line) > 60 else ''}'"


# Applying


def apply_patch(data: bytes, name: str, parent: str, git_dir: Path, env: Mapping[str, str], scratch: Path) -> str:
    """Commit one patch on `parent`, whose tree is in the index that `env` names, and return the commit.

    The commit depends on the patch and the parent only: author and committer are both the patch's author and date.
    Raises PatchError.
    """
    message, diff = scratch / "message", scratch / "diff"
    try:
        info = git("mailinfo", "--encoding=UTF-8", message, diff, git_dir=git_dir, stdin=data).decode(
            "utf-8", "replace"
        )
        found = dict(re.findall(r"^(Author|Email|Subject|Date): (.*)$", info, re.MULTILINE))
        missing = {"Author", "Email", "Subject", "Date"} - found.keys()
        if missing or not diff.stat().st_size:
            raise PatchError(f"{name}: not a patch as git format-patch writes it ({', '.join(missing) or 'no diff'})")
        git("apply", "--cached", "--whitespace=nowarn", diff, git_dir=git_dir, env=env)
        tree = git_line("write-tree", git_dir=git_dir, env=env)
        who = {
            f"GIT_{role}_{key}": found[word]
            for role in ("AUTHOR", "COMMITTER")
            for key, word in (("NAME", "Author"), ("EMAIL", "Email"), ("DATE", "Date"))
        }
        body = message.read_bytes().strip(b"\n")
        text = found["Subject"].encode() + (b"\n\n" + body if body else b"") + b"\n"
        return git_line("commit-tree", tree, "-p", parent, "-F", "-", git_dir=git_dir, env={**env, **who}, stdin=text)
    except GitError as e:
        raise PatchError(f"{name}: does not apply: {_readable(e)}") from e


def _readable(error: GitError) -> str:
    """git's complaint about a patch as one line: which file, which hunk."""
    return "; ".join(x.removeprefix("error: ") for x in str(error).splitlines() if x.strip())


def apply_series(ws: Workspace, series: Series, objects: Path, scratch: Path) -> list[str]:
    """Commit all patches on the pinned commit, new objects into the folder `objects`. Returns the commits, in order.

    Raises PatchError for the first patch that does not fit.
    """
    env = start(ws, objects, scratch)
    commits: list[str] = []
    for name in series.names:
        parent = commits[-1] if commits else ws.pin.commit
        try:
            data = series.data(name)
        except OSError:
            raise UserError(f"{ws.show(series.folder / name)}: listed in series and there is no such file") from None
        commits.append(apply_patch(data, name, parent, ws.pinned_git, env, scratch))
    return commits


def start(ws: Workspace, objects: Path, scratch: Path) -> dict[str, str]:
    """Environment with an index of the pinned tree in `scratch`, and `objects` as the place for new objects."""
    objects.mkdir(parents=True, exist_ok=True)
    env = {
        "GIT_INDEX_FILE": str(scratch / "index"),
        "GIT_OBJECT_DIRECTORY": str(objects),
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(ws.pinned_git / "objects"),
    }
    git("read-tree", ws.pin.tree, git_dir=ws.pinned_git, env=env)
    return env


def write_patches(ws: Workspace, head: str, objects: Path, to: Path) -> list[bytes]:
    """The commits after the pinned one up to `head`, which lie in `objects`, each as the bytes of its patch file."""
    if head == ws.pin.commit:
        return []
    env = {"GIT_ALTERNATE_OBJECT_DIRECTORIES": str(objects)}
    words = [*FORMAT, "--numbered-files", "--quiet", "--output-directory", to, f"{ws.pin.commit}..{head}"]
    git(*words, git_dir=ws.pinned_git, env=env)
    count = len(list(to.iterdir()))
    return [(to / str(n)).read_bytes() for n in range(1, count + 1)]


def validate(ws: Workspace, folder: Path | None = None) -> list[Result]:
    """Prove the series in `folder` (the checkout's own by default) against the objects of the pinned commit.

    Needs no work tree: an index and a folder of new objects, both thrown away. Patches after one that does not apply
    are checked for their form only. Returns one Result a patch, the first one being about the folder.
    """
    series = read_series(folder or ws.patches)
    results = [Result("", tuple(folder_problems(series)))]
    if results[0].problems:
        return results
    with ws.scratch() as scratch:
        env = start(ws, scratch / "objects", scratch)
        parent = ws.pin.commit
        stopped_at = ""
        for position, name in enumerate(series.names, 1):
            data = series.data(name)
            problems = form_problems(name, position, data)
            commit = ""
            if stopped_at:
                problems.append(f"not tried, because {stopped_at} does not apply")
            else:
                try:
                    commit = parent = apply_patch(data, name, parent, ws.pinned_git, env, scratch)
                except PatchError as e:
                    stopped_at = name
                    problems.append(str(e).removeprefix(f"{name}: "))
            results.append(Result(name, tuple(problems), commit))
        written = write_patches(ws, parent, scratch / "objects", scratch / "written")
        for at, again in enumerate(written, 1):
            was = results[at]
            if again != series.data(was.name):
                difference = _first_difference(series.data(was.name), again)
                results[at] = Result(was.name, (*was.problems, difference), was.commit)
    return results


def _first_difference(file: bytes, again: bytes) -> str:
    """Where a patch and its round trip part, in words."""
    old, new = file.split(b"\n"), again.split(b"\n")
    at = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    a, b = (_shown(lines[at]) if at < len(lines) else "the end of the file" for lines in (old, new))
    moved = at < len(old) and old[at].startswith((b"@@", b"index "))
    reason = (
        "it fits only with an offset, or on another file than it was made for" if moved else "not as export writes it"
    )
    return f"does not round-trip: line {at + 1} is {a}, written again it is {b}; {reason}"
