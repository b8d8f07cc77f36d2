"""Ask any engine that speaks OpenAI's protocol (vLLM, SGLang, Luce, llama.cpp): streamed, by this process's clock.

Tokens are counted by the engine's own `usage`; an engine that sends none leaves the number of tokens unknown, and with
it every rate. Drafted and accepted tokens come from the counters under /metrics that vLLM and llama.cpp keep by the
same names; other engines leave them unknown.
"""

from __future__ import annotations

import http.client
import json
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dflash_tools.bench.arms import RAW, REFUSALS, Clock, PromptRefusedError, Reply, Request
from dflash_tools.client import EXACT_BELOW, Completion, Counted, SpecCounters, Timings
from dflash_tools.errors import UserError

_COUNTER = re.compile(r"^(vllm|llamacpp):spec_decode_num_(\w+?)_total(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_POSITION = re.compile(r'position="(\d+)"')
_ERROR_SHOWN = 300
_MOST_POSITIONS = 1024
# No step gives more tokens, and none is shorter: such an answer was gathered on its way.
_MOST_IN_A_PIECE = 64
_LEAST_MS_A_PIECE = 0.1


@dataclass
class _Answer:
    text: str = ""
    reasoning: str = ""
    finish: str = ""
    tokens: int | None = None
    prompt_tokens: int | None = None


class OpenAIArm:
    """Another engine at `url` (`http://host:port/v1`). Raises UserError when it answers otherwise than the protocol."""

    own = False

    def __init__(self, name: str, url: str, model: str = "", key: str = "", timeout: float = 600.0) -> None:
        self.name = name
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"server {name}: url is {url!r}, expected http://host:port/v1 or https://...")
        self.url = url.rstrip("/")
        self.secure = parts.scheme == "https"
        self.host, self.port = parts.hostname, parts.port or (443 if self.secure else 80)
        self.path = parts.path.rstrip("/")
        self.headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        self.timeout = timeout
        self.model = model or self._only_model()

    def ask(self, request: Request) -> Reply:
        raw = request.setting.template == RAW
        body: dict[str, Any] = {
            **request.params,
            **(
                {"prompt": request.prompt.raw}
                if raw
                else {"messages": list(request.prompt.messages), **request.template_words()}
            ),
            **({"ignore_eos": True} if request.ignore_eos else {}),
            "model": self.model,
            "max_tokens": request.max_tokens,
            "temperature": request.setting.temperature,
            "seed": request.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        clock, answer = Clock(), _Answer()
        before = self._counters()
        clock.start()
        for event in self._events("/completions" if raw else "/chat/completions", body):
            try:
                if _take(event, answer):
                    clock.tick()
            except (AttributeError, KeyError, TypeError) as cause:
                shown = json.dumps(event)[:_ERROR_SHOWN]
                raise UserError(f"server {self.name}: sent an event that is no piece of an answer: {shown}") from cause
        if not answer.finish:
            raise UserError(f"server {self.name}: the answer's stream ended without a finish_reason")
        completion = Completion(answer.text, (), answer.finish, False, Timings(), answer.reasoning)
        grown = None if before is None else (self._counters() or before) - before
        return self._reply(completion, answer, clock, grown)

    def _reply(self, completion: Completion, answer: _Answer, clock: Clock, grown: SpecCounters | None) -> Reply:
        steps = None
        if grown and answer.tokens is not None:
            timings = Timings(predicted_n=answer.tokens, draft_n_accepted=grown.accepted)
            steps = Counted(Completion("", (), "", False, timings), grown.verified).steps
        return Reply(
            completion=completion,
            ttft_ms=clock.first_ms,
            stream_ms=_stream_ms(clock, answer.tokens),
            tokens=answer.tokens,
            prompt_tokens=answer.prompt_tokens,
            steps=steps,
            drafted=grown.drafted if grown else None,
            accepted=grown.accepted if grown else None,
            rounds=grown.verified if grown else None,
            accepted_per_pos=(grown.accepted_per_pos or None) if grown else None,
        )

    def _only_model(self) -> str:
        try:
            names = [entry["id"] for entry in json.loads(self._get(self.path + "/models"))["data"]]
        except (ValueError, KeyError, TypeError) as cause:
            raise UserError(f"server {self.name}: {self.url}/models is no list of models; give model=") from cause
        if len(names) != 1:
            raise UserError(f"server {self.name}: serves {len(names)} models ({', '.join(names[:8])}); give model=")
        return names[0]

    def _counters(self) -> SpecCounters | None:
        """None when the engine has no such counters, or will not show them."""
        try:
            found: dict[str, float] = {}
            for engine, name, labels, value in _COUNTER.findall(self._get("/metrics")):
                if engine == "llamacpp" and float(value) >= EXACT_BELOW:
                    return None
                position = _POSITION.search(labels or "")
                key = f"{name}{position[1]}" if position else name
                found[key] = found.get(key, 0.0) + float(value)
        except (UserError, ValueError):
            return None
        if not {"drafts", "draft_tokens", "accepted_tokens"} <= found.keys():
            return None
        places = [f"accepted_tokens_per_pos{i}" for i in range(_MOST_POSITIONS)]
        per_pos = tuple(int(found[p]) for p in places if p in found)
        return SpecCounters(int(found["draft_tokens"]), int(found["accepted_tokens"]), int(found["drafts"]), per_pos)

    def _connection(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self.secure else http.client.HTTPConnection
        return kind(self.host, self.port, timeout=self.timeout)

    def _get(self, path: str) -> str:
        connection = self._connection()
        try:
            connection.request("GET", path, headers=self.headers)
            return self._checked(path, connection.getresponse()).read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as cause:
            raise self._lost(path, cause) from cause
        finally:
            connection.close()

    def _events(self, path: str, body: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        connection = self._connection()
        try:
            connection.request("POST", self.path + path, json.dumps(body), self.headers)
            for line in self._checked(path, connection.getresponse()):
                if line.startswith(b"data:") and (data := line[5:].strip()) != b"[DONE]":
                    event = json.loads(data)
                    if not isinstance(event, dict) or "error" in event:
                        raise UserError(f"server {self.name}: {path} answered {data.decode()[:_ERROR_SHOWN]}")
                    yield event
        except (OSError, http.client.HTTPException, ValueError) as cause:
            raise self._lost(path, cause) from cause
        finally:
            connection.close()

    def _checked(self, path: str, response: http.client.HTTPResponse) -> http.client.HTTPResponse:
        if response.status != http.client.OK:
            said = response.read(_ERROR_SHOWN).decode(errors="replace")
            kind = PromptRefusedError if response.status in REFUSALS else UserError
            raise kind(f"server {self.name}: {path} was refused with status {response.status}: {said}")
        return response

    def _lost(self, path: str, cause: Exception) -> UserError:
        return UserError(f"server {self.name} at {self.url} did not answer {path}: {cause or type(cause).__name__}")


def _take(event: Mapping[str, Any], answer: _Answer) -> bool:
    """Add one event of the stream to `answer`; True when it brought text."""
    if usage := event.get("usage"):
        answer.tokens = _count(usage.get("completion_tokens"))
        answer.prompt_tokens = _count(usage.get("prompt_tokens"))
    choices = event.get("choices") or []
    if not choices:
        return False
    choice = choices[0]
    answer.finish = choice.get("finish_reason") or answer.finish
    delta = choice.get("delta") or {}
    text = choice.get("text") or delta.get("content") or ""
    calls = delta.get("tool_calls") or ()
    for function in (call.get("function") or {} for call in calls):
        text += (function.get("name") or "") + (function.get("arguments") or "")
    reasoning = delta.get("reasoning_content") or delta.get("reasoning") or ""
    answer.text += text
    answer.reasoning += reasoning
    return bool(text or reasoning or calls)


def _stream_ms(clock: Clock, tokens: int | None) -> float | None:
    """Time from the first to the last piece. None for an answer that came at once: its pieces tell no rate."""
    between = clock.between_ms
    if between is None or between < _LEAST_MS_A_PIECE * (clock.pieces - 1):
        return None
    return between if (tokens or 0) <= _MOST_IN_A_PIECE * (clock.pieces - 1) else None


def _count(found: Any) -> int | None:
    return found if isinstance(found, int) and not isinstance(found, bool) and 0 <= found < 1 << 31 else None
