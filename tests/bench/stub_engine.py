"""An engine of another make: speaks OpenAI's protocol on the loopback interface, and is no llama.cpp.

It answers with a fixed text, piece by piece. What it sends besides can be switched off or spoilt.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

METRICS = """# HELP vllm:spec_decode_num_drafts_total Number of drafts.
vllm:spec_decode_num_drafts_total{{engine="0",model_name="m"}} {drafts}
vllm:spec_decode_num_draft_tokens_total{{engine="0",model_name="m"}} {draft_tokens}
vllm:spec_decode_num_accepted_tokens_total{{engine="0",model_name="m"}} {accepted}
vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",model_name="m",position="0"}} {first}
vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",model_name="m",position="1"}} {second}
"""


@dataclass
class Stub:
    """`pieces` is the answer. Each answer of 7 tokens takes 3 drafts of 2 tokens, of which 3 are accepted: 2, 1, 0."""

    pieces: tuple[str, ...] = ("One", " two", " three")
    tokens: int | None = 7
    counters: bool = False
    models: tuple[str, ...] = ("m",)
    status: int = 200
    refuses: str = "nothing"
    spoil: str = ""
    pause: float = 0.002
    calls: tuple[str, ...] = ()
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    url: str = ""


@contextmanager
def serve(stub: Stub) -> Iterator[Stub]:
    """Runs on a free port until the block is left; `stub.url` is its address."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Quiet."""

        def do_GET(self) -> None:
            if self.path == "/v1/models":
                self._send(json.dumps({"data": [{"id": name} for name in stub.models]}).encode())
            elif self.path == "/metrics" and stub.counters:
                n = len(stub.asked)
                numbers = {"drafts": 3 * n, "draft_tokens": 6 * n, "accepted": 3 * n, "first": 2 * n, "second": n}
                self._send(METRICS.format(**{k: float(v) for k, v in numbers.items()}).encode())
            else:
                self.send_error(404)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            stub.asked.append((self.path, body))
            if stub.status != 200 or stub.refuses in json.dumps(body):
                self._send(b'{"error": {"message": "too long"}}', stub.status if stub.status != 200 else 400)
                return
            chat = self.path.endswith("/chat/completions")
            events: list[Any] = [{"choices": [{"delta": {"role": "assistant"}}]}] if chat else []
            for piece in stub.pieces:
                events.append({"choices": [{"delta": {"content": piece}} if chat else {"text": piece}]})
            for part in stub.calls:
                call = {"index": 0, "function": {"name": None, "arguments": part}}
                events.append({"choices": [{"delta": {"content": None, "tool_calls": [call]}}]})
            if stub.spoil != "no finish":
                events.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
            if stub.tokens is not None and body.get("stream_options", {}).get("include_usage"):
                events.append({"choices": [], "usage": {"completion_tokens": stub.tokens, "prompt_tokens": 5}})
            text = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
            if stub.spoil == "no json":
                text = "data: {broken\n\n"
            if stub.spoil == "error":
                text = 'data: {"error": {"message": "out of memory"}}\n\n'
            if stub.spoil == "odd event":
                text = 'data: {"choices": [7]}\n\n'
            if stub.spoil == "odd usage":
                text = text.replace(f'"completion_tokens": {stub.tokens}', '"completion_tokens": "seven"')
            self._send(text.encode(), pause=stub.pause)

        def _send(self, content: bytes, status: int = 200, pause: float = 0.0) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            for part in content.split(b"\n\n") if pause else ():
                self.wfile.write(part + b"\n\n" if part else b"")
                time.sleep(pause)
            if not pause:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    stub.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
