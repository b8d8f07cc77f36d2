"""Drafters and targets by Hub id, with the real client against a Hub on the loopback interface."""

from __future__ import annotations

import fcntl
import os
import pty
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
from checkpoints import dflash_config, dflash_tensors, make_target, save
from dflash_convert.checkpoint import model_name, open_checkpoint
from dflash_convert.cli import convert, main
from dflash_convert.gguf_file import read_gguf
from dflash_convert.hub import find_drafter, find_target
from dflash_tools.errors import UserError
from hub_endpoint import COMMIT, Endpoint, hub_endpoint
from huggingface_hub import constants

DRAFTER, TARGET = "lab/Tiny-DFlash", "org/Tiny"
SOURCES = os.pathsep.join(str(Path(__file__).parents[2] / d) for d in ("convert", "tools"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """A Hub with a drafter and its target (with files that must not be fetched), and an empty cache."""
    drafter = save(tmp_path / "served" / "drafter", dflash_config(), dflash_tensors(dflash_config()))
    (drafter / "README.md").write_text("---\nlicense: mit\n---\nA drafter.\n", encoding="utf-8")
    for name in ("modeling_dflash.py", "picture.png", "pytorch_model.bin", "optimizer.pt"):
        (drafter / name).write_bytes(b"not to be fetched")
    target = make_target(tmp_path / "served" / "target")
    for name in ("model-00001-of-00001.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "x.gguf",
                 "original/consolidated.pth", "modeling.py"):  # fmt: skip
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_bytes(b"{}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with hub_endpoint() as endpoint:
        endpoint.repos = {DRAFTER: drafter, TARGET: target}
        point_to(endpoint.url, monkeypatch)
        yield endpoint


def point_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does before the client is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


def test_both_ids_convert_and_only_what_is_read_is_fetched(hub: Endpoint, tmp_path: Path) -> None:
    assert main([DRAFTER, "--target-model-dir", TARGET]) == 0
    assert hub.fetched(DRAFTER) == {"config.json", "README.md", "model.safetensors"}
    assert hub.fetched(TARGET) == {"config.json", "tokenizer.json", "tokenizer_config.json"}
    asked = [p for _, p, _ in hub.requests if p.startswith(f"/{TARGET}/")]
    assert not [p for p in asked if p.endswith((".safetensors", ".bin", ".gguf", ".pth"))]
    file = read_gguf(tmp_path / "Tiny-DFlash-BF16.gguf")
    assert file.string("general.license") == "mit"
    assert not any(COMMIT[:12] in str(v.value) for v in file.metadata.values())


def test_the_file_is_that_of_the_downloaded_directory(hub: Endpoint, tmp_path: Path) -> None:
    local = tmp_path / "Tiny-DFlash"
    local.symlink_to(hub.repos[DRAFTER])
    for name in ("pytorch_model.bin", "optimizer.pt"):
        (local / name).unlink()
    assert main([DRAFTER, "--target-model-dir", TARGET, "--outfile", "a.gguf"]) == 0
    convert(local, hub.repos[TARGET], tmp_path / "b.gguf")
    assert Path("a.gguf").read_bytes() == Path("b.gguf").read_bytes()


def test_a_second_call_fetches_nothing_and_works_without_the_hub(
    hub: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = find_drafter(DRAFTER), find_target(TARGET)
    hub.requests.clear()
    assert (find_drafter(DRAFTER), find_target(TARGET)) == first
    assert not hub.fetched(DRAFTER) and not hub.fetched(TARGET)
    point_to(f"http://127.0.0.1:{free_port()}", monkeypatch)
    assert (find_drafter(DRAFTER), find_target(TARGET)) == first
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert (find_drafter(DRAFTER), find_target(TARGET)) == first


@pytest.mark.parametrize("status", [429, 503])
def test_a_hub_out_of_order_does_not_keep_from_what_is_here(
    status: int, hub: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", lambda seconds: None)
    first = find_drafter(DRAFTER), find_target(TARGET)
    hub.broken = {DRAFTER: (status, ""), TARGET: (status, "")}
    assert (find_drafter(DRAFTER), find_target(TARGET)) == first


def test_names_that_lead_out_of_the_cache_are_not_fetched(hub: Endpoint, tmp_path: Path) -> None:
    out = "additional_chat_templates/" + "../" * 8 + str(tmp_path).lstrip("/") + "/owned.jinja"
    hub.names = (out, "../tokenizer.json", "tokenizer_../../x.json")
    assert find_target(TARGET).is_dir()
    assert hub.fetched(TARGET) == {"config.json", "tokenizer.json", "tokenizer_config.json"}


def test_a_download_that_was_cut_goes_on_where_it_ended(hub: Endpoint) -> None:
    file = hub.repos[DRAFTER] / "model.safetensors"
    file.write_bytes(bytes(23 << 20))  # the client keeps whole pieces of 10 MiB
    hub.cut[file.name] = 21 << 20
    assert (find_drafter(DRAFTER) / file.name).read_bytes() == file.read_bytes()
    ranges = [r for method, p, r in hub.requests if method == "GET" and p.endswith(file.name)]
    assert len(ranges) == 2 and int(ranges[1].removeprefix("bytes=").split("-")[0]) >= 10 << 20


def test_shards_and_no_other_weights_are_fetched(hub: Endpoint) -> None:
    sharded = hub.repos[DRAFTER]
    (sharded / "model.safetensors").unlink()
    save(sharded, dflash_config(), dflash_tensors(dflash_config()), shards=3)
    (sharded / "model-extra.safetensors").write_bytes(b"not in the index")
    assert len(open_checkpoint(find_drafter(DRAFTER)).files) == 3
    assert "model-extra.safetensors" not in hub.fetched(DRAFTER)
    (sharded / "model-00002-of-00003.safetensors").unlink()
    monkey = constants.HF_HUB_CACHE
    constants.HF_HUB_CACHE = monkey + "2"
    try:
        with pytest.raises(UserError, match=r"has no model-00002-of-00003\.safetensors"):
            find_drafter(DRAFTER)
    finally:
        constants.HF_HUB_CACHE = monkey


def test_a_folder_and_a_file_of_a_repository(hub: Endpoint, tmp_path: Path) -> None:
    top = tmp_path / "served" / "several"
    for name in ("dflash", "other"):
        save(top / name, dflash_config(), dflash_tensors(dflash_config()))
    (top / "dflash" / "second.safetensors").write_bytes((top / "dflash" / "model.safetensors").read_bytes())
    (top / "old.gguf").write_bytes(b"GGUF")
    hub.repos["lab/several"] = top
    found = find_drafter("lab/several/dflash")
    assert model_name(found) == "several-dflash" and len(open_checkpoint(found).tensors) == 25
    assert hub.fetched("lab/several") == {"dflash/config.json", "dflash/model.safetensors"}
    assert open_checkpoint(find_drafter("lab/several/dflash/second.safetensors")).files[0].name == "second.safetensors"
    assert find_drafter("lab/several/old.gguf").read_bytes() == b"GGUF"
    with pytest.raises(UserError, match="give one of its folders: lab/several/dflash, lab/several/other"):
        find_drafter("lab/several")


def test_a_local_path_wins(hub: Endpoint, tmp_path: Path) -> None:
    local = save(tmp_path / DRAFTER, dflash_config(), dflash_tensors(dflash_config()))
    assert find_drafter(DRAFTER) == local.relative_to(tmp_path)
    assert not hub.requests
    with pytest.raises(UserError, match="--revision v2: lab/Tiny-DFlash is a local path"):
        find_drafter(DRAFTER, "v2")


def test_a_revision_is_fetched_and_a_wrong_one_named(hub: Endpoint) -> None:
    hub.revisions.add("v2")
    find_drafter(DRAFTER, "v2")
    assert any(p.endswith("/revision/v2") for _, p, _ in hub.requests)
    with pytest.raises(UserError, match="lab/Tiny-DFlash: the repository has no revision 'v3'"):
        find_drafter(DRAFTER, "v3")


def answer(status: int, code: str = "") -> Callable[[Endpoint], None]:
    return lambda hub: hub.broken.update({DRAFTER: (status, code)})


def answer_for_files(status: int, code: str = "") -> Callable[[Endpoint], None]:
    return lambda hub: hub.broken_files.update({DRAFTER: (status, code)})


def without(*files: str) -> Callable[[Endpoint], None]:
    return lambda hub: [(hub.repos[DRAFTER] / f).unlink() for f in files] and None


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (
            answer_for_files(403, "GatedRepo"),
            "lab/Tiny-DFlash: gated: accept its conditions at http.*/lab/Tiny-DFlash, then log in",
        ),
        (answer_for_files(429), "rate limit is reached; wait"),
        (answer_for_files(503), "answers HTTP 503; try again later"),
        (lambda hub: hub.repos.pop(DRAFTER), "no such file or directory, nor a repository on the Hub"),
        (answer(404, "RepoNotFound"), "no such file or directory, nor a repository on the Hub"),
        (answer(429), "rate limit is reached; wait"),
        (answer(403), r"refuses access \(HTTP 403\): is your token valid"),
        (answer(500), "answers HTTP 500; try again later"),
        (without("config.json"), "lab/Tiny-DFlash: holds no config.json"),
        (without("model.safetensors", "pytorch_model.bin"), r"holds no weights .* it has optimizer.pt"),
    ],
)
def test_trouble_with_the_hub_is_one_sentence(
    trouble: Callable[[Endpoint], None],
    said: str,
    hub: Endpoint,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", lambda seconds: None)
    trouble(hub)
    with pytest.raises(UserError, match=said) as e:
        find_drafter(DRAFTER)
    assert "\n" not in str(e.value) and len(str(e.value)) < 400
    assert capfd.readouterr().err == ""


def test_without_a_connection_and_a_copy_it_says_so(hub: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", lambda seconds: None)
    point_to(f"http://127.0.0.1:{free_port()}", monkeypatch)
    with pytest.raises(UserError, match=r"not to be had from the Hub; is http://127\.0\.0\.1:\d+ reachable"):
        find_drafter(DRAFTER)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"not in the cache \(.*cache\), and HF_HUB_OFFLINE forbids"):
        find_drafter(DRAFTER)


def test_a_target_file_with_weights_is_not_fetched(hub: Endpoint) -> None:
    with pytest.raises(UserError, match="never its weights; give the id of the original model"):
        find_target(f"{TARGET}/x.gguf")
    (hub.repos[TARGET] / "config.json").unlink()
    with pytest.raises(UserError, match=r"org/Tiny: holds no config.json; it holds GGUF files \(x.gguf\)"):
        find_target(TARGET)


@pytest.mark.parametrize(
    "text", ["nothing-here", "./lab/x", "lab/../x", "lab/x/../y", "a/b:c", "../a/b", "lab//x", "~/a"]
)
def test_what_is_no_id_is_a_path(text: str, hub: Endpoint) -> None:
    assert find_drafter(text) == Path(text)
    assert not hub.requests


def test_a_command_line_of_its_own(hub: Endpoint, tmp_path: Path) -> None:
    """With the client's own environment variables, in a process of its own; progress is for terminals."""
    env = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": SOURCES}
    command = [sys.executable, "-m", "dflash_convert.cli", "--check"]
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    done = subprocess.run([*command, DRAFTER], env=env, cwd=tmp_path, stdout=subprocess.PIPE, stderr=theirs, text=True)
    assert done.returncode == 0 and "DFlash, served with --dflash" in done.stdout
    assert b"100%" in os.read(ours, 1 << 16)
    os.close(ours)
    os.close(theirs)
    assert (tmp_path / "home" / "hub" / "models--lab--Tiny-DFlash").is_dir()
    done = subprocess.run([*command, TARGET, "--target", "lab/none"], env=env, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "lab/none: no such file" in done.stderr, done.stderr


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
