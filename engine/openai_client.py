"""One OpenAI-compatible endpoint: asks it a prompt, with rate limit, retries and one clear sentence for what is wrong.

Promises that a setting which lets no prompt be answered (key, model, address, quota) is an EndpointError at once,
that a wait which the endpoint asks for holds every prompt back, that a verdict hangs up on the stream, and that the
key is in no message and no log. Knows nothing of which prompts there are, and leaves the wire to openai_wire.py.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import re
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from asyncio_throttle import Throttler

from engine import openai_wire as wire
from engine.backend import Watch
from engine.config import Sampling, Teacher
from engine.errors import ConfigError, EndpointError
from engine.openai_pressure import Pressure
from engine.openai_wire import RefusedError, TransientError
from engine.rows import Completion, Prompt

if TYPE_CHECKING:
    from aiohttp import ClientResponse

FIRST_BACKOFF_S = 1.0
LONGEST_BACKOFF_S = 30.0
LONGEST_PAUSE_S = 600.0
"""An endpoint that asks to wait longer (a daily quota) ends the run, which can be resumed then."""
CHECK_S = 15.0
"""Longest wait for the list of models: a wrong address must not take `teacher.timeout_s` to show."""
IDLE_SOCKET_S = 4.0
"""Idle connections are dropped before uvicorn drops them (5 s), so that no request meets a closing socket."""
LOG_EVERY_S = 10.0
SHOWN_CHARS = 300
"""Longest quotation of an endpoint's own words."""

_SENTENCES = {
    "down": "{url} does not answer ({why}); start the server or set teacher.base_url, then run the same command again",
    "too_many": "{url} takes fewer requests than it is sent ({why}); set teacher.requests_per_s or lower"
    " teacher.max_in_flight, then run the same command again to go on from here",
    "gone": "{url} went down ({why}); bring it back, then run the same command again to go on from here",
    "key": "{url} refuses the key ({why}); put a valid one into the environment variable {key_env}",
    "model": "{url} has no model {model!r} ({why}); set teacher.model to {models}",
    "path": "{url} is no OpenAI-compatible endpoint ({why}); set teacher.base_url to its address with the version"
    " path, such as http://127.0.0.1:8000/v1",
    "quota": "{url} takes no more requests from this account ({why}); once it does, run the same command again",
}
"""What happened, where, what to do next; `why` is the endpoint's own word."""

log = logging.getLogger(__name__)


class Client:
    """The connection to an endpoint; entered with `async with`."""

    def __init__(self, teacher: Teacher, sampling: Sampling, watch: Watch | None, *, first_backoff_s: float) -> None:
        _check_settings(teacher)
        self.url = teacher.base_url.rstrip("/")
        self._teacher = teacher
        self._watch = watch
        self._first_backoff_s = first_backoff_s
        self._key = _key(teacher.api_key_env)
        self._request = wire.Request(teacher, sampling, stream=watch is not None)
        self._models: list[str] = []
        self._gate = asyncio.Lock()
        self._pressure = Pressure(teacher.max_in_flight, first_pause_s=first_backoff_s)
        self._throttle = _throttle(teacher.requests_per_s)
        self._closed_until = 0.0
        self._next_log = 0.0

    async def __aenter__(self) -> Self:
        import aiohttp

        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._teacher.max_in_flight, keepalive_timeout=IDLE_SOCKET_S),
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=aiohttp.ClientTimeout(total=self._teacher.timeout_s),
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
            async with self._session.get(f"{self.url}/models", timeout=timeout, allow_redirects=False) as response:
                body = await response.read()
        except TimeoutError:
            raise self.error(down, f"no answer within {limit_s:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise self.error(down, self._clean(error)) from None
        if response.status < 300:
            models = wire.read_models(body)
            if models is None:
                raise self.error("path", "its list of models is not JSON")
            self._models = models
            return
        problem = self._problem(response, wire.read_refusal(body))
        if response.status >= 500:
            raise self.error(down, str(problem))
        if isinstance(problem, EndpointError) and response.status not in (404, 405):
            raise problem

    async def ask(self, prompt: Prompt) -> Completion:
        """Return the answer to one prompt, trying again as often as `teacher.retries` says.

        Raises: RefusedError where this prompt will never be answered, TransientError where the retries are used up,
            EndpointError where no prompt will be answered.
        """
        body = self._request.body(prompt)
        attempt = 0
        while True:
            in_round = 0
            try:
                async with self._pressure as in_round:
                    await self._admit()
                    completion = await self._post(prompt, body)
                self._pressure.answered()
                return completion
            except TransientError as fault:
                if fault.too_many:
                    self._hold_back(self._pressure.too_many(in_round))
                if attempt == self._teacher.retries:
                    raise
                await self._back_off(fault, attempt)
            attempt += 1

    async def _admit(self) -> None:
        """Wait until the endpoint may be asked: its Retry-After is over and the rate limit has a place."""
        if self._throttle is None and self._closed_until <= time.monotonic():
            return
        async with self._gate:
            left_s = self._closed_until - time.monotonic()
            while left_s > 0:
                await asyncio.sleep(left_s)
                left_s = self._closed_until - time.monotonic()
            if self._throttle is not None:
                await self._throttle.acquire()

    async def _back_off(self, fault: TransientError, attempt: int) -> None:
        """Sleep before another try; what the endpoint asked to wait holds every prompt back, not this one alone."""
        asked_s = fault.retry_after_s or 0.0
        if asked_s > LONGEST_PAUSE_S:
            raise self.error("quota", f"{fault}; it asks to wait {asked_s:.0f} s")
        self._hold_back(asked_s)
        now = time.monotonic()
        pause_s = asked_s + backoff_s(attempt, self._first_backoff_s)
        if now >= self._next_log:
            self._next_log = now + LOG_EVERY_S
            log.warning("%s: %s; trying again in %.1f s", _shown(self.url), fault, pause_s)
        await asyncio.sleep(pause_s)

    def _hold_back(self, pause_s: float) -> None:
        """Send nothing for so many seconds."""
        self._closed_until = max(self._closed_until, time.monotonic() + pause_s)

    async def _post(self, prompt: Prompt, body: bytes) -> Completion:
        """Ask once."""
        import aiohttp

        try:
            async with self._session.post(
                f"{self.url}/chat/completions",
                data=body,
                headers={"Content-Type": "application/json"},
                allow_redirects=False,
            ) as response:
                if response.status >= 300:
                    raise self._problem(response, wire.read_refusal(await response.read()))
                if self._watch is not None and response.content_type == "text/event-stream":
                    return await self._follow(prompt, response, self._watch)
                body = await response.read()
                try:
                    return wire.read_reply(prompt, body)
                except TransientError as fault:
                    raise TransientError(self._clean(str(fault))) from None
        except TimeoutError:
            raise TransientError(f"no answer within {self._teacher.timeout_s:g} s (teacher.timeout_s)") from None
        except (aiohttp.ClientError, OSError) as error:
            raise TransientError(self._clean(error)) from None

    async def _follow(self, prompt: Prompt, response: ClientResponse, watch: Watch) -> Completion:
        """Read a stream, and hang up as soon as the finished row is certain to be rejected."""
        stream = wire.Stream()
        async for data in response.content.iter_any():
            stream.feed(data)
            if stream.error:
                raise TransientError(self._clean(f"the answer broke off: {wire.refusal_of(stream.error).message}"))
            if stream.due() and (verdict := watch(stream.text)) is not None:
                response.close()
                return stream.abort(prompt, verdict)
        return stream.finish(prompt)

    def _problem(self, response: ClientResponse, refusal: wire.Refusal) -> Exception:
        """Return the exception for an answer that is not 2xx."""
        status = response.status
        why = self._clean(f"{status} {refusal.message or response.headers.get('Location') or response.reason or ''}")
        kind = wire.trouble(status, refusal, model=self._teacher.model)
        if kind == "transient":
            wait_s = wire.retry_after_s(response.headers.get("Retry-After"))
            return TransientError(why, wait_s, too_many=status == 429)
        return RefusedError(why) if kind == "prompt" else self.error(kind, why)

    def error(self, kind: str, why: str) -> EndpointError:
        """Return the error that says what is wrong with the endpoint and what to do about it."""
        known = ", ".join(self._models[:5]) + (", ..." if len(self._models) > 5 else "")
        return EndpointError(
            _SENTENCES[kind].format(
                url=_shown(self.url),
                why=why,
                key_env=self._teacher.api_key_env or "that teacher.api_key_env names",
                model=self._teacher.model,
                models=f"one of its own: {known}" if known else "a name that it serves",
            )
        )

    def describe(self) -> dict[str, str]:
        """Name model and address for the manifest."""
        return {"backend": "openai", "model": self._teacher.model, "endpoint": _shown(self.url)}

    def _clean(self, words: str | Exception) -> str:
        """Return what was said as one short line without the key, which some endpoints repeat."""
        text = words if isinstance(words, str) else _reason(words)
        text = text.replace(self._key, "***") if self._key else text
        return " ".join(_shown(text).split())[:SHOWN_CHARS]


def backoff_s(attempt: int, first_s: float) -> float:
    """Draw the wait after a failed try (the first is 0): full jitter, so that what failed together spreads out.

    Source: M. Brooker, Exponential Backoff and Jitter, AWS Architecture Blog, 2015.
    """
    return random.uniform(0.0, min(LONGEST_BACKOFF_S, first_s * 2.0 ** min(attempt, 32)))


def _throttle(requests_per_s: float | None) -> Throttler | None:
    """Return the rate limit. Throttler counts whole requests in a period, so the period takes up the fraction."""
    if requests_per_s is None:
        return None
    burst = max(1, int(requests_per_s))
    return Throttler(rate_limit=burst, period=burst / requests_per_s)


def _reason(error: Exception) -> str:
    """Return what went wrong with a connection, as the system says it where it was the system that failed."""
    import aiohttp

    if isinstance(error, aiohttp.ClientConnectorError) and not isinstance(error, aiohttp.ClientSSLError):
        number = error.errno or 0
        return os.strerror(number) if number > 0 else error.strerror or str(error)
    return str(error) or type(error).__name__


def _shown(text: str) -> str:
    """Return a text with the user and password of any address left out."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", text)


def _key(name: str) -> str:
    """Return the key that an environment variable holds, or "" without one."""
    key = os.environ.get(name, "").strip() if name else ""
    if not key.isprintable():
        raise ConfigError(f"the environment variable {name} holds no key: there is a line break or the like in it")
    return key


def _check_settings(teacher: Teacher) -> None:
    if not teacher.base_url.startswith(("http://", "https://")):
        raise ConfigError(f"teacher.base_url = {teacher.base_url!r} is no address; it starts with http:// or https://")
    if not teacher.model:
        raise ConfigError("teacher.model is empty; give the name under which the endpoint serves the model")
    if teacher.adapter:
        raise ConfigError(
            "teacher.adapter is for backend = 'vllm'; for an endpoint give the adapter's alias as teacher.model"
        )
