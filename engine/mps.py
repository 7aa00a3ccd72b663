"""CUDA's multi-process service (MPS): kernels of replicas that share a card run at the same time.

Without it a card goes from one process to the next and back, and each has it alone while it has it. Promises that a
daemon started here ends with this process, however that ends, and that nothing is set on the card: no compute mode,
nothing that outlasts the daemon. Source: https://docs.nvidia.com/deploy/mps/
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path

from engine.errors import ConfigError, EngineError
from engine.gpu import cards
from engine.progress import note

CONTROL = "nvidia-cuda-mps-control"
PIPES = "CUDA_MPS_PIPE_DIRECTORY"
"""Environment variable that names the daemon a CUDA program goes through."""
START_S = 60.0
"""Longest wait for the daemon, and for CUDA to start under it; seconds."""
POLL_S = 0.2
"""So often it is looked whether anybody waits yet."""
STOP_S = 30.0
"""Longest wait for it to end. It gives what still runs under it 10 s."""
DAEMON = f"""
answer=
{CONTROL} -d >&2 && answer=started
(trap '' PIPE; echo $answer)
cat >/dev/null
[ -z "$answer" ] || echo quit -t 10 | {CONTROL} >&2
rm -rf "${PIPES}"
"""
"""A shell that starts the daemon and, once its standard input is closed, ends it: also when this process is killed.

By then nobody may read its answer, of which it would die; the daemon itself inherits no signal that is ignored.
"""
PROBE = """
import ctypes, sys
code = ctypes.CDLL("libcuda.so.1").cuInit(0)
sys.exit(f"CUDA error {code}" if code else 0)
"""
WITHOUT = "set teacher.mps = false to do without"


class Mps:
    """A daemon of this process's own, in a folder of its own."""

    def __init__(self) -> None:
        """Begin to start it; `check` waits for it.

        Raises: ConfigError where the machine has no such service.
        """
        if not cards():
            raise ConfigError(f"teacher.mps: there is no CUDA card here; {WITHOUT}")
        if shutil.which(CONTROL) is None:
            raise ConfigError(f"teacher.mps: {CONTROL}, which comes with NVIDIA's driver, is not on PATH; {WITHOUT}")
        folder = tempfile.mkdtemp(prefix="potstill-mps-")
        self.environment = {PIPES: folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        """What a process's environment must say for its kernels to go through this daemon."""
        # Given CUDA_VISIBLE_DEVICES, the daemon would number the cards anew, and the replicas' numbers be wrong.
        inherited = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
        self._left = threading.Event()
        self._complaints = Path(folder, "stderr")
        with self._complaints.open("wb") as errors:
            self._shell = subprocess.Popen(
                ["sh", "-c", DAEMON],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=inherited | self.environment,
                start_new_session=True,  # Ctrl-C ends the replicas first
            )

    def check(self) -> None:
        """Wait until it has started, and see that CUDA starts under it; `leave` and `stop` end the wait.

        Raises: EngineError where it does not.
        """
        out = self._shell.stdout
        assert out is not None
        if not (self._until(lambda: bool(wait([out.fileno()], POLL_S))) and out.readline() == b"started\n"):
            said = self._complaints.read_text(errors="replace").strip()
            raise EngineError(f"teacher.mps: {CONTROL} -d failed ({_last_line(said)}); {WITHOUT}")
        with subprocess.Popen(
            [sys.executable, "-c", PROBE],
            env=os.environ | self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as probe:
            if not self._until(lambda: _has_ended(probe)):
                probe.kill()
                raise EngineError(f"teacher.mps: CUDA did not start under {CONTROL} in {START_S:g} s; {WITHOUT}")
            assert probe.stderr is not None
            said = _last_line(probe.stderr.read().decode(errors="replace"))
        if probe.returncode:
            raise EngineError(f"teacher.mps: CUDA does not start under {CONTROL} ({said}); {WITHOUT}")

    def _until(self, is_so: Callable[[], bool]) -> bool:
        """Ask again and again, and return whether it became so before the time was up, or nobody waited any more."""
        give_up = time.monotonic() + START_S
        while not self._left.is_set() and time.monotonic() < give_up:
            if is_so():
                return True
        return False

    def leave(self) -> None:
        """Wait for nothing any more: the shell ends the daemon when it has started."""
        self._let_go()
        threading.Thread(target=self._reap, daemon=True).start()

    def _reap(self) -> None:
        assert self._shell.stdout is not None
        self._shell.wait()
        self._shell.stdout.close()

    def _let_go(self) -> None:
        assert self._shell.stdin is not None
        self._left.set()
        self._shell.stdin.close()

    def stop(self) -> None:
        """End the daemon, after the processes that use it."""
        assert self._shell.stdout is not None
        self._let_go()
        self._shell.stdout.close()
        try:
            self._shell.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._shell.pid, signal.SIGKILL)  # with the control program; the daemon has a group of its own
            self._shell.wait()
            shutil.rmtree(self.environment[PIPES], ignore_errors=True)
            note(f"{CONTROL} did not end in {STOP_S:g} s: look for it with ps, {PIPES}={self.environment[PIPES]}")


def mps_for(on_one_card: int) -> Mps | None:
    """Return a daemon for so many replicas on each card; None where one has a card alone, or where yours serves it.

    Raises: ConfigError, as Mps does.
    """
    if os.environ.get(PIPES):
        note(f"teacher.mps: {PIPES} is set, so the daemon behind it is used")
        return None
    if on_one_card < 2:
        note("teacher.mps does nothing here: no two replicas share a card")
        return None
    return Mps()


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(POLL_S)
    except subprocess.TimeoutExpired:
        return False
    return True


def _last_line(said: str) -> str:
    return said.splitlines()[-1] if said else "it said nothing"
