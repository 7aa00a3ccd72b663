"""A small real OpenAI-compatible endpoint on 127.0.0.1, with faults on demand.

Speaks /v1/models and /v1/chat/completions, plain and as server-sent events. An answer is a function of messages,
model and seed. `python tests/endpoint.py 8000` serves it by hand.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import xxhash

if TYPE_CHECKING:
    from aiohttp import web

PIECE_CHARS = 4
"""Characters of one streamed delta, and of one token."""


@dataclass(frozen=True)
class Fault:
    """What happens instead of an answer."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    act: Literal["answer", "hang", "reset", "cut"] = "answer"
    """`answer` sends status and body, `hang` says nothing, `reset` drops the connection, `cut` does so mid-answer."""


def refusal(status: int, message: str, *, headers: dict[str, str] | None = None, **details: str) -> Fault:
    """Return an error in OpenAI's form."""
    body = json.dumps({"error": {"message": message, "code": None, "param": None, **details}}).encode()
    return Fault(status, body, headers or {})


RATE_LIMIT = refusal(429, "slow down")
OVERLOAD = Fault(503, b"overloaded")
BROKEN = refusal(500, "internal error")
TOO_LONG = refusal(400, "this model's maximum context length is 8192 tokens, you asked for 9000")
WRONG_KEY = refusal(401, "incorrect API key")
NO_MODEL = refusal(404, "The model `nobody` does not exist.", code="model_not_found")
GARBAGE = Fault(200, b"<html>bad gateway</html>")
NO_CHOICES = Fault(200, b'{"choices": []}')
HANG = Fault(act="hang")
RESET = Fault(act="reset")
CUT = Fault(act="cut")


@dataclass
class Seen:
    """One request, as the server saw it."""

    at: float
    headers: dict[str, str]
    body: dict[str, Any]
    hung_up: bool = False
    """True where the client left before the answer was whole."""
    deltas: int = 0
    """Pieces that were streamed."""

    @property
    def question(self) -> str:
        return str(self.body["messages"][-1]["content"])


class Endpoint:
    """The server; entered with `async with`. Faults may be set at any time."""

    def __init__(self, *, delay_s: float = 0.0, piece_s: float = 0.0, key: str = "", port: int = 0) -> None:
        self.delay_s = delay_s
        """Wait before an answer."""
        self.piece_s = piece_s
        """Wait before each delta of a stream."""
        self.script: deque[Fault | None] = deque()
        """Faults of the next requests, in order; None answers."""
        self.poison: dict[str, Fault] = {}
        """Faults of every request whose question holds the text."""
        self.always: Fault | None = None
        """Fault of every request."""
        self.gate: Callable[[Seen], Fault | None] | None = None
        """Looks at every request first; what it returns is the request's fault."""
        self.tail: Literal["", "cut", "hang"] = ""
        """What it does after the end of a stream instead of closing it."""
        self.on_models: Fault | None = None
        """Fault of the list of models."""
        self.seen: list[Seen] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.usage = True
        """Whether tokens are counted."""
        self._key = key
        self._port = port

    @property
    def port(self) -> int:
        return self._port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen, on the port of the last time if there was one."""
        from aiohttp import web

        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._list)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Go down: nothing listens any more and open connections are dropped."""
        await self._runner.cleanup()

    @property
    def connections(self) -> int:
        """Connections that are open now."""
        server = self._runner.server
        return len(server.connections) if server else 0

    async def _list(self, request: web.Request) -> web.Response:
        from aiohttp import web

        fault = self.on_models or (None if self._admits(request) else WRONG_KEY)
        if fault is not None:
            return await _send(request, fault)
        return web.json_response({"object": "list", "data": [{"id": "teacher"}, {"id": "teacher-lora"}]})

    def _admits(self, request: web.Request) -> bool:
        return not self._key or request.headers.get("Authorization") == f"Bearer {self._key}"

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        from aiohttp import web

        seen = Seen(time.monotonic(), dict(request.headers), await request.json())
        self.seen.append(seen)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            fault = self._fault(request, seen)
            if fault is not None and fault.act != "cut":
                return await _send(request, fault)
            await asyncio.sleep(self.delay_s)
            return await self._answer(request, seen, cut=fault is not None)
        except asyncio.CancelledError:
            seen.hung_up = True
            raise
        except ConnectionError:
            seen.hung_up = True
            return web.Response()
        finally:
            self.in_flight -= 1

    def _fault(self, request: web.Request, seen: Seen) -> Fault | None:
        if not self._admits(request):
            return WRONG_KEY
        if self.gate and (refused := self.gate(seen)):
            return refused
        if self.always:
            return self.always
        poison = next((fault for text, fault in self.poison.items() if text in seen.question), None)
        if poison or not self.script:
            return poison
        return self.script.popleft()

    async def _answer(self, request: web.Request, seen: Seen, *, cut: bool) -> web.StreamResponse:
        from aiohttp import web

        text, reason = answer(seen.body)
        usage = {"prompt_tokens": 7, "completion_tokens": -(-len(text) // PIECE_CHARS)} if self.usage else None
        if seen.body.get("stream"):
            return await self._stream(request, seen, (text, reason, usage), cut=cut)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
        body = json.dumps({"choices": [choice], "usage": usage}).encode()
        if cut:
            return await _half(request, body)
        return web.Response(body=body, content_type="application/json")

    async def _stream(
        self, request: web.Request, seen: Seen, whole: tuple[str, str, Any], *, cut: bool
    ) -> web.StreamResponse:
        from aiohttp import web

        text, reason, usage = whole
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        pieces = [text[start : start + PIECE_CHARS] for start in range(0, len(text), PIECE_CHARS)]
        for piece in pieces[: len(pieces) // 2] if cut else pieces:
            await asyncio.sleep(self.piece_s)
            seen.deltas += 1
            await response.write(_event({"choices": [{"index": 0, "delta": {"content": piece}}]}))
        if cut:
            _drop(request)
            return response
        await response.write(_event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}))
        if self.tail == "cut":
            _drop(request)
            return response
        if seen.body.get("stream_options", {}).get("include_usage"):
            await response.write(_event({"choices": [], "usage": usage}))
        await response.write(b"data: [DONE]\n\n")
        if self.tail == "hang":
            await asyncio.sleep(3600)
        return response


def answer(body: dict[str, Any]) -> tuple[str, str]:
    """Return text and finish reason: a function of messages, model and seed, cut at `max_tokens` and at `stop`."""
    asked = body["messages"][-1]["content"]
    made_of = json.dumps([body["model"], body["messages"], body.get("seed")])
    text = f"Answer {xxhash.xxh3_64_intdigest(made_of.encode()) % 10**6}: {asked}"
    for stop in body.get("stop", []):
        text = text.partition(stop)[0]
    limit = (body.get("max_tokens") or body["max_completion_tokens"]) * PIECE_CHARS
    return text[:limit], "length" if len(text) > limit else "stop"


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


async def _send(request: web.Request, fault: Fault) -> web.Response:
    from aiohttp import web

    if fault.act == "hang":
        await asyncio.sleep(3600)
    if fault.act == "reset":
        _drop(request)
    return web.Response(status=fault.status, body=fault.body, headers=fault.headers)


async def _half(request: web.Request, body: bytes) -> web.StreamResponse:
    """Send half of a body and drop the connection."""
    from aiohttp import web

    response = web.StreamResponse(headers={"Content-Length": str(len(body)), "Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    _drop(request)
    return response


def _drop(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


@contextmanager
def serving(endpoint: Endpoint) -> Iterator[Endpoint]:
    """Serve in a thread, for a test whose own thread is taken by the run (which needs it for its signals)."""
    with asyncio.Runner() as runner:
        runner.run(endpoint.start())
        loop = runner.get_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            yield endpoint
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            runner.run(endpoint.stop())


async def _serve(port: int) -> None:
    async with Endpoint(port=port) as endpoint:
        print(endpoint.url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
