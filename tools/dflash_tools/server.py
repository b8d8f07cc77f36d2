"""Run llama-server for the length of a `with` block.

    with LlamaServer(bin_dir, target, drafter, log=work / "server.log") as server:
        print(server.completion("Once", n_predict=32).text)

The process gets a free port of the loopback interface, its output goes to a file, and it is gone when the block is
left, however that happens. It is ready when /health says so: its log may be as quiet as the caller likes.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dflash_tools.client import LlamaClient
from dflash_tools.errors import UserError

_LOG_LINES_SHOWN = 15
_POLL_SECONDS = 0.05
_STOP_SECONDS = 10.0


class LlamaServer(LlamaClient):
    """A llama-server process and a client to it.

    `switch` chooses the engine and is given only together with `drafter`: `("--dflash",)` or `("--eagle3",)` in the
    fork, `("--spec-type", "draft-dflash", "--spec-draft-n-max", "7")` in upstream. `extra` is appended to the command
    line.
    """

    def __init__(
        self,
        bin_dir: Path,
        model: Path,
        drafter: Path | None = None,
        *,
        switch: Sequence[str] = ("--dflash",),
        extra: Sequence[str] = (),
        log: Path,
        start_seconds: float = 180.0,
        timeout: float = 300.0,
    ) -> None:
        super().__init__("127.0.0.1", 0, timeout)
        self.log = log
        self.start_seconds = start_seconds
        draft = ["-md", str(drafter), *switch] if drafter else []
        self._program = [str(bin_dir / "llama-server"), "-m", str(model), *draft]
        self._options = ["--metrics", "--offline", *extra]
        self.command: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._held: socket.socket | None = None

    def __enter__(self) -> LlamaServer:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        # LLAMA_ARG_* in the user's shell would switch options on in the run that must not have them.
        env = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_ARG_")}
        self._held = _free_port(self.host)
        self.port = self._held.getsockname()[1]
        # Last: the client must know where the server listens, whatever the caller's options say.
        where = ["--host", self.host, "--port", str(self.port)]
        self.command = [*self._program, *self._options, *where]
        if sys.platform != "linux":
            self._release()  # elsewhere two sockets cannot be bound to one port
        try:
            with self.log.open("wb") as out:
                self._process = subprocess.Popen(
                    self.command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=env
                )
        except OSError as cause:
            self._release()
            raise UserError(f"{self.command[0]}: cannot be run ({cause.strerror}): run build-fork first") from cause
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the process. Safe to call twice."""
        process, self._process = self._process, None
        self._release()
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _release(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.close()

    @property
    def pid(self) -> int | None:
        """Id of the process while it runs."""
        return self._process.pid if self._process else None

    def log_tail(self) -> str:
        """The last lines the server wrote."""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(f"    {line}" for line in lines[-_LOG_LINES_SHOWN:])

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.start_seconds
        while time.monotonic() < deadline:
            if self._exit_status() is not None:
                raise self._died("before it was ready")
            if self.healthy():
                return
            time.sleep(_POLL_SECONDS)
        raise UserError(
            f"llama-server was not ready after {self.start_seconds:.0f} s; {self.log} ends with\n{self.log_tail()}"
        )

    def _exit_status(self) -> int | None:
        return self._process.poll() if self._process else None

    def _lost(self, path: str, cause: Exception) -> UserError:
        if self._process is not None:
            try:
                # The connection can break a moment before the process is gone.
                self._process.wait(1.0)
            except subprocess.TimeoutExpired:
                return super()._lost(path, cause)
        return self._died(f"during {path}")

    def _died(self, when: str) -> UserError:
        status = self._exit_status()
        how = f"was killed by signal {-status}" if status is not None and status < 0 else f"ended with status {status}"
        return UserError(
            f"llama-server {how} {when}; {self.log} ends with\n{self.log_tail()}\n  command: {shlex.join(self.command)}"
        )


def _free_port(host: str) -> socket.socket:
    """A socket bound to a free port, which does not listen. While it is open the system gives the port to nobody who
    asks for any free one, but llama-server, whose sockets may share an address (SO_REUSEADDR), can listen there.
    """
    held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind((host, 0))
    return held
