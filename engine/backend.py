"""The Backend protocol, and EchoBackend: a real backend that needs no model.

A backend takes prompts, answers each exactly once with a Completion, and hands completions over in batches.
It promises that an added prompt comes back (as text, as an early verdict, or with `error`) unless it was
aborted, and that `EngineError` is raised where the teacher is gone. It knows nothing of caps, duplicates or disk.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol, Self

import msgspec
import xxhash

from engine.config import Echo, Sampling, Teacher
from engine.errors import ConfigError
from engine.logprobs import pack
from engine.progress import note
from engine.rows import Completion, Prompt, Verdict

Watch = Callable[[str], Verdict | None]
"""Judges a partial text: the verdict that the finished row is certain to get, or None. Pure and thread-safe."""


class Backend(Protocol):
    """A teacher. Entered with `async with`; all calls come from one event loop."""

    @property
    def capacity(self) -> int:
        """Prompts in flight that keep it busy; more only wait inside it."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def describe(self) -> dict[str, str]:
        """Name what answers (model, hash, library versions) for the manifest."""
        ...

    async def add(self, prompts: Sequence[Prompt]) -> None:
        """Send prompts; returns before they are answered."""
        ...

    async def abort(self, ids: Sequence[str]) -> None:
        """Stop generating these; an id that is aborted may or may not still come back."""
        ...

    async def completions(self) -> list[Completion]:
        """Wait for at least one finished prompt and return all that are finished.

        Raises: EngineError where the teacher is gone.
        """
        ...


TOKEN_CHARS = 4
"""Characters that EchoBackend calls one token."""
WATCH_TOKENS = 8
"""A partial text is judged every so many tokens: vLLM's `stream_interval`, measured as cheap as no streaming."""


class EchoBackend:
    """Answers by rule, at a simulated token rate; refusals, repeats, overlong and empty text in set shares.

    The answer is a function of the prompt alone, and at temperature 0 of the question alone. Steps go like an engine's:
    every running prompt gains a token a step, and a step takes running / tokens_per_s seconds, so what is aborted early
    costs less.
    """

    def __init__(self, echo: Echo, sampling: Sampling, *, watch: Watch | None = None) -> None:
        self.capacity = echo.max_num_seqs
        self._echo = echo
        self._max_tokens = sampling.max_tokens
        self._greedy = sampling.temperature == 0
        self._logprobs = sampling.logprobs
        self._watch = watch
        self._running: dict[str, tuple[Prompt, str, int]] = {}
        self._waiting: dict[str, Prompt] = {}
        self._done: list[Completion] = []
        self._next_step = time.monotonic()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.clear()
        self._waiting.clear()

    def describe(self) -> dict[str, str]:
        return {"backend": "echo", "model": "echo"}

    async def add(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            self._waiting[prompt.id] = prompt

    async def abort(self, ids: Sequence[str]) -> None:
        for prompt_id in ids:
            self._waiting.pop(prompt_id, None)
            self._running.pop(prompt_id, None)

    async def completions(self) -> list[Completion]:
        while not self._done:
            self._admit()
            if not self._running:
                await asyncio.sleep(0)
                return []
            self._step()
            await self._pace(len(self._running) * WATCH_TOKENS)
        done, self._done = self._done, []
        return done

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self.capacity:
            prompt_id = next(iter(self._waiting))
            prompt = self._waiting.pop(prompt_id)
            self._running[prompt_id] = (prompt, self.answer(prompt), 0)

    def _step(self) -> None:
        for prompt_id, (prompt, text, tokens) in list(self._running.items()):
            tokens += WATCH_TOKENS
            limit = prompt.max_tokens or self._max_tokens
            whole = -(-len(text) // TOKEN_CHARS)
            partial = text[: min(tokens, limit) * TOKEN_CHARS]
            verdict = self._watch(partial) if self._watch and tokens < min(whole, limit) else None
            if tokens < min(whole, limit) and verdict is None:
                self._running[prompt_id] = (prompt, text, tokens)
                continue
            del self._running[prompt_id]
            reason = "abort" if verdict else "length" if whole > limit else "stop"
            self._done.append(
                Completion(
                    id=prompt_id,
                    text=partial,
                    finish_reason=reason,
                    prompt_tokens=-(-len(prompt.question) // TOKEN_CHARS),
                    output_tokens=min(tokens, whole, limit),
                    verdict=verdict,
                    logprobs=_made_up(partial, self._logprobs) if self._logprobs and not verdict else b"",
                )
            )

    async def _pace(self, tokens: int) -> None:
        """Sleep until the simulated engine would have produced so many more tokens."""
        now = time.monotonic()
        self._next_step = max(self._next_step, now - 1.0) + tokens / self._echo.tokens_per_s
        await asyncio.sleep(max(0.0, self._next_step - now))

    def answer(self, prompt: Prompt) -> str:
        """Return the answer to a prompt: a function of the question, and of the prompt's seed where it varies."""
        echo = self._echo
        varying = "" if self._greedy else f"{prompt.id}\x1f{prompt.seed}"
        number = xxhash.xxh3_64_intdigest(f"{prompt.question}\x1f{varying}".encode())
        if prompt.constraint and prompt.constraint.choice:
            return prompt.constraint.choice[number % len(prompt.constraint.choice)]
        draw = number / 2**64
        if draw < echo.refusals:
            return f"Sorry, I cannot help with that. You asked: {prompt.question}"
        if draw < echo.refusals + echo.overlong:
            return " ".join([f"About {prompt.question!r}:"] + ["and so on, at length,"] * 60)
        if draw < echo.refusals + echo.overlong + echo.empty:
            return ""
        if draw < echo.refusals + echo.overlong + echo.empty + echo.repeats:
            return f"Answer: {prompt.question}"
        return f"Answer {number % 10**6}: {prompt.question}"


def _made_up(text: str, width: int) -> bytes:
    """Return log-probabilities as a function of the text alone: a token is four characters, a vocabulary 50,000."""
    ids, topk, values = [], [], []
    scores = [-0.25 * (place + 1) for place in range(width)]
    for start in range(0, len(text), TOKEN_CHARS):
        token = xxhash.xxh32_intdigest(text[start : start + TOKEN_CHARS].encode("utf-8", "surrogatepass")) % 50_000
        ids.append(token)
        topk.append([(token + 7_919 * place) % 50_000 for place in range(width)])
        values.append(scores)
    return pack(ids, topk, values, [scores[0]] * len(ids))


def check_teacher(teacher: Teacher, sampling: Sampling) -> None:
    """Check what the settings ask of a teacher before anything is started.

    Raises: ConfigError where it cannot do it.
    """
    if teacher.batch_invariant and teacher.backend == "openai":
        raise ConfigError("teacher.batch_invariant is the endpoint's to set: start it with VLLM_BATCH_INVARIANT=1")
    if sampling.samples > 1 and sampling.temperature == 0:
        raise ConfigError("sampling.samples: at temperature 0 all samples are the same; raise sampling.temperature")
    if sampling.consensus != "none" and sampling.samples < 2:
        raise ConfigError("sampling.consensus needs samples to vote; set sampling.samples = 8, for example")
    if sampling.consensus_early and sampling.consensus == "none":
        raise ConfigError("sampling.consensus_early: there is no vote; set sampling.consensus = majority")
    try:
        re.compile(sampling.consensus_pattern)
    except re.error as error:
        raise ConfigError(f"sampling.consensus_pattern is no regular expression ({error})") from None
    if teacher.reasoning_end and sampling.logprobs:
        raise ConfigError(
            "sampling.logprobs are of all tokens, and teacher.reasoning_end leaves some of them out; set one of the two"
        )
    if teacher.backend == "openai" and sampling.logprobs:
        raise ConfigError(
            "sampling.logprobs needs teacher.backend = vllm: an endpoint names candidates by text, not by token id; "
            "set it to 0, or run the teacher here"
        )


def make_backend(teacher: Teacher, sampling: Sampling, *, watch: Watch | None = None) -> Backend:
    """Return the backend that `teacher.backend` names; the library it needs is imported here and not before.

    vLLM gets a process of its own even alone: it changes torch, stdout and signals in the process that it runs in, and
    only a process gives back all of its memory. So `watch` must be picklable.

    Raises: ConfigError where it cannot do what is asked, MissingError where its library or model is not there.
    """
    check_teacher(teacher, sampling)
    if sampling.consensus != "none":
        from engine.consensus import ConsensusBackend

        one = msgspec.structs.replace(sampling, samples=1, consensus="none", consensus_early=False)
        return ConsensusBackend(make_backend(teacher, one), sampling)
    if teacher.reasoning_end:
        from engine.reasoning import AnswerWatch, ReasoningBackend

        watch = AnswerWatch(watch, teacher.reasoning_end) if watch else None
        return ReasoningBackend(_make_plain(teacher, sampling, watch), teacher.reasoning_end)
    return _make_plain(teacher, sampling, watch)


def _make_plain(teacher: Teacher, sampling: Sampling, watch: Watch | None) -> Backend:
    """Return the backend whose completions are what the teacher wrote."""
    why = ""
    if teacher.replicas == "auto":
        from engine.replica_count import resolve

        teacher, why = resolve(teacher)
        note(f"teacher.replicas = auto: {teacher.replicas} ({why})")
    if teacher.backend == "openai":
        from engine.openai_backend import OpenAIBackend

        return OpenAIBackend(teacher, sampling, watch=watch)
    if teacher.backend == "vllm" or teacher.replica_count > 1:
        from engine.replicas import ReplicaBackend

        return ReplicaBackend(teacher, sampling, watch=watch, chosen_because=why)
    return backend_here(teacher, sampling, watch=watch)


def backend_here(teacher: Teacher, sampling: Sampling, *, watch: Watch | None = None) -> Backend:
    """Return the backend of one local teacher, in this process: what a replica runs."""
    if teacher.backend == "echo":
        return EchoBackend(teacher.echo, sampling, watch=watch)
    from engine.vllm_backend import VllmBackend

    return VllmBackend(teacher, sampling, watch=watch)


async def answer_all(backend: Backend, prompts: Sequence[Prompt]) -> list[Completion]:
    """Ask an entered backend every prompt and return the completions in the order of the prompts."""
    window = 2 * backend.capacity
    answers: dict[str, Completion] = {}
    sent = 0
    while len(answers) < len(prompts):
        if sent < len(prompts) and sent - len(answers) < window:
            chunk = prompts[sent : len(answers) + window]
            await backend.add(chunk)
            sent += len(chunk)
        for completion in await backend.completions():
            answers[completion.id] = completion
    return [answers[prompt.id] for prompt in prompts]
