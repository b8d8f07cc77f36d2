"""Every way to the source gives the pinned tree or nothing at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from build_helpers import make_sdist, run_git, with_pin
from dflash_tools.errors import UserError
from dflash_tools.fork import source
from dflash_tools.fork.pin import PIN
from dflash_tools.fork.source import fetch_source, pinned_tree
from dflash_tools.fork.workspace import Workspace, find_workspace


def made(ws: Workspace) -> list[str]:
    """What lies in .fork, locks aside."""
    return sorted(p.name for p in ws.made.iterdir() if p.suffix != ".lock") if ws.made.is_dir() else []


def assert_is_the_pinned_tree(ws: Workspace) -> None:
    tree = pinned_tree(ws)
    assert (tree / "src" / "new.cpp").read_text() == "int main() { return 0; }\n"
    assert (tree / "dos.txt").read_bytes() == b"one\r\ntwo\r\n"
    assert os.access(tree / "tool.sh", os.X_OK) and (tree / "link").is_symlink()
    assert (tree / "kept.o").is_file(), "a tracked file that upstream's own .gitignore names"
    assert not (tree / ".git").exists()


def submodule_of(ws: Workspace, repo: Path, commit: str) -> None:
    ws.submodule.rmdir()
    run_git("clone", "-q", repo, ws.submodule, cwd=ws.root)
    run_git("checkout", "-q", commit, cwd=ws.submodule)


# the ways


def test_initialised_submodule_is_taken_first(ws, upstream, monkeypatch):
    monkeypatch.setattr(source, "_fetched_repo", lambda *_: pytest.fail("the network was asked"))
    submodule_of(ws, upstream.repo, upstream.pin.commit)
    lines: list[str] = []
    fetch_source(ws, say=lines.append)
    assert lines == [f"submodule: llama.cpp {ws.pin.commit[:9]}, tree {ws.pin.tree} verified"]
    assert_is_the_pinned_tree(ws)


def test_submodule_as_git_makes_it_with_a_file_for_dot_git(ws, upstream):
    run_git("init", "-q", cwd=ws.root)
    ws.submodule.rmdir()
    command = ["-c", "protocol.file.allow=always", "submodule", "add", "-q", "--force", upstream.repo, "llama.cpp"]
    run_git(*command, cwd=ws.root)
    assert (ws.submodule / ".git").is_file()
    fetch_source(ws)
    assert_is_the_pinned_tree(ws)


def test_empty_submodule_folder_inside_a_checkout_is_not_taken_for_the_checkout(ws, upstream):
    run_git("init", "-q", cwd=ws.root)
    with pytest.raises(UserError, match="not initialised"):
        fetch_source(ws)


def test_fetch_takes_the_one_commit_and_not_the_history(ws, upstream):
    fetch_source(ws, url=f"file://{upstream.repo}")
    assert_is_the_pinned_tree(ws)
    assert run_git("rev-list", "--count", ws.pin.commit, cwd=ws.pinned_git) == "1"


def test_fetch_uses_the_url_of_gitmodules(ws, upstream):
    url = f"file://{upstream.repo}"
    (ws.root / ".gitmodules").write_text(f'[submodule "llama.cpp"]\n\tpath = llama.cpp\n\turl = {url}\n')
    lines: list[str] = []
    fetch_source(ws, say=lines.append)
    assert lines[-1].startswith("git fetch: ")
    assert_is_the_pinned_tree(ws)


def test_a_server_that_accepts_and_says_nothing_is_given_up(ws, monkeypatch):
    monkeypatch.setattr(source, "SILENCE", 0.5)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/llama.cpp.git"
        monkeypatch.setenv("no_proxy", "*")
        start = time.monotonic()
        with pytest.raises(UserError, match=r"no answer for 0\.5 s"):
            fetch_source(ws, url=url)
    assert time.monotonic() - start < 15


def test_sdist_comes_through_pip_without_running_its_code(ws, upstream, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(upstream.sdist.parent))
    lines: list[str] = []
    fetch_source(ws, say=lines.append)
    assert lines[-1].startswith("sdist llama-stand-in==1.0: ")
    assert_is_the_pinned_tree(ws)


def test_sdist_of_another_hash_is_refused_with_both_hashes(ws, upstream, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(upstream.sdist.parent))
    other = with_pin(ws, sdist_sha256="0" * 64)
    with pytest.raises(UserError) as e:
        fetch_source(other)
    assert "0" * 64 in str(e.value) and upstream.pin.sdist_sha256 in str(e.value)
    assert made(ws) == []


@pytest.mark.parametrize("form", ["file", "unpacked", "clone", "bare", "objects"])
def test_source_can_be_given_in_any_form(ws, upstream, tmp_path, form):
    if form == "file":
        given = upstream.sdist
    elif form == "unpacked":
        shutil.unpack_archive(upstream.sdist, tmp_path / "unpacked", "gztar", **_tar_filter())
        given = tmp_path / "unpacked" / "llama_stand_in-1.0"
        repo = given / ".git" / "modules" / "vendor" / "llama.cpp"
        (repo / "HEAD").write_text("ref: refs/heads/master\n")
        (repo / "refs").mkdir()
    elif form == "clone":
        given = upstream.repo
    elif form == "bare":
        given = tmp_path / "bare.git"
        run_git("clone", "-q", "--bare", upstream.repo, given, cwd=tmp_path)
    else:  # what another checkout keeps in .fork
        first = Workspace(tmp_path / "first", ws.pin)
        first.root.mkdir()
        given = fetch_source(first, upstream.repo)
    fetch_source(ws, given)
    assert_is_the_pinned_tree(ws)


def _tar_filter() -> dict[str, str]:
    return {"filter": "data"} if sys.version_info >= (3, 12) else {}


def test_environment_gives_the_source(ws, upstream, monkeypatch):
    monkeypatch.setenv("DFLASH_SOURCE", str(upstream.sdist))
    assert_is_the_pinned_tree(ws)


def test_given_source_is_the_only_way_tried(ws, upstream, tmp_path):
    (ws.root / ".gitmodules").write_text(f'[submodule "llama.cpp"]\n\turl = file://{upstream.repo}\n')
    with pytest.raises(UserError, match="no such file or folder"):
        fetch_source(ws, tmp_path / "nothing")
    (tmp_path / "files").mkdir()
    with pytest.raises(UserError, match="no git objects"):
        fetch_source(ws, tmp_path / "files")


def test_failure_names_every_way_and_why(ws):
    with pytest.raises(UserError) as e:
        fetch_source(ws)
    text = str(e.value)
    assert "submodule: llama.cpp/ is not initialised" in text
    assert "git fetch: file://" in text and "no-such-repository" in text
    assert "sdist llama-stand-in==1.0: pip could not download" in text
    assert "--source PATH" in text and "llama_stand_in-1.0.tar.gz" in text
    assert made(ws) == []


# wrong and damaged sources


def test_wrong_tree_is_refused_with_both_hashes(ws, upstream):
    wrong = with_pin(ws, tree="1" * 40)
    with pytest.raises(UserError) as e:
        fetch_source(wrong, upstream.repo)
    assert "expected tree " + "1" * 40 in str(e.value)
    assert "found    tree " + upstream.pin.tree in str(e.value)
    assert made(ws) == []


def test_submodule_at_a_commit_that_lacks_the_pinned_one_is_passed_over(ws, upstream, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    run_git("init", "-q", cwd=other)
    run_git("commit", "-q", "--allow-empty", "-m", "unrelated", cwd=other)
    head = run_git("rev-parse", "HEAD", cwd=other)
    submodule_of(ws, other, head)
    lines: list[str] = []
    fetch_source(ws, url=f"file://{upstream.repo}", say=lines.append)
    assert lines[0] == f"submodule: does not have commit {ws.pin.commit} (it is at {head})"
    assert lines[1].startswith("git fetch: ")


def flip_a_byte(pack: Path, at: float) -> None:
    pack.chmod(0o644)
    data = bytearray(pack.read_bytes())
    data[int(len(data) * at)] ^= 0x20
    pack.write_bytes(data)


@pytest.mark.parametrize("at", [0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9])
def test_flipped_byte_in_the_pack_is_refused_and_leaves_nothing(ws, upstream, tmp_path, at):
    damaged = tmp_path / "damaged"
    shutil.copytree(upstream.repo, damaged)
    # without the later commit, so that every byte belongs to the pinned one
    run_git("update-ref", "refs/heads/master", upstream.pin.commit, cwd=damaged)
    (damaged / ".git" / "shallow").write_text(upstream.pin.commit + "\n")
    run_git("-c", "gc.reflogExpire=now", "reflog", "expire", "--expire=now", "--all", cwd=damaged)
    run_git("gc", "-q", "--prune=now", cwd=damaged)
    for loose in (damaged / ".git" / "objects").glob("[0-9a-f][0-9a-f]"):
        shutil.rmtree(loose)
    (pack,) = (damaged / ".git" / "objects" / "pack").glob("*.pack")
    flip_a_byte(pack, at)
    with pytest.raises(UserError) as e:
        fetch_source(ws, damaged)
    assert f"expected tree {ws.pin.tree}" in str(e.value) and "found    tree" in str(e.value)
    assert made(ws) == []


def test_sdist_with_a_flipped_byte_is_refused(ws, upstream, tmp_path):
    copy = tmp_path / upstream.sdist.name
    shutil.copy(upstream.sdist, copy)
    flip_a_byte(copy, 0.5)
    with pytest.raises(UserError) as e:
        fetch_source(ws, copy)
    assert f"expected sha256 {ws.pin.sdist_sha256}" in str(e.value) and "found    sha256" in str(e.value)
    assert made(ws) == []


def test_sdist_cannot_write_outside_the_objects(ws, upstream, tmp_path):
    """Even one of the right hash gives objects only: no configuration, no hooks, nothing by a crooked name."""
    git_folder = "llama_stand_in-1.0/.git/modules/vendor/llama.cpp"
    evil = tmp_path / "evil.tar.gz"
    extra = {
        f"{git_folder}/objects/../../../../../../../escaped": b"x",
        f"{git_folder}/objects/info/alternates": b"/etc\n",
        "/escaped": b"x",
    }
    make_sdist(evil, upstream.repo, extra)
    fetch_source(with_pin(ws, sdist_sha256=hashlib.sha256(evil.read_bytes()).hexdigest()), evil)
    assert not list(tmp_path.rglob("escaped")) and not list(tmp_path.rglob("*-ran"))
    names = {p.relative_to(ws.pinned_git).parts[0] for p in ws.pinned_git.rglob("*") if p.is_file()}
    assert names == {"HEAD", "config", "objects", "refs", "shallow"}
    assert not (ws.pinned_git / "objects" / "info" / "alternates").exists()


def test_replace_refs_and_grafts_of_a_source_are_ignored(ws, upstream, tmp_path):
    clone = tmp_path / "clone"
    run_git("clone", "-q", upstream.repo, clone, cwd=tmp_path)
    folder = run_git("rev-parse", f"{upstream.pin.commit}:src", cwd=clone)
    blob = run_git("hash-object", "-w", "--stdin", cwd=clone, stdin="int main() { return 1; }\n")
    other = run_git("mktree", cwd=clone, stdin=f"100644 blob {blob}\tnew.cpp\n")
    run_git("replace", folder, other, cwd=clone)
    fetch_source(ws, clone)
    assert_is_the_pinned_tree(ws)


def test_damaged_own_objects_are_fetched_again(fetched, upstream):
    (pack,) = (fetched.pinned_git / "objects" / "pack").glob("*.pack")
    flip_a_byte(pack, 0.5)
    lines: list[str] = []
    fetch_source(fetched, upstream.repo, say=lines.append, full_check=True)
    assert "is damaged" in lines[0] and "verified" in lines[1]
    assert_is_the_pinned_tree(fetched)


# the exported tree


@pytest.mark.parametrize("edit", ["change", "same size", "delete", "add", "mode"])
def test_edited_export_is_an_error_that_names_the_file(fetched, edit):
    tree = pinned_tree(fetched)
    victim = tree / "src" / "new.cpp"
    if edit == "change":
        victim.write_text("int main() { return 12; }\n")
    elif edit == "same size":
        victim.write_text("int main() { return 1; }\n")
    elif edit == "delete":
        victim.unlink()
    elif edit == "mode":
        victim.chmod(0o755)
    else:
        victim = tree / "build" / "new.txt"  # also where upstream ignores files
        victim.parent.mkdir()
        victim.write_text("x")
    with pytest.raises(UserError, match=victim.relative_to(tree).as_posix()):
        pinned_tree(fetched)


def test_removed_export_comes_back_and_bytecode_of_converters_is_no_edit(fetched):
    tree = pinned_tree(fetched)
    (tree / "src" / "new.cpp").unlink()
    shutil.rmtree(tree)
    assert_is_the_pinned_tree(fetched)
    (tree / "src" / "__pycache__").mkdir()
    (tree / "src" / "__pycache__" / "x.pyc").write_text("x")
    assert_is_the_pinned_tree(fetched)


def test_copied_checkout_keeps_its_export(fetched, tmp_path):
    """Other inode numbers and times are not edits."""
    pinned_tree(fetched)
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-R", fetched.root, copy], check=True)
    assert_is_the_pinned_tree(Workspace(copy, fetched.pin))


def test_two_runs_at_once_make_one_source(ws, upstream):
    results: list[Path | Exception] = []

    def run() -> None:
        try:
            fetch_source(ws, upstream.repo)
            results.append(pinned_tree(ws))
        except Exception as e:
            results.append(e)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == [ws.pinned] * 4
    assert made(ws) == ["pinned", "pinned.git"]


# the real thing


def test_the_pin_is_the_commit_of_the_submodule():
    root = find_workspace(Path(__file__)).root
    if not (root / ".git").exists():
        pytest.skip("not a git checkout, so there is no gitlink to compare with")
    assert run_git("ls-files", "-s", "llama.cpp", cwd=root).split() == ["160000", PIN.commit, "0", "llama.cpp"]


def test_the_real_source_is_the_pinned_tree():
    ws = find_workspace(Path(__file__))
    tree = pinned_tree(ws, say=print)
    assert (tree / "convert_hf_to_gguf.py").is_file() and (tree / "common" / "speculative.cpp").is_file()
    fetch_source(ws, full_check=True)
