"""What an endpoint and the way to it may put a client through: a hard limit, outages, a proxy."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from endpoint import Endpoint, Fault, Seen, refusal


@dataclass
class Limit:
    """At most `requests` in any window of `window_s`; what is above gets 429."""

    requests: int
    window_s: float = 1.0
    says_when: bool = False
    """Whether Retry-After says when there is a place again."""
    strict: bool = False
    """Whether a refused request takes a place, too."""
    refused: int = 0
    _times: deque[float] = field(default_factory=deque)

    def __call__(self, seen: Seen) -> Fault | None:
        """Count a request, and return the fault of one that is above the limit."""
        now = time.monotonic()
        while self._times and now - self._times[0] >= self.window_s:
            self._times.popleft()
        full = len(self._times) >= self.requests
        if not full or self.strict:
            self._times.append(now)
        if not full:
            return None
        self.refused += 1
        wait_s = self.window_s - (now - self._times[-self.requests])
        return refusal(429, "slow down", headers={"Retry-After": f"{wait_s:.2f}"} if self.says_when else {})


@asynccontextmanager
async def flapping(endpoint: Endpoint, *, up_s: float, down_s: float) -> AsyncIterator[None]:
    """Take a served endpoint down and up again, over and over; it is up at the end."""

    async def flap() -> None:
        while True:
            await asyncio.sleep(up_s)
            await endpoint.stop()
            try:
                await asyncio.sleep(down_s)
            finally:
                await endpoint.start()

    task = asyncio.create_task(flap())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


class Proxy:
    """An HTTP proxy on 127.0.0.1 that passes every request on to one endpoint; entered with `async with`."""

    def __init__(self, endpoint: Endpoint, *, answer: bytes = b"") -> None:
        self.asked: list[str] = []
        """The head of the first request of each connection."""
        self._endpoint = endpoint
        self._answer = answer
        """What it answers by itself, if anything."""

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(asyncio.IncompleteReadError):
                await self._relay(reader, writer)
        finally:
            writer.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.asked.append(head.decode())
        if self._answer:
            writer.write(self._answer)
            return
        there, here = await asyncio.open_connection("127.0.0.1", self._endpoint.port)
        here.write(head)
        async with asyncio.TaskGroup() as group:
            group.create_task(_pass_on(reader, here))
            group.create_task(_pass_on(there, writer))


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()
