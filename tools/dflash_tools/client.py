"""Talk to a running llama-server: completions, chats, streams, counters. Standard library only.

One connection per request, so one client may be used by many threads at once.

Tokens per verify step (AL), bonus token included, as this project counts it
----------------------------------------------------------------------------
The first token of an answer comes from the prompt's own logits and costs no step. After that every decode of the target
is a step: it verifies a draft and gives `accepted + 1` tokens, or has no draft (nothing left to draft) and gives one.
So for one request with `n` tokens out, `A` accepted drafts and `V` verified drafts

    steps = V + (steps without draft) = max(V, n - 1 - A)        tokens per verify step = (n - 1) / steps

`n` is `timings.predicted_n`, `A` is `timings.draft_n_accepted`; `V` is in no answer, it is the growth of the counter
`llamacpp:spec_decode_num_drafts_total` of /metrics over the request (tools/server/server-context.cpp counts one per
verified draft). The `max` matters only when a stop string or an end token cuts the last draft: then `n` holds fewer
tokens than the steps gave, and `V` alone is right. The server's own "mean len", `1 + A / V`, leaves out the steps
without draft and counts the cut tokens.
"""

from __future__ import annotations

import http.client
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dflash_tools.errors import UserError

Message = Mapping[str, Any]

# /metrics prints six significant digits, so a larger counter is rounded and its growth is worthless.
EXACT_BELOW = 1_000_000
_PER_POSITION = 'spec_decode_num_accepted_tokens_per_pos_total{{position="{}"}}'
# More candidates than any vocabulary has.
_ALL = 1 << 20


class RefusedError(UserError):
    """The server answered a request with an error. `status` is the HTTP status, `kind` its error type."""

    def __init__(self, path: str, status: int, kind: str, message: str) -> None:
        super().__init__(f"llama-server refused {path} ({status} {kind}): {message}")
        self.status = status
        self.kind = kind


@dataclass(frozen=True)
class SpecTimings:
    """Where the rounds of one request spent their time: sums over the request, in milliseconds.

    `other_ms` is the host's gap, the round less the named phases. `accepted_per_pos[i]` counts the rounds in which the
    draft's token i was accepted.
    """

    rounds: int
    draft_ms: float
    inject_ms: float
    verify_ms: float
    sample_ms: float
    commit_ms: float
    other_ms: float
    round_ms: float
    accepted_per_pos: tuple[int, ...] = ()

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> SpecTimings:
        values = {name: found[name] for name in cls.__dataclass_fields__ if name in found}
        return cls(**{**values, "accepted_per_pos": tuple(found.get("accepted_per_pos", ()))})


@dataclass(frozen=True)
class Timings:
    """What the server says about one request. Times in milliseconds, rates in tokens per second.

    `spec` is None when the server does not time its phases (as upstream), or ran without a drafter.
    """

    cache_n: int = 0
    prompt_n: int = 0
    prompt_ms: float = 0.0
    predicted_n: int = 0
    predicted_ms: float = 0.0
    predicted_per_second: float = 0.0
    draft_n: int = 0
    draft_n_accepted: int = 0
    spec: SpecTimings | None = None

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Timings:
        """Keys the server leaves out stay 0: without a drafter there are no `draft_*`."""
        values = {name: found[name] for name in cls.__dataclass_fields__ if name in found}
        if spec := values.pop("spec", None):
            values["spec"] = SpecTimings.from_json(spec)
        return cls(**values)


@dataclass(frozen=True)
class Completion:
    """One finished answer.

    `tokens` is empty unless asked for with `return_tokens=True`. `finish` is the server's word for why it ended: `eos`,
    `word`, `limit` from /completion; `stop`, `length`, `tool_calls` from chat. `truncated` is set when the context was
    full.
    """

    text: str
    tokens: tuple[int, ...]
    finish: str
    truncated: bool
    timings: Timings
    reasoning: str = ""


@dataclass(frozen=True)
class SpecCounters:
    """Speculation so far, over all requests since the server started."""

    drafted: int
    accepted: int
    verified: int
    accepted_per_pos: tuple[int, ...] = ()

    def __sub__(self, other: SpecCounters) -> SpecCounters:
        places = itertools.zip_longest(self.accepted_per_pos, other.accepted_per_pos, fillvalue=0)
        return SpecCounters(
            self.drafted - other.drafted,
            self.accepted - other.accepted,
            self.verified - other.verified,
            tuple(mine - theirs for mine, theirs in places),
        )


@dataclass(frozen=True)
class Counted:
    """A completion and the target steps it took after the prompt (see the module's text)."""

    completion: Completion
    verified: int
    accepted_per_pos: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens out that took a step: all but the first."""
        return max(0, self.completion.timings.predicted_n - 1)

    @property
    def steps(self) -> int:
        return max(self.verified, self.tokens - self.completion.timings.draft_n_accepted)


def tokens_per_step(runs: Sequence[Counted]) -> float:
    """AL over several requests: tokens out over steps, not a mean of means. 0.0 when nothing was decoded."""
    steps = sum(run.steps for run in runs)
    return sum(run.tokens for run in runs) / steps if steps else 0.0


def tokens_per_second(runs: Sequence[Counted]) -> float:
    """Decoding rate over several requests: tokens after the first over the time after the prompt."""
    ms = sum(run.completion.timings.predicted_ms for run in runs)
    return 1000.0 * sum(run.tokens for run in runs) / ms if ms else 0.0


class LlamaClient:
    """Requests to one server. Parameters given as `**params` go into the request body under the server's own names."""

    def __init__(self, host: str, port: int, timeout: float = 300.0) -> None:
        self.host = host
        self.port = port
        self.timeout = timeout

    def completion(self, prompt: str | Sequence[int], **params: Any) -> Completion:
        """POST /completion. `prompt` is text or token ids. Raises RefusedError, UserError when the server is gone."""
        return _from_completion(self._post("/completion", {"prompt": _plain(prompt), **params}))

    def chat(self, messages: Sequence[Message], **params: Any) -> Completion:
        """POST /v1/chat/completions. With `return_tokens=True` the ids come along too (the server's verbose form)."""
        body = {"messages": list(messages), **params}
        if params.get("return_tokens"):
            body["verbose"] = True
        return _from_chat(self._post("/v1/chat/completions", body))

    def stream_completion(self, prompt: str | Sequence[int], **params: Any) -> CompletionStream:
        """Like `completion`, piece by piece. Close the stream early to cancel the request."""
        return self._stream("/completion", {"prompt": _plain(prompt), **params})

    def stream_chat(self, messages: Sequence[Message], **params: Any) -> CompletionStream:
        """Like `chat`, piece by piece. Close the stream early to cancel the request."""
        return self._stream("/v1/chat/completions", {"messages": list(messages), **params})

    def events(self, path: str, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        """POST `body` and return what came as the server wrote it: one document, with `stream` every event."""
        if not body.get("stream"):
            return [self._post(path, body)]
        with self._stream(path, body) as stream:
            return list(stream.events())

    def counted(self, request: Callable[[], Completion]) -> Counted:
        """Run one request and count its verify steps. Nothing else may use the server meanwhile."""
        before = self.spec_counters()
        completion = request()
        grown = self.spec_counters() - before
        return Counted(completion, grown.verified, grown.accepted_per_pos)

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """Token ids of `text` in the target's vocabulary."""
        return self._post("/tokenize", {"content": text, "add_special": add_special})["tokens"]

    def apply_template(self, messages: Sequence[Message], **params: Any) -> str:
        """The prompt text the chat template makes of `messages`, with `tools=` and `chat_template_kwargs=` if given."""
        return self._post("/apply-template", {"messages": list(messages), **params})["prompt"]

    def top_logprobs(self, ids: Sequence[int], count: int) -> list[dict[str, Any]]:
        """The `count` likeliest tokens after `ids`: `id`, `token`, `logprob` each (softmax at temperature 1).

        Empty when the likeliest one is only a part of a character: the server then reports none.
        """
        params = {"n_predict": 1, "n_probs": count, "temperature": 0.0, "cache_prompt": False}
        found = self._post("/completion", {"prompt": list(ids), **params})
        return next((place["top_logprobs"] for place in found.get("completion_probabilities", ())), [])

    def next_probabilities(self, ids: Sequence[int], **params: Any) -> dict[int, float]:
        """Probability of each token that the sampler chain of `params` leaves possible after `ids`."""
        params = {**params, "n_predict": 1, "n_probs": _ALL, "post_sampling_probs": True, "seed": 1}
        found = self._post("/completion", {"prompt": list(ids), **params})
        return {c["id"]: c["prob"] for place in found["completion_probabilities"][:1] for c in place["top_probs"]}

    def model(self) -> dict[str, Any]:
        """What the server says of its model: `n_params`, `size` in bytes, `ftype`, `n_ctx_train` (GET /v1/models)."""
        return self._get_json("/v1/models")["data"][0].get("meta") or {}

    def props(self) -> dict[str, Any]:
        """GET /props: model path, context size, build, chat template."""
        return self._get_json("/props")

    def slots(self) -> list[dict[str, Any]]:
        """GET /slots: what each slot is doing (needs `--slots`, on by default)."""
        return self._get_json("/slots")

    def metrics(self) -> dict[str, float]:
        """GET /metrics (needs `--metrics`), without the `llamacpp:` prefix. Labelled series keep their label in the
        name.
        """
        found = {}
        for line in self._get("/metrics").decode().splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                found[name.removeprefix("llamacpp:")] = float(value)
        return found

    def spec_counters(self) -> SpecCounters:
        """Raises UserError when a counter is so large that the server prints it rounded."""
        found = self.metrics()
        counters = [
            int(found[f"spec_decode_num_{name}_total"]) for name in ("draft_tokens", "accepted_tokens", "drafts")
        ]
        places = itertools.takewhile(found.__contains__, map(_PER_POSITION.format, itertools.count()))
        if max(counters) >= EXACT_BELOW:
            raise UserError(
                f"/metrics prints counters of {EXACT_BELOW} and more with six digits only (found {counters}): "
                "restart the server to count verify steps again"
            )
        return SpecCounters(*counters, tuple(int(found[place]) for place in places))

    def healthy(self) -> bool:
        """True when the model is loaded. False while it loads or when nobody answers."""
        try:
            self._get("/health")
        except (RefusedError, OSError, http.client.HTTPException):
            return False
        return True

    def _get(self, path: str) -> bytes:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=self.timeout)
        try:
            connection.request("GET", path)
            return _body(path, connection.getresponse())
        finally:
            connection.close()

    def _get_json(self, path: str) -> Any:
        try:
            return json.loads(self._get(path))
        except (OSError, http.client.HTTPException) as cause:
            raise self._lost(path, cause) from cause

    def _open(self, path: str, body: Mapping[str, Any]) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=self.timeout)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            return connection, connection.getresponse()
        except (OSError, http.client.HTTPException) as cause:
            connection.close()
            raise self._lost(path, cause) from cause

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        connection, response = self._open(path, body)
        try:
            return json.loads(_body(path, response))
        except (OSError, http.client.HTTPException) as cause:
            raise self._lost(path, cause) from cause
        finally:
            connection.close()

    def _stream(self, path: str, body: Mapping[str, Any]) -> CompletionStream:
        connection, response = self._open(path, {**body, "stream": True})
        if response.status != http.client.OK:
            try:
                _body(path, response)
            finally:
                connection.close()
        return CompletionStream(path, connection, response, self._lost)

    def _lost(self, path: str, cause: Exception) -> UserError:
        """The error for a connection that broke; a subclass that owns the process knows more."""
        return UserError(
            f"llama-server at {self.host}:{self.port} did not answer {path}: {cause or type(cause).__name__}"
        )


@dataclass
class CompletionStream:
    """An answer on its way. Iterate for the pieces of text; `close` (or leaving the `with`) cancels what is not yet
    generated.

    `completion()` reads the rest and returns the whole.
    """

    path: str
    connection: http.client.HTTPConnection
    response: http.client.HTTPResponse
    lost: Callable[[str, Exception], UserError]
    pieces: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    finish: str = ""
    truncated: bool = False
    timings: Timings = field(default_factory=Timings)

    def __enter__(self) -> CompletionStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[str]:
        try:
            for line in self.response:
                if piece := self._take(line):
                    self.pieces.append(piece)
                    yield piece
        except (OSError, http.client.HTTPException) as cause:
            raise self.lost(self.path, cause) from cause

    def events(self) -> Iterator[dict[str, Any]]:
        """The events as the server wrote them, instead of the pieces of text."""
        try:
            for line in self.response:
                if (event := _event(line)) is not None:
                    yield event
        except (OSError, http.client.HTTPException) as cause:
            raise self.lost(self.path, cause) from cause

    def completion(self) -> Completion:
        """The whole answer. Raises UserError if the stream ended without the server's last word."""
        for _ in self:
            pass
        self.close()
        if not self.finish:
            raise UserError(f"llama-server ended the stream of {self.path} early, after {len(self.pieces)} pieces")
        return Completion("".join(self.pieces), tuple(self.tokens), self.finish, self.truncated, self.timings)

    def close(self) -> None:
        """Close the connection. The server notices and stops generating for it."""
        if self.connection.sock is not None:
            self.connection.sock.close()
        self.response.close()
        self.connection.close()

    def _take(self, line: bytes) -> str:
        """Read one line of server-sent events; returns the text it adds."""
        event = _event(line)
        if event is None:
            return ""
        if "error" in event:
            raise _refused(self.path, event["error"].get("code", 0), event["error"])
        if "timings" in event:
            self.timings = Timings.from_json(event["timings"])
        if "choices" in event:
            if not event["choices"]:
                return ""
            choice = event["choices"][0]
            self.finish = choice["finish_reason"] or ""
            return choice["delta"].get("content") or ""
        self.tokens += event["tokens"]
        if event["stop"]:
            self.finish, self.truncated = event["stop_type"], event["truncated"]
        return event["content"]


def _event(line: bytes) -> dict[str, Any] | None:
    """What one line of server-sent events says; None for the lines between and the last one."""
    if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
        return None
    return json.loads(line[len(b"data: ") :])


def _plain(prompt: str | Sequence[int]) -> str | list[int]:
    return prompt if isinstance(prompt, str) else list(prompt)


def _body(path: str, response: http.client.HTTPResponse) -> bytes:
    body = response.read()
    if response.status == http.client.OK:
        return body
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        error = {"message": body.decode(errors="replace")[:500]}
    raise _refused(path, response.status, error)


def _refused(path: str, status: int, error: Mapping[str, Any]) -> RefusedError:
    return RefusedError(path, status, error.get("type", "error"), error.get("message", "no message"))


def _from_completion(found: Mapping[str, Any]) -> Completion:
    return Completion(
        text=found["content"],
        tokens=tuple(found.get("tokens", ())),
        finish=found["stop_type"],
        truncated=found["truncated"],
        timings=Timings.from_json(found["timings"]),
    )


def _from_chat(found: Mapping[str, Any]) -> Completion:
    choice = found["choices"][0]
    verbose = found.get("__verbose", {})
    return Completion(
        text=choice["message"].get("content") or "",
        tokens=tuple(verbose.get("tokens", ())),
        finish=choice["finish_reason"],
        truncated=verbose.get("truncated", False),
        timings=Timings.from_json(found.get("timings", {})),
        reasoning=choice["message"].get("reasoning_content") or "",
    )
