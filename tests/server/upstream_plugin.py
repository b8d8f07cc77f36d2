"""Loaded into llama.cpp's own server tests (`-p upstream_plugin`): tiny GGUFs of this project stand in for downloads.

Nothing of the tests is changed. Their presets name models on the network; here they name local files. Packages that
only tests outside our selection need are replaced by empty modules.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import types
from pathlib import Path

TARGET = os.environ["UPSTREAM_SUITE_TARGET"]
DRAFTER = os.environ.get("UPSTREAM_SUITE_DRAFTER", "")

for name, members in {"wget": [], "openai": ["OpenAI"], "prometheus_client": ["parser"]}.items():
    if importlib.util.find_spec(name) is None:
        module = types.ModuleType(name)
        for member in members:
            setattr(module, member, None)
        sys.modules[name] = module

sys.path.insert(0, str(Path.cwd()))

import utils  # noqa: E402  (llama.cpp's tests/utils.py, found in the folder the suite runs in)


def _local(preset: object) -> staticmethod:
    def make() -> utils.ServerProcess:
        server = preset()
        server.model_hf_repo = server.model_hf_file = None
        server.model_file = TARGET
        return server

    return staticmethod(make)


for name in ("tinyllama2", "stories15m_moe"):
    setattr(utils.ServerPreset, name, _local(getattr(utils.ServerPreset, name)))
utils.ServerPreset.load_all = staticmethod(lambda: None)
# The only file the selected tests ask for is a draft model.
utils.download_file = lambda url, output_file_path=None: DRAFTER

_drafted = 0
_make_request = utils.ServerProcess.make_request


def _counting_request(self: utils.ServerProcess, *args: object, **kwargs: object) -> utils.ServerResponse:
    global _drafted
    response = _make_request(self, *args, **kwargs)
    if isinstance(response.body, dict):
        _drafted += response.body.get("timings", {}).get("draft_n", 0)
    return response


utils.ServerProcess.make_request = _counting_request


def pytest_sessionfinish() -> None:
    """Leave word of how many tokens the servers drafted: a suite that never drafts proves nothing."""
    if report := os.environ.get("UPSTREAM_SUITE_DRAFTED"):
        Path(report).write_text(str(_drafted))
