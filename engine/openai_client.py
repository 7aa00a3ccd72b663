"""How one prompt is asked of an OpenAI-compatible endpoint until it is answered: limits, retries, waits.

Promises that an endpoint which takes nobody's request is waited for at no prompt's expense, that a wait which it asks
for holds every prompt back, and that none of this lasts for ever. Knows nothing of which prompts there are, and leaves
a single request to openai_connection.py.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from contextlib import suppress

import msgspec

from engine import openai_wire as wire
from engine.config import Sampling, Teacher
from engine.openai_connection import Connection
from engine.openai_pressure import Pressure
from engine.openai_refusal import ClosedError, LimitNameError, RefusedError, Spent, TransientError
from engine.rows import Completion, Prompt

FIRST_BACKOFF_S = 1.0
LONGEST_BACKOFF_S = 30.0
LOG_EVERY_S = 10.0
PROBE = Prompt(index=-1, id="probe", template="", instruction="Say yes.", max_tokens=1)
"""Asked where nothing else shows whether the endpoint answers anybody."""

log = logging.getLogger(__name__)


class Client:
    """Asks over a connection that is entered."""

    def __init__(self, connection: Connection, teacher: Teacher, sampling: Sampling, *, first_backoff_s: float) -> None:
        self._connection = connection
        self._retries = teacher.retries
        self._first_backoff_s = first_backoff_s
        self._request = wire.Request(teacher, sampling, stream=connection.streams)
        self._pressure = Pressure(
            teacher.max_in_flight, first_pause_s=first_backoff_s, requests_per_s=teacher.requests_per_s
        )
        self._patience_s = max(teacher.patience_s, teacher.timeout_s)
        self._next_log = 0.0
        self._asking = 0

    async def ask(self, prompt: Prompt) -> Completion:
        """Return the answer to one prompt, trying again as often as `teacher.retries` says.

        Raises: RefusedError where this prompt will never be answered, TransientError where the retries are used up,
            EndpointError where no prompt will be answered.
        """
        self._asking += 1
        try:
            return await self._until_answered(prompt)
        finally:
            self._asking -= 1
            if not self._asking:
                self._pressure.forget_silence()

    async def _until_answered(self, prompt: Prompt) -> Completion:
        attempt = 0
        passed_over = False
        lost = Spent()
        while True:
            limit, body = self._request.limit, self._request.body(prompt)
            in_round = 0
            try:
                async with self._pressure as in_round:
                    completion = await self._connection.post(prompt, body)
            except ClosedError as fault:
                if self._is_patient(fault, in_round):
                    continue
                await self._probe(fault)
                if passed_over:
                    raise RefusedError(f"{fault}, for {self._patience_s:g} s, while others are answered") from None
                passed_over = True
            except TransientError as fault:
                lost = fault.spent = lost + fault.spent
                if attempt == self._retries:
                    raise
                await self._back_off(fault, attempt)
                attempt += 1
            except RefusedError as refusal:
                refusal.spent = lost + refusal.spent
                self._pressure.answered()
                if not isinstance(refusal, LimitNameError) or limit == wire.NEW_LIMIT:
                    raise
                self._request.limit = wire.NEW_LIMIT
            else:
                self._pressure.answered()
                return _with_lost(completion, lost)

    def _is_patient(self, fault: ClosedError, in_round: int) -> bool:
        """Hold every prompt back from an endpoint that takes none; say whether it may still be waited for."""
        self._pressure.refused(in_round, too_many=fault.too_many)
        self._hold_back(fault)
        self._log(fault, self._pressure.pause_s)
        return self._pressure.silent_s <= self._patience_s

    async def _probe(self, fault: ClosedError) -> None:
        """Ask something small: one prompt too large for a limit is refused for ever, and must not end the run.

        Raises: EndpointError where that is refused, too.
        """
        why = f"{fault}; no answer for {self._patience_s:g} s"
        if not fault.too_many:
            raise self._connection.error("gone", why)
        try:
            with suppress(RefusedError):  # that is an answer, too
                await self._connection.post(PROBE, self._request.body(PROBE))
        except TransientError:
            raise self._connection.error("quota", why) from None
        self._pressure.answered()

    def _hold_back(self, fault: TransientError) -> None:
        """Send nothing for as long as the endpoint asks, which a daily quota may do for hours."""
        asked_s = fault.retry_after_s or 0.0
        if asked_s > self._patience_s:
            raise self._connection.error("quota", f"{fault}; it asks to wait {asked_s:.0f} s")
        self._pressure.hold_back(asked_s)

    async def _back_off(self, fault: TransientError, attempt: int) -> None:
        """Sleep before another try; what the endpoint asked to wait holds every prompt back, not this one alone."""
        self._hold_back(fault)
        pause_s = (fault.retry_after_s or 0.0) + backoff_s(attempt, self._first_backoff_s)
        self._log(fault, pause_s)
        await asyncio.sleep(pause_s)

    def _log(self, fault: TransientError, pause_s: float) -> None:
        now = time.monotonic()
        if now >= self._next_log:
            self._next_log = now + LOG_EVERY_S
            log.warning("%s: %s; trying again in %.1f s", self._connection.shown, fault, max(0.0, pause_s))


def _with_lost(completion: Completion, lost: Spent) -> Completion:
    """Return an answer that says what the tries before it cost, too."""
    if not lost.output_tokens:
        return completion
    return msgspec.structs.replace(completion, sampled_tokens=completion.output_tokens + lost.output_tokens)


def backoff_s(attempt: int, first_s: float) -> float:
    """Draw the wait after a failed try (the first is 0): full jitter, so that what failed together spreads out.

    Source: M. Brooker, Exponential Backoff and Jitter, AWS Architecture Blog, 2015.
    """
    return random.uniform(0.0, min(LONGEST_BACKOFF_S, first_s * 2.0 ** min(attempt, 32)))
