"""Memory bandwidth of the device, measured by a large copy with the libraries of a build.

ggml's own C interface does the copy, so any backend the build has is measured the way its kernels run. It happens in a
process of its own, which leaves nothing on the device:

    python -m dflash_tools.bench.bandwidth BIN_DIR [MIB]     prints GB/s of each repeat as a JSON list
"""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dflash_tools.conditions import usable_cores
from dflash_tools.errors import UserError

_CPU, _GPU, _IGPU = 0, 1, 2  # enum ggml_backend_dev_type
_F32 = 0
_COLUMNS = 1 << 14
_REPEATS = 7
# Large against any cache, so that what is measured is the memory.
_BYTES = {_CPU: 256 << 20, _GPU: 1 << 30, _IGPU: 256 << 20}
_COPIES = {_CPU: 1, _GPU: 16, _IGPU: 4}
_SECONDS = 120


class _InitParams(ctypes.Structure):
    """struct ggml_init_params."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


def copy_rates(bin_dir: Path, mib: int | None = None) -> list[float]:
    """GB/s (1e9 bytes; read and written both counted) of each repeat. Raises UserError when the copy cannot be made.

    `mib` is the size of what is copied; without it, much more than any cache holds.
    """
    size = [str(mib)] if mib else []
    command = [sys.executable, "-m", "dflash_tools.bench.bandwidth", str(bin_dir), *size]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
        return [float(rate) for rate in json.loads(done.stdout.splitlines()[-1])]
    except subprocess.CalledProcessError as cause:
        last = (cause.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{bin_dir}: the copy that measures the bandwidth failed: {last}") from cause
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as cause:
        raise UserError(f"{bin_dir}: the copy that measures the bandwidth failed: {cause}") from cause


def _load(bin_dir: Path) -> tuple[ctypes.CDLL, ctypes.CDLL]:
    """libggml-base and libggml of the folder, each opened after those it depends on.

    A library that is open already is found by its name, so that these are the libraries of this folder even where they
    have no run path, or one that leads to another folder.
    """
    base = _open(_find(bin_dir, "ggml-base"))
    backends = {path.resolve() for path in bin_dir.glob("libggml-*") if re.search(r"\.(so|dylib)", path.name)}
    failed = []
    for path in sorted(backends, key=lambda path: (not path.name.startswith("libggml-cpu"), path.name)):
        try:
            _open(path)
        except OSError as cause:  # only those that libggml asks for matter, and it asks for them next
            failed.append(str(cause))
    try:
        return base, _open(_find(bin_dir, "ggml"))
    except OSError as cause:
        raise UserError("; ".join([str(cause), *failed])) from cause


def _find(bin_dir: Path, name: str) -> Path:
    found = sorted(bin_dir.glob(f"lib{name}.so*")) + sorted(bin_dir.glob(f"lib{name}.*dylib"))
    if not found:
        raise UserError(f"{bin_dir}: no lib{name} here; build-fork puts it beside the programs")
    return found[0].resolve()


def _open(path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def _measure(bin_dir: Path, mib: int) -> list[float]:
    """`mib` 0: the usual size for the device."""
    base, ggml = _load(bin_dir)
    kind, backend = _backend(base, ggml)
    size, copies = mib << 20 or _BYTES[kind], _COPIES[kind]
    context = _call(base, "ggml_init", _InitParams(1 << 20, None, True))
    rows = size // (4 * _COLUMNS)
    extents = (ctypes.c_int64(_COLUMNS), ctypes.c_int64(rows))
    source, place = (_call(base, "ggml_new_tensor_2d", context, _F32, *extents) for _ in range(2))
    graph = _call(base, "ggml_new_graph", context)
    for _ in range(copies):
        _call(base, "ggml_build_forward_expand", graph, _call(base, "ggml_cpy", context, source, place))
    buffer = _call(base, "ggml_backend_alloc_ctx_tensors", context, backend)
    if not buffer:
        raise UserError(f"no room for two tensors of {size >> 20} MiB on the device")
    base.ggml_backend_buffer_clear(buffer, ctypes.c_uint8(0x5A))
    rates = []
    for _ in range(_REPEATS + 1):
        start = time.perf_counter()
        if base.ggml_backend_graph_compute(backend, graph):
            raise UserError("ggml could not run the copy")
        base.ggml_backend_synchronize(backend)
        rates.append(2e-9 * size * copies / (time.perf_counter() - start))
    return rates[1:]  # the first one pages memory in


def _backend(base: ctypes.CDLL, ggml: ctypes.CDLL) -> tuple[int, ctypes.c_void_p]:
    for kind in (_GPU, _IGPU, _CPU):
        if device := _call(ggml, "ggml_backend_dev_by_type", kind):
            backend = _call(base, "ggml_backend_dev_init", device, None)
            if kind == _CPU:
                ggml.ggml_backend_cpu_set_n_threads(backend, ctypes.c_int(usable_cores()))
            return kind, backend
    raise UserError("ggml finds no device, not even the CPU")


def _call(library: ctypes.CDLL, name: str, *arguments: Any) -> ctypes.c_void_p:
    """Call a function that returns a pointer."""
    function = getattr(library, name)
    function.restype = ctypes.c_void_p
    return ctypes.c_void_p(function(*arguments))


if __name__ == "__main__":
    try:
        print(json.dumps(_measure(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)))
    except UserError as error:
        raise SystemExit(str(error)) from error
