"""Replicas: one Backend made of several worker processes, each with a teacher of its own.

A small teacher is bound by the host, not by the card, so several share one GPU; with more GPUs each replica gets its
own. Work is pulled: a replica is sent a chunk of one template when it has room, never dealt out in advance. Promises
that a worker ends when this process does, however that ends, and that one which dies is started again while the others
go on, its prompts asked again; a death that this does not mend is an EngineError here.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from engine import errors
from engine.backend import Watch
from engine.chunks import Waiting
from engine.config import Sampling, Teacher
from engine.errors import EngineError, PotstillError
from engine.mps import Mps, mps_for
from engine.placement import cards_used, environment, on_one_card, share
from engine.progress import note
from engine.replica import Message, Replica
from engine.replica_worker import Abort, Add, Answers, Died, encode
from engine.rows import Completion, Prompt

PATIENCE_S = 60.0
"""Seconds of starting after which it is said that it goes on."""
STARTS = 3
"""Times that a replica is started again without a single answer in between; after that it is left out."""
BACKOFF_S = 1.0
"""Wait before the first of them; it doubles each time."""


class ReplicaBackend:
    """Several teachers behind one Backend."""

    def __init__(
        self, teacher: Teacher, sampling: Sampling, *, watch: Watch | None = None, chosen_because: str = ""
    ) -> None:
        self.capacity = 0
        """Of all replicas that are not left out: one that is being started again will soon take its share."""
        self._teacher = teacher
        self._sampling = sampling
        self._watch = watch
        self._chosen = {"replicas_because": chosen_because} if chosen_because else {}
        self._replicas: list[Replica] = []
        """By number; the place of one that is left out stays."""
        self._described: dict[str, str] = {}
        self._mps: Mps | None = None
        self._waiting = Waiting()
        self._inbox: asyncio.Queue[tuple[Replica, Message]] = asyncio.Queue()
        self._lost: set[str] = set()
        """Prompts that were in flight at a death and have not come back."""
        self._starts: Counter[int] = Counter()
        """Times that each replica was started again since it last answered."""
        self._left_out: set[int] = set()
        self._restarting: set[asyncio.Task[None]] = set()
        self._error: PotstillError | None = None

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    def describe(self) -> dict[str, str]:
        gpus = {"gpus": str(cards_used(self._teacher))} if self._teacher.backend == "vllm" else {}
        mps = {"mps": "on"} if self._mps is not None else {}
        return {**self._described, "replicas": str(self._count), **gpus, **mps, **self._chosen}

    async def add(self, prompts: Sequence[Prompt]) -> None:
        refused = []
        for prompt in prompts:
            if _sendable(prompt):
                self._waiting.add(prompt)
            else:
                refused.append(_unsendable(prompt))
        if refused:
            self._inbox.put_nowait((self._replicas[0], Answers(refused)))
        self._feed()

    async def abort(self, ids: Sequence[str]) -> None:
        self._waiting.discard(set(ids))
        self._lost.difference_update(ids)
        for replica in self._replicas:
            here = [name for name in ids if replica.asked.pop(name, None) is not None]
            if here:
                replica.send(Abort(here))
        self._feed()

    async def completions(self) -> list[Completion]:
        """Do what Backend says; what was answered before a death that ends the teacher is handed over first."""
        if self._error is not None:
            raise self._error
        done = self._take_in(await self._inbox.get())
        while not self._inbox.empty():
            done += self._take_in(self._inbox.get_nowait())
        if self._error is not None and not done:
            raise self._error
        self._feed()
        return done

    @property
    def _count(self) -> int:
        return len(self._replicas) - len(self._left_out)

    async def _start(self) -> None:
        """Start the replicas all at once: each is told how much memory it gets, so none measures what another takes."""
        loop = asyncio.get_running_loop()
        if self._teacher.mps:
            await self._start_mps()
        part, shared = share(self._teacher), self._mps.environment if self._mps is not None else {}
        for number in range(self._teacher.replica_count):
            told = environment(number, self._teacher) | shared
            replica = Replica(number, part, self._sampling, self._watch, told)
            self._replicas.append(replica)
            replica.start()
            replica.listen(self._inbox)
        start, limit = loop.time(), self._teacher.start_timeout_s
        while starting := [replica.number for replica in self._replicas if not replica.up]:
            try:
                patience = min(PATIENCE_S, start + limit - loop.time())
                replica, message = await asyncio.wait_for(self._inbox.get(), patience)
            except TimeoutError:
                waited = loop.time() - start
                if waited >= limit:
                    raise EngineError(
                        f"replica {starting[0]} did not start in {limit:g} s (teacher.start_timeout_s); see its "
                        "output above"
                    ) from None
                note(f"replica {starting[0]} is still starting, {waited:.0f} s so far (a model may be on its way)")
                continue
            if isinstance(message, Died):
                raise _error(replica.number, message)
        self.capacity = sum(replica.capacity for replica in self._replicas)
        self._described = self._replicas[0].described

    async def _start_mps(self) -> None:
        self._mps = mps_for(on_one_card(self._teacher))
        if self._mps is None:
            return
        try:
            await asyncio.to_thread(self._mps.check)
        except asyncio.CancelledError:  # nobody waits for a service that nobody will use
            self._mps.leave()
            self._mps = None
            raise

    async def _stop(self) -> None:
        for task in self._restarting:
            task.cancel()
        await asyncio.gather(*self._restarting, return_exceptions=True)
        await asyncio.gather(*(asyncio.to_thread(replica.stop) for replica in self._replicas))
        self._replicas.clear()
        if self._mps is not None:
            await asyncio.to_thread(self._mps.stop)
            self._mps = None

    def _feed(self) -> None:
        """Send waiting prompts, in chunks of one template, to the replica that has the fewest for its size.

        One that could run more at once gets its even share at once; a busy one waits until a chunk finds room.
        """
        batches: dict[int, list[Prompt]] = {}
        up = [replica for replica in self._replicas if replica.up]
        while self._waiting and up:
            replica = min(up, key=lambda one: one.load)
            size = replica.chunk
            if len(replica.asked) < replica.capacity:
                size = min(size, -(-len(self._waiting) // len(up)))
            elif replica.room < size:
                break
            chunk = self._waiting.take(size)
            replica.asked |= {prompt.id: prompt for prompt in chunk}
            batches.setdefault(replica.number, []).extend(chunk)
        for number, prompts in batches.items():
            self._replicas[number].send(Add(prompts))

    def _take_in(self, event: tuple[Replica, Message]) -> list[Completion]:
        replica, message = event
        if isinstance(message, Answers):
            for completion in message.completions:
                if replica.asked.pop(completion.id, None) is not None:
                    self._starts.pop(replica.number, None)
                self._lost.discard(completion.id)
            return message.completions
        if isinstance(message, Died) and replica.up:  # of one that never was up, who starts it again is told
            replica.up = False
            self._mourn(replica, message)
        return []

    def _mourn(self, replica: Replica, message: Died) -> None:
        """Have a dead replica started again and its prompts asked again, or note the error that ends the teacher."""
        error = _error(replica.number, message)
        if not self._is_mended_alone(replica, error):
            self._error = error
            return
        number, asked = replica.number, list(replica.asked.values())
        self._lost.update(replica.asked)
        self._waiting.put_back(asked)
        replica.asked.clear()
        fate = "started again" if self._starts[number] < STARTS else "left out"
        note(
            f"replica {number} died ({message.message}); it is {fate} while the others go on, and {len(asked)} prompts "
            "are asked again"
        )
        task = asyncio.create_task(self._start_again(replica))
        self._restarting.add(task)
        task.add_done_callback(self._restarting.discard)

    def _is_mended_alone(self, dead: Replica, error: PotstillError) -> bool:
        """Say whether a death is this replica's own affair.

        It is not where none is left to go on, where settings are at fault, where the others may be hurt too (a fault
        under MPS), or where one of its prompts was in flight at a death before: that prompt may be what kills.
        """
        own = isinstance(error, EngineError) and self._mps is None and self._lost.isdisjoint(dead.asked)
        return own and any(replica.up for replica in self._replicas)

    async def _start_again(self, dead: Replica) -> None:
        """Start a replica again in its place; leave it out after so many starts without an answer."""
        number = dead.number
        while True:
            await asyncio.to_thread(self._replicas[number].stop)
            if self._starts[number] >= STARTS:
                break
            await asyncio.sleep(BACKOFF_S * 2 ** self._starts[number])
            self._starts[number] += 1
            fresh = self._replicas[number] = dead.again()
            objection = await self._objection(fresh)
            if objection is None:
                self.capacity += fresh.capacity - dead.capacity
                self._feed()
                return
            note(f"replica {number} did not start again, try {self._starts[number]} of {STARTS} ({objection})")
        self.capacity -= dead.capacity
        self._left_out.add(number)
        note(
            f"replica {number} is left out, since {STARTS} starts brought no answer; {self._count} of "
            f"{len(self._replicas)} replicas go on"
        )

    async def _objection(self, fresh: Replica) -> str | None:
        """Start a replica beside the others, and return why it did not come up; None if it did."""
        try:
            await asyncio.to_thread(fresh.start)
        except OSError as error:
            return error.strerror or str(error)
        first, limit = fresh.listen(self._inbox), self._teacher.start_timeout_s
        await asyncio.wait({first}, timeout=limit)
        if not first.done():
            first.cancel()
            return f"not within {limit:g} s, teacher.start_timeout_s"
        word = first.result()
        return word.message if isinstance(word, Died) else None


def _sendable(prompt: Prompt) -> bool:
    try:
        encode(prompt)
    except UnicodeEncodeError:
        return False
    return True


def _unsendable(prompt: Prompt) -> Completion:
    error = "the prompt has no UTF-8 form: it holds half a surrogate pair"
    return Completion(id=prompt.id, text="", finish_reason="error", error=error)


def _error(number: int, message: Died) -> PotstillError:
    """Return the error that a worker ended with, as the class that it was there."""
    kind: type[PotstillError] = getattr(errors, message.kind, EngineError)
    return kind(f"replica {number}: {message.message}" if issubclass(kind, EngineError) else message.message)
