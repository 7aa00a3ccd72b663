"""Replica: a worker process, the pipe to it, and what it was asked.

Promises that the worker's end is said however it ends, and that once it is stopped nothing is left of it or below it.
Knows nothing of other replicas.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.process import BaseProcess

from engine.backend import Watch
from engine.config import Sampling, Teacher
from engine.replica_worker import Abort, Add, Answers, Died, Ready, encode, from_worker, work
from engine.rows import Prompt
from engine.signals import interrupts_held

STOP_S = 30.0
"""Longest wait for a replica to end by itself."""
KILLED_S = 5.0
"""Longest wait for killed processes to give back their card: only where nobody reaps them does it take so long."""
CHUNK = 32
"""Prompts of one template that a busy replica is sent at a time: an eighth of its batch where that is less."""

Message = Ready | Answers | Died


class Replica:
    """One teacher in a process of its own. Any thread may start and stop it; the rest is for the event loop."""

    def __init__(
        self,
        number: int,
        teacher: Teacher,
        sampling: Sampling,
        watch: Watch | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare a worker: `teacher` is its share of one, `environment` what its environment must say."""
        self.number = number
        self.up = False
        """Whether it has started and not died."""
        self.capacity = 0
        self.described: dict[str, str] = {}
        self.asked: dict[str, Prompt] = {}
        """Prompts that it has and that have not come back."""
        context = multiprocessing.get_context("spawn")
        self._pipe, self._theirs = context.Pipe()
        self._settings = (teacher, sampling, watch, dict(environment or {}))
        self._process: BaseProcess = context.Process(
            target=work, args=(self._theirs, *self._settings), name=f"replica-{number}"
        )
        self._ended: threading.Thread | None = None
        self._reader: threading.Thread | None = None
        self._lock = threading.Lock()
        """Held while it is started or stopped: who stops one that is being started waits, and leaves none behind."""
        self._stopped = False

    def again(self) -> Replica:
        """Prepare another in its place, with the same share and the same cards: what is there may have changed."""
        return Replica(self.number, *self._settings)

    @property
    def room(self) -> int:
        """Prompts that it can take: half a batch more than it runs at once, so that it never waits for us."""
        return self.capacity + self.capacity // 2 - len(self.asked)

    @property
    def load(self) -> float:
        """Prompts that it has, by how many it runs at once: two kinds of card may run unlike numbers."""
        return len(self.asked) / self.capacity

    @property
    def chunk(self) -> int:
        """Prompts that it is sent at a time while it is busy."""
        return max(1, min(CHUNK, self.capacity // 8))

    def start(self) -> None:
        """Start the worker, unless it is stopped already.

        Raises: OSError where the machine has no room for another process.
        """
        with self._lock:
            if self._stopped:
                return
            with interrupts_held():
                self._process.start()
            self._theirs.close()
            self._ended = threading.Thread(target=self._wait_for_end, args=(self._process.pid,), daemon=True)
            self._ended.start()

    def listen(self, inbox: asyncio.Queue[tuple[Replica, Message]]) -> asyncio.Future[Message]:
        """Hand over what the worker says, from a thread of its own, until the pipe closes.

        Returns its first word, Ready or Died; once that is cancelled, nothing is heard of it any more.
        """
        loop = asyncio.get_running_loop()
        first: asyncio.Future[Message] = loop.create_future()

        def hear(message: Message) -> None:
            if first.cancelled():
                return
            if isinstance(message, Ready):
                self.up, self.capacity, self.described = True, message.capacity, message.teacher
            if not first.done():
                first.set_result(message)
            inbox.put_nowait((self, message))

        def read() -> None:
            while True:
                message = self._receive()
                try:
                    loop.call_soon_threadsafe(hear, message)
                except RuntimeError:  # the loop is closed: nobody listens any more
                    return
                if isinstance(message, Died):
                    return

        self._reader = threading.Thread(target=read, name=f"replica-{self.number}-reader", daemon=True)
        self._reader.start()
        return first

    def send(self, message: Add | Abort) -> None:
        with suppress(OSError):  # it is gone, which the thread that reads from it says
            self._pipe.send_bytes(encode(message))

    def stop(self) -> None:
        """End the worker: closing the pipe is the signal; a worker that does not heed it is killed.

        One that is still starting does not look at the pipe, and has nothing to finish.
        """
        with self._lock:
            if self._stopped:
                return
            self._stopped = True
            self._shut_pipe()
            if self._ended is not None:
                self._end(self._ended)
            if self._reader is not None:
                self._reader.join()
            self._pipe.close()
            self._theirs.close()
            with suppress(ValueError):  # another thread has waited for it, and has not noted it yet
                self._process.close()

    def _end(self, ended: threading.Thread) -> None:
        if self.capacity:
            ended.join(STOP_S)
        if self._process.exitcode != 0:
            self._kill()
        ended.join()

    def _kill(self) -> None:
        """Kill the worker and the processes that it started: vLLM's outlive it, and would keep the card."""
        pid = self._process.pid
        assert pid is not None
        self._process.kill()
        self._process.join()
        give_up = time.monotonic() + KILLED_S
        with suppress(ProcessLookupError):  # none is left
            while time.monotonic() < give_up:
                os.killpg(pid, signal.SIGKILL)
                time.sleep(0.02)

    def _receive(self) -> Message:
        try:
            message: Message = from_worker.decode(self._pipe.recv_bytes())
        except (EOFError, OSError):
            return Died("its process ended without a word; it may have been killed for memory")
        return message

    def _wait_for_end(self, pid: int) -> None:
        """Shut the pipe when the worker ends: a process below it that it forked, as vLLM does, would hold it open."""
        with suppress(ChildProcessError):  # another thread has waited for it
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        self._shut_pipe()

    def _shut_pipe(self) -> None:
        """Shut the socket down rather than close it: that also wakes the thread that reads from it."""
        import socket

        with socket.socket(fileno=os.dup(self._pipe.fileno())) as end:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:  # the other end is closed already
                return
