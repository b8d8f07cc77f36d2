"""Drafters and targets given as ids of the Hugging Face Hub: fetch the files a conversion reads, and no others.

An id is ORG/NAME, ORG/NAME/FOLDER, or ORG/NAME/[FOLDER/]FILE for a weights file. A local path of that name wins. Cache,
resumption, progress bars, tokens and offline mode are those of the `huggingface_hub` client, with its environment
variables (HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE, ...).
"""

from __future__ import annotations

import fnmatch
import glob
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dflash_tools.errors import UserError, join_words

from dflash_convert.checkpoint import INDEX_END, read_weight_map, weight_names

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(/[\w+-][\w.+-]*)*")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_OF_DRAFTER = ("config.json", "generation_config.json", "README.md", "mask_embedding.pt")
# What transformers and llama.cpp's converter read of a model without its weights.
_OF_TARGET = (
    "config.json", "generation_config.json", "params.json", "tokenizer*.json", "*.model", "*.tiktoken", "tekken.json",
    "vocab.json", "vocab.txt", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.json*",
    "chat_template.jinja", "additional_chat_templates/*.jinja",
)  # fmt: skip


@dataclass(frozen=True)
class HubId:
    """A place on the Hub: `repo` is ORG/NAME, `inside` a folder or a weights file in it ("" for its top)."""

    repo: str
    inside: str = ""

    @property
    def file(self) -> str | None:
        """The weights file that is named, if one is."""
        return self.inside if self.inside.endswith(_WEIGHTS) else None

    @property
    def folder(self) -> str:
        """The folder in which config.json stands, with a trailing slash; "" for the top."""
        folder = str(PurePosixPath(self.inside).parent) if self.file else self.inside
        return f"{folder}/" if folder not in ("", ".") else ""

    def __str__(self) -> str:
        return f"{self.repo}/{self.inside}" if self.inside else self.repo


def find_drafter(text: str, revision: str | None = None) -> Path:
    """The local path that `text` names, or that of the Hub's drafter after its files are fetched.

    `revision` is a branch, tag or commit. Raises UserError, one sentence, if there is neither, or the Hub does not give
    it (offline, gated, rate limit).
    """
    wanted = _local_or_id(text, revision, "--revision")
    if isinstance(wanted, Path):
        return wanted
    snapshot = _fetch(wanted, revision, lambda names: _drafter_files(wanted, names))
    directory = snapshot / wanted.folder
    if wanted.file:
        return snapshot / wanted.file
    (weights, *_) = weight_names([p.name for p in directory.iterdir()])
    if weights.endswith(INDEX_END):
        shards = {wanted.folder + shard for shard in read_weight_map(directory / weights).values()}
        _fetch(wanted, snapshot.name, lambda names: _present(wanted, shards, names))  # of the same commit
    return directory


def find_target(text: str, revision: str | None = None) -> Path:
    """As `find_drafter`, for a target: config and tokenizer files are fetched, its weights never."""
    wanted = _local_or_id(text, revision, "--target-revision")
    if isinstance(wanted, Path):
        return wanted
    if wanted.file:
        raise UserError(
            f"{wanted}: of a target on the Hub only config and tokenizer are fetched, never its weights; give the id "
            "of the original model (ORG/NAME), or download this file and give its path"
        )
    return _fetch(wanted, revision, lambda names: _target_files(wanted, names)) / wanted.folder


def _local_or_id(text: str, revision: str | None, option: str) -> Path | HubId:
    path = Path(text)
    if path.exists() or not _ID.fullmatch(text):
        if revision is not None:
            raise UserError(f"{option} {revision}: {text} is a local path; a revision is for a Hub id (ORG/NAME)")
        return path
    org, name, *inside = text.split("/")
    return HubId(f"{org}/{name}", "/".join(inside))


def _drafter_files(wanted: HubId, names: Sequence[str]) -> list[str]:
    """Of the files of a repository, those that make the drafter; the shards that an index names come later."""
    here = _in_folder(wanted, names)
    if wanted.file:
        _present(wanted, [wanted.file], names)
        if wanted.file.endswith(".gguf"):
            return [wanted.file]
        return [wanted.file, *(wanted.folder + n for n in _OF_DRAFTER if n in here)]
    _need_config(wanted, names, here)
    small = [n for n in here if n in _OF_DRAFTER]
    weights = weight_names(here)
    if not weights:
        others = [n for n in here if n.endswith(_WEIGHTS)][:5]
        hint = f"; it has {join_words(others)}: give {wanted}/{others[0]}" if others else ""
        raise UserError(f"{wanted}: holds no weights (model*.safetensors or pytorch_model*.bin){hint}")
    return [wanted.folder + n for n in (*small, *weights)]


def _target_files(wanted: HubId, names: Sequence[str]) -> list[str]:
    here = _in_folder(wanted, names)
    _need_config(wanted, names, here)
    return [
        wanted.folder + n
        for n in here
        if any(fnmatch.fnmatchcase(n, p) for p in _OF_TARGET) and not n.endswith((*_WEIGHTS, ".index.json"))
    ]


def _in_folder(wanted: HubId, names: Sequence[str]) -> list[str]:
    """Names relative to the folder of `wanted`, of the files in it. Names that lead out of it are nobody's."""
    return [n.removeprefix(wanted.folder) for n in names if n.startswith(wanted.folder) and ".." not in n.split("/")]


def _need_config(wanted: HubId, names: Sequence[str], here: Sequence[str]) -> None:
    if "config.json" in here:
        return
    folders = sorted(n.removesuffix("/config.json") for n in names if n.endswith("/config.json"))
    files = sorted(n for n in names if n.endswith(".gguf"))
    hint = ""
    if folders:
        hint = f"; give one of its folders: {', '.join(f'{wanted.repo}/{f}' for f in folders[:5])}"
    elif files:
        hint = f"; it holds GGUF files ({', '.join(files[:3])}{', ...' * (len(files) > 3)})"
    raise UserError(f"{wanted}: holds no config.json{hint}")


def _present(wanted: HubId, files: Sequence[str] | set[str], names: Sequence[str]) -> list[str]:
    missing = sorted(set(files) - set(names))
    if missing:
        raise UserError(f"{wanted}: the repository (or its copy in the cache) has no {join_words(missing[:5])}")
    return sorted(files)


def _fetch(wanted: HubId, revision: str | None, choose: Callable[[Sequence[str]], list[str]]) -> Path:
    """Fetch the files that `choose` picks from the names in the repository; returns the directory of its snapshot.

    Without a connection, or with a Hub out of order, what the cache holds of the revision takes the repository's place.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import disable_progress_bars, logging

    logging.set_verbosity_error()  # what its warnings say stands in our errors
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        try:
            info = huggingface_hub.HfApi().model_info(wanted.repo, revision=revision)
        except HfHubHTTPError as e:
            status = getattr(e.response, "status_code", 0)
            if status != 429 and status < 500:
                raise  # the Hub has answered
            return _from_cache(wanted, revision, choose, e)
        except Exception as e:  # the types of its HTTP library, which is another in each of its versions
            return _from_cache(wanted, revision, choose, e)
        files = choose([f.rfilename for f in info.siblings or []])
        patterns = [glob.escape(name) for name in files]
        return Path(huggingface_hub.snapshot_download(wanted.repo, revision=revision, allow_patterns=patterns))
    except UserError:
        raise
    except Exception as e:
        raise UserError(_sentence(wanted, revision, e)) from e


def _from_cache(
    wanted: HubId, revision: str | None, choose: Callable[[Sequence[str]], list[str]], reason: Exception
) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    if isinstance(reason, HFValidationError):
        raise reason
    try:
        known = wanted.file or f"{wanted.folder}config.json"
        found = huggingface_hub.hf_hub_download(wanted.repo, known, revision=revision, local_files_only=True)
    except LocalEntryNotFoundError:
        raise reason from None
    snapshot = Path(found).parents[known.count("/")]
    choose([p.relative_to(snapshot).as_posix() for p in snapshot.rglob("*") if p.is_file()])
    return snapshot


def _sentence(wanted: HubId, revision: str | None, error: Exception) -> str:
    """What went wrong with the Hub, in one sentence that says what to do."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # why it looked into the cache at all
    status = getattr(getattr(error, "response", None), "status_code", None)
    log_in = "log in (`hf auth login`) or set HF_TOKEN"
    if isinstance(error, errors.HFValidationError):
        return f"{wanted}: no such file or directory, and no id of the Hub either (ORG/NAME)"
    if isinstance(error, errors.GatedRepoError):
        page = f"{constants.ENDPOINT}/{wanted.repo}"
        return f"{wanted}: gated: accept its conditions at {page}, then {log_in} with that account"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{wanted}: the repository has no revision {revision!r}; give a branch, a tag or a commit of it"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{wanted}: no such file or directory, nor a repository on the Hub; if it is a private one, {log_in}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"{wanted}: not in the cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE forbids to fetch it"
    if status == 429:
        return f"{wanted}: the Hub's rate limit is reached; wait some minutes, or {log_in} for a higher one"
    if status in (401, 403):
        return f"{wanted}: the Hub refuses access (HTTP {status}): is your token valid and allowed to read it?"
    if status is not None:
        return f"{wanted}: the Hub answers HTTP {status}; try again later"
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    reason = str(error).strip().splitlines() or [""]
    return (
        f"{wanted}: no such file or directory, and not to be had from the Hub; is {constants.ENDPOINT} reachable from "
        f"here? {type(error).__name__}: {reason[0][:200]}"
    )
