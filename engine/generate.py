"""One async loop: prompts -> completions -> verdicts -> shards.

Promises that every prompt ends as exactly one of kept, rejected, skipped or failed, that the kept rows do not depend
on timing, and that a run which is killed anywhere goes on with the same rows. A teacher that dies is started again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

from engine.backend import Backend, check_teacher, make_backend
from engine.checks import check
from engine.config import Config
from engine.errors import EndpointError, EngineError, Interrupted, LimitError
from engine.exporter import metrics_server
from engine.funnel import funnel_line, yield_warning
from engine.gate import Gate, gate_after
from engine.goal import Ending, Goal, way_on
from engine.ledger import Ledger
from engine.progress import Progress, note
from engine.prompts import Source, source_of
from engine.rows import Completion, Prompt, cleaned
from engine.rules import AT_ONCE
from engine.run import Resume, Run, open_run, versions
from engine.run_settings import changed_teacher
from engine.shards import Earlier, write_manifest
from engine.signals import told
from engine.steer import Committed, Steering
from engine.window import Window

RESTARTS = 5
"""Times that a teacher is started again without a single answer in between."""
BACKOFF_S = 1.0
"""Wait before the first restart; it doubles each time."""
BURST = 4096
"""Most prompts to commit before the teacher is looked after again, 50 ms: behind a slow answer many more may wait."""


def generate(
    settings: Config, folder: Path, *, resume: Resume = "auto", gate: bool = True, metrics_port: int | None = None
) -> dict[str, Any]:
    """Run or resume a generation and return its summary.

    Raises: any PotstillError; what is on disk by then can be resumed.
    """
    return asyncio.run(generate_with(None, settings, folder, resume=resume, gate=gate, metrics_port=metrics_port))


async def generate_with(
    backend: Backend | None,
    settings: Config,
    folder: Path,
    *,
    resume: Resume = "auto",
    gate: bool = True,
    metrics_port: int | None = None,
) -> dict[str, Any]:
    """Do what `generate` does, with a teacher that is entered already and stays so; None starts the configured one.

    Raises: any PotstillError. A teacher that was handed in and dies is not started again.
    """
    check_teacher(settings.teacher, settings.sampling)
    source = source_of(settings)
    goal = Goal(settings.output, source.left)
    check(settings, source.names)
    with open_run(folder, settings, source, resume=resume) as run:
        if run.manifest.finished and not run.goes_on(goal, source):
            ended = run.manifest.summary.get("ending", "prompts")
            more = way_on(settings, asked=run.position, count=source.count)
            shortfall = goal.shortfall(ended, run.tally.kept, run.filter.of_quota, more=more)
            note(f"{folder} is finished: {run.tally.kept:,} rows kept; nothing to do", shortfall)
            return run.manifest.summary
        if run.position:
            note(f"{folder}: going on at prompt {run.position:,} with {run.tally.kept:,} rows kept")
        run.manifest.finished = False
        opened = gate_after(run.first) if gate else None
        async with Progress(folder, run.tally, total=source.count, goal=goal) as progress:
            with metrics_server(metrics_port, run.tally, progress):
                generation = _Generation(settings, run, source, progress, goal, gate=opened, backend=backend)
                ending = await generation.drive()
        summary = run.finish({"ending": ending, "seconds": round(progress.seconds, 3), **progress.goodput()})
        more = way_on(settings, asked=run.position, count=source.count)
        shortfall = goal.shortfall(ending, run.tally.kept, run.filter.of_quota, more=more)
    funnel = funnel_line(summary["asked"] - summary["failed"], run.tally.lost())
    note(funnel, yield_warning(summary["asked"], summary["kept"]), shortfall)
    return summary


class _Generation:
    """What one generation holds while it runs."""

    def __init__(
        self,
        settings: Config,
        run: Run,
        source: Source,
        progress: Progress,
        goal: Goal,
        *,
        gate: Gate | None,
        backend: Backend | None,
    ) -> None:
        self._settings = settings
        self._backend = backend
        self._run = run
        self._source = source
        self._progress = progress
        self._steering = Steering(
            run.filter,
            greedy=settings.sampling.temperature == 0,
            disjoint=source.disjoint,
            plain=source.plain,
            goal=goal,
            kept=run.tally.kept,
            candidates=run.tally.candidates,
        )
        self._prompts = self._unasked()
        self._exhausted = False
        self._stopping = False
        self._up = False
        """Whether there is a teacher: while one is started, nothing is in flight that could be waited for."""
        self._was_up = False
        self._blamed = False
        """Whether a prompt is said to have killed a teacher."""
        self._window = Window()
        self._answers = 0
        self._ledger = Ledger(run, progress, gate=gate, goal=goal, count=source.count)

    def _unasked(self) -> Iterator[Prompt]:
        """Yield the prompts from the run's position on; a greedy run also remembers the questions before it."""
        position = self._run.position
        for prompt in self._source.prompts(0 if self._steering.remembers else position):
            if prompt.index >= position:
                yield prompt
            elif prompt.index not in self._run.failed:
                self._steering.remember(prompt)

    async def drive(self) -> Ending:
        """Run to the end, starting the teacher again where it dies, and return why it is the end."""
        restarts = 0
        with self._signals():
            while not self._finished:
                before = self._answers
                try:
                    await self._with_teacher()
                except EngineError as error:
                    self._up = False
                    self._progress.ready(False)
                    restarts = 1 if self._answers > before else restarts + 1
                    hopeless = isinstance(error, LimitError) or restarts > RESTARTS
                    if self._backend is not None or not self._was_up or hopeless:
                        raise
                    self._mourn(error, restarts)
                    await asyncio.sleep(BACKOFF_S * 2 ** (restarts - 1))
                if self._stopping and not self._finished:
                    await self._stop()
        return self._steering.ending or "prompts"

    @property
    def _finished(self) -> bool:
        over = self._exhausted or self._run.position == self._source.count
        return self._steering.done or (over and not self._steering.uncommitted)

    async def _with_teacher(self) -> None:
        async with self._teacher() as backend:
            self._up = self._was_up = True
            await self._describe(backend)
            self._progress.ready(True, gpus=int(backend.describe().get("gpus", "0")))
            while not self._finished:
                await self._ask(backend)
                if not self._is_doubtful:
                    await self._ledger.commit(self._decided(busy=self._steering.in_flight > backend.capacity // 2))
                if self._stopping and not self._steering.in_flight:
                    return
                if self._steering.in_flight and not self._finished:
                    for completion in await self._prepared(await backend.completions()):
                        self._answers += 1
                        prompt = self._steering.finish(completion)
                        if prompt is not None:
                            self._ledger.answered(prompt, completion)
                            self._progress.answered(completion)
                await self._progress.tick(in_flight=self._steering.in_flight, waiting=self._steering.waiting)
            await backend.abort(self._steering.drop())
            self._progress.ready(False)

    @property
    def _is_doubtful(self) -> bool:
        """Say whether a prompt is blamed for a death, though the teacher may die of any: it has answered none yet."""
        return self._blamed and not self._answers and self._steering.in_flight > 0

    def _teacher(self) -> AbstractAsyncContextManager[Backend]:
        if self._backend is not None:
            return nullcontext(self._backend)
        watch = self._run.filter.content.watch if self._settings.filter.early else None
        return make_backend(self._settings.teacher, self._settings.sampling, watch=watch)

    async def _ask(self, backend: Backend) -> None:
        """Keep the teacher's window full, and no fuller; near the end, ask no more than the missing rows take."""
        while not (self._stopping or self._steering.done):
            room = self._room(backend)
            self._offer(backend, room)
            prompts = self._steering.take(room)
            # What an earlier part of the run was answered is not asked again, and takes no room for long.
            answers = await self._prepared(self._run.answered.take(prompts))
            for completion in answers:
                self._steering.finish(completion)
            answered = {completion.id for completion in answers}
            unanswered = [prompt for prompt in prompts if prompt.id not in answered]
            if unanswered:
                await backend.add(unanswered)
            if not answers:
                return
            self._progress.recalled(answers)
            await self._ledger.commit(self._decided(busy=True))

    def _room(self, backend: Backend) -> int:
        room = self._window.at_once(backend.capacity) - self._steering.in_flight
        wanted = self._steering.wanted
        return room if wanted is None else min(room, wanted)

    def _offer(self, backend: Backend, room: int) -> None:
        """Look for prompts that may be asked."""
        for _ in range(self._window.looked_through(backend.capacity)):
            if self._steering.ready >= room or not self._window.is_open(self._steering):
                break
            prompt = next(self._prompts, None)
            if prompt is None:
                self._exhausted = True
                break
            self._steering.offer(prompt)

    async def _prepared(self, arrived: Sequence[Completion]) -> list[Completion]:
        """Return completions as they will be judged, when the rules have prepared them in threads of their own."""
        completions = [cleaned(completion) for completion in arrived]
        rules = self._run.filter.optional
        drafts = self._steering.drafts(completions) if rules.prepares else []
        for start in range(0, len(drafts), AT_ONCE):
            await asyncio.to_thread(rules.prepare, drafts[start : start + AT_ONCE])
        return completions

    def _decided(self, *, busy: bool) -> Iterator[Committed]:
        """Commit what is decided; with a busy teacher not too much at once, since it will soon want more prompts."""
        for committed in islice(self._steering.commit(), BURST if busy else None):
            self._window.committed(committed.prompt.id)
            yield committed

    async def _describe(self, backend: Backend) -> None:
        manifest, now = self._run.manifest, {key: str(value) for key, value in backend.describe().items()}
        if manifest.teacher and not self._run.is_new:
            difference = changed_teacher(self._run.folder, manifest.teacher, now)
            if difference:
                note(difference)
                manifest.earlier.append(Earlier(self._run.position, manifest.teacher))
        manifest.teacher = now
        manifest.versions = versions()
        await asyncio.to_thread(write_manifest, self._run.folder, manifest)

    def _mourn(self, error: EngineError, restarts: int) -> None:
        """Take stock after the teacher's death: ask again, and isolate a prompt that seems to kill it."""
        lost = self._steering.requeue()
        note(f"the teacher died ({error}); restart {restarts} of {RESTARTS}, asking {len(lost)} prompts again")
        # An endpoint is asked something else before it lets one prompt fail, so it is not this prompt that it died of.
        killer = self._window.died(lost, by_prompt=not isinstance(error, EndpointError))
        if killer is not None:
            self._blamed = True
            self._steering.take(1)
            self._steering.finish(
                Completion(id=killer, text="", finish_reason="error", error="the teacher dies when it is asked this")
            )

    async def _stop(self) -> None:
        self._run.tally.check()
        await asyncio.to_thread(self._run.writer.publish)
        kept, position = self._run.tally.kept, self._run.position
        raise Interrupted(
            f"stopped at prompt {position:,} with {kept:,} rows kept; run the same command again to go on"
        )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """First SIGINT or SIGTERM: finish what is in flight and publish. Second, or without a teacher: stop now."""
        task = asyncio.current_task()

        def stop() -> None:
            if task is not None and (self._stopping or not self._up):
                task.cancel()
            elif not self._stopping:
                note("stopping: finishing what is in flight; once more to stop at once")
            self._stopping = True

        try:
            with told(stop):
                yield
        except asyncio.CancelledError:
            if self._stopping:
                raise Interrupted("stopped at once; run the same command again to go on") from None
            raise
