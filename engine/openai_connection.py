"""The connection to an OpenAI-compatible endpoint: asks once, and says in one clear sentence what is wrong.

Promises that a setting which lets no prompt be answered (key, model, address, quota) is an EndpointError, that a
verdict hangs up on the stream, and that the key is in no message. Knows nothing of retries, limits and waits.
"""

from __future__ import annotations

import asyncio
import os
from types import TracebackType
from typing import TYPE_CHECKING, Self

from engine import openai_wire as wire
from engine.backend import Watch
from engine.config import Teacher
from engine.errors import EndpointError, LimitError
from engine.openai_address import Address
from engine.openai_refusal import (
    ClosedError,
    LimitNameError,
    Refusal,
    RefusedError,
    TransientError,
    read_refusal,
    refusal_of,
    retry_after_s,
    trouble,
)
from engine.rows import Completion, Prompt

if TYPE_CHECKING:
    from aiohttp import ClientResponse

CHECK_S = 15.0
"""Longest wait for a connection and for the list of models: both come soon or not at all, unlike an answer."""
TAIL_S = 1.0
"""Longest wait for the end of a stream that has said it is over; without it, the connection cannot be used again."""
IDLE_SOCKET_S = 4.0
"""Idle connections are dropped before uvicorn drops them (5 s), so that no request meets a closing socket."""

_SENTENCES = {
    "down": "{url} does not answer ({why}); start the server or set teacher.base_url, then run the same command again",
    "gone": "{url} went down ({why}); bring it back, then run the same command again to go on from here",
    "key": "{url} refuses the key ({why}); put a valid one into the environment variable {key_env}",
    "model": "{url} has no model {model!r} ({why}); set teacher.model to {models}",
    "path": "{url} is no OpenAI-compatible endpoint ({why}); set teacher.base_url to its address with the version"
    " path, such as http://127.0.0.1:8000/v1",
    "quota": "{url} takes no more requests from this account ({why}); once it does, run the same command again",
    "setting": "{url} does not take a setting of this run ({why}); change it, then run the same command again",
    "proxy": "the proxy {proxy} lets nothing through to {url} ({why}); correct the environment's HTTP_PROXY or"
    " HTTPS_PROXY, or put the endpoint's host into NO_PROXY",
}
"""What happened, where, what to do next; `why` is the endpoint's own word."""


class Connection:
    """The way to one endpoint, with its sockets; entered with `async with`."""

    def __init__(self, teacher: Teacher, watch: Watch | None) -> None:
        self._address = Address(teacher)
        self._teacher = teacher
        self._watch = watch
        self._models: list[str] = []

    @property
    def streams(self) -> bool:
        """Whether answers are asked for as streams, to be judged as they come."""
        return self._watch is not None

    @property
    def shown(self) -> str:
        """The endpoint's address as it may be shown."""
        return self._address.shown

    async def __aenter__(self) -> Self:
        import aiohttp

        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._teacher.max_in_flight, keepalive_timeout=IDLE_SOCKET_S),
            headers=self._address.headers,
            timeout=aiohttp.ClientTimeout(
                total=self._teacher.timeout_s, sock_connect=min(self._teacher.timeout_s, CHECK_S)
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        try:
            await self.check("down")
        except BaseException:
            await self._session.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def check(self, down: str) -> None:
        """Ask for the list of models; an endpoint may be without one. `down` names the sentence if nothing answers.

        Raises: EndpointError where nothing answers there, or not as an endpoint does.
        """
        import aiohttp

        limit_s = min(self._teacher.timeout_s, CHECK_S)
        timeout = aiohttp.ClientTimeout(total=limit_s)
        try:
            async with self._session.get(
                f"{self._address.url}/models", timeout=timeout, allow_redirects=False, proxy=self._address.proxy
            ) as response:
                body = await response.read()
        except TimeoutError:
            raise self.error(down, f"no answer within {limit_s:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            problem = self._unreached(error)
            raise problem if isinstance(problem, EndpointError) else self.error(down, str(problem)) from None
        if response.status < 300:
            models = wire.read_models(body)
            if models is None:
                raise self.error("path", "its list of models is not JSON")
            self._models = models
            return
        problem = self._problem(response, read_refusal(body))
        if response.status >= 500:
            raise self.error(down, str(problem))
        if isinstance(problem, EndpointError) and response.status not in (404, 405):
            raise problem

    async def post(self, prompt: Prompt, body: bytes) -> Completion:
        """Ask once.

        Raises: TransientError, which a ClosedError is too, RefusedError or EndpointError, by whose fault it is.
        """
        import aiohttp

        try:
            async with self._session.post(
                f"{self._address.url}/chat/completions",
                data=body,
                headers={"Content-Type": "application/json"},
                allow_redirects=False,
                proxy=self._address.proxy,
            ) as response:
                if response.status >= 300:
                    raise self._problem(response, read_refusal(await response.read()))
                if self._watch is not None and response.content_type == "text/event-stream":
                    return await self._follow(prompt, response, self._watch)
                body = await response.read()
                try:
                    return wire.read_reply(prompt, body)
                except TransientError as fault:
                    raise TransientError(self._clean(str(fault)), spent=fault.spent) from None
        except aiohttp.ConnectionTimeoutError:
            raise ClosedError("no connection in time") from None
        except TimeoutError:
            raise TransientError(f"no answer within {self._teacher.timeout_s:g} s (teacher.timeout_s)") from None
        except (aiohttp.ClientConnectorError, aiohttp.ClientHttpProxyError) as error:
            raise self._unreached(error) from None
        except (aiohttp.ClientError, OSError) as error:
            raise TransientError(self._clean(error)) from None

    async def _follow(self, prompt: Prompt, response: ClientResponse, watch: Watch) -> Completion:
        """Read a stream, and hang up as soon as the finished row is certain to be rejected.

        What breaks after the answer's end takes nothing away from it.
        """
        import aiohttp

        stream = wire.Stream()
        try:
            async for data in response.content.iter_any():
                stream.feed(data)
                if stream.error:
                    raise TransientError(self._clean(f"the answer broke off: {refusal_of(stream.error).message}"))
                if stream.due() and (verdict := watch(stream.text)) is not None:
                    response.close()
                    return stream.abort(prompt, verdict)
                if stream.over:
                    break
            async with asyncio.timeout(TAIL_S):
                await response.read()
        except (aiohttp.ClientError, OSError):  # a TimeoutError is an OSError
            if not stream.finish_reason:
                raise
        return stream.finish(prompt)

    def _unreached(self, error: Exception) -> Exception:
        """Return the exception for a request that did not get as far as the endpoint."""
        import aiohttp

        if isinstance(error, aiohttp.ClientHttpProxyError) and error.status < 500:
            return self.error("proxy", self._clean(f"{error.status} {error.message}"))
        return ClosedError(self._clean(error))

    def _problem(self, response: ClientResponse, refusal: Refusal) -> Exception:
        """Return the exception for an answer that is not 2xx."""
        status = response.status
        why = self._clean(f"{status} {refusal.message or response.headers.get('Location') or response.reason or ''}")
        wait_s = retry_after_s(response.headers.get("Retry-After"))
        kind = trouble(status, refusal, model=self._teacher.model, says_when=wait_s is not None)
        if kind == "transient":
            return TransientError(why, wait_s)
        if kind == "closed":
            return ClosedError(why, wait_s, too_many=True)
        if kind == "limit":
            return LimitNameError(why)
        return RefusedError(why) if kind == "prompt" else self.error(kind, why)

    def error(self, kind: str, why: str) -> EndpointError:
        """Return the error that says what is wrong with the endpoint and what to do about it."""
        known = ", ".join(self._models[:5]) + (", ..." if len(self._models) > 5 else "")
        tree = LimitError if kind == "quota" else EndpointError
        return tree(
            _SENTENCES[kind].format(
                url=self._address.shown,
                proxy=self._address.shown_proxy,
                why=why,
                key_env=self._teacher.api_key_env or "that teacher.api_key_env names",
                model=self._teacher.model,
                models=f"one of its own: {known}" if known else "a name that it serves",
            )
        )

    def describe(self) -> dict[str, str]:
        """Name model and address for the manifest."""
        return {"backend": "openai", "model": self._teacher.model, "endpoint": self._address.shown}

    def _clean(self, words: str | Exception) -> str:
        """Return what was said as one short line without secrets."""
        return self._address.clean(words if isinstance(words, str) else _reason(words))


def _reason(error: Exception) -> str:
    """Return what went wrong with a connection, as the system says it where it was the system that failed."""
    import aiohttp

    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"the proxy answers {error.status} {error.message}"
    if isinstance(error, aiohttp.ClientConnectorError) and not isinstance(error, aiohttp.ClientSSLError):
        number = error.errno or 0
        why = os.strerror(number) if number > 0 else error.strerror or str(error)
        by_proxy = isinstance(error, aiohttp.ClientProxyConnectionError)
        return f"the proxy {error.host}:{error.port}: {why}" if by_proxy else why
    return str(error) or type(error).__name__
