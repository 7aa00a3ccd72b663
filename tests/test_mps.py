"""CUDA's multi-process service for replicas: a stand-in for NVIDIA's control program says what it was told."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import cast

import pytest

from engine import mps
from engine.backend import answer_all, make_backend
from engine.config import Config, Echo, Sampling, Teacher
from engine.errors import ConfigError, EngineError
from engine.replicas import ReplicaBackend
from engine.rows import Prompt, Verdict
from engine.run_settings import SPEED_KEYS
from trainer.done import Done
from trainer.student import Student

ROOT = Path(__file__).resolve().parent.parent
TEACHER = Teacher(backend="echo", replicas=2, mps=True, echo=Echo(tokens_per_s=1e9, max_num_seqs=4))
PROMPTS = [Prompt(index=i, id=str(i), template="t", instruction=f"Say {i}") for i in range(40)]
STAND_IN = """#!/bin/sh
[ "$1" = -d ] || read -r told
echo "$1|$told|$CUDA_MPS_PIPE_DIRECTORY|$CUDA_VISIBLE_DEVICES" >>{log}
{more}
"""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a stand-in on PATH that writes what it is told into this file, and have a card to share."""
    install(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.delenv(mps.PIPES, raising=False)
    monkeypatch.setattr(mps, "PROBE", "")
    return tmp_path / "log"


def install(folder: Path, more: str = "") -> None:
    control = folder / mps.CONTROL
    control.write_text(STAND_IN.format(log=folder / "log", more=more))
    control.chmod(0o755)


def told(log: Path) -> list[list[str]]:
    return [line.split("|") for line in log.read_text().splitlines()]


def is_there(path: Path | str) -> bool:
    return Path(path).exists()


def says_its_pipes(text: str) -> Verdict | None:
    """Stand in for a filter that watches a teacher, and tells what the worker's environment says."""
    raise ConfigError(f"pipes: {os.environ[mps.PIPES]}, card {os.environ['CUDA_VISIBLE_DEVICES']}")


async def test_replicas_that_share_a_card_run_under_a_daemon_of_their_own(log: Path) -> None:
    async with make_backend(TEACHER, Sampling()) as backend:
        assert backend.describe()["mps"] == "on"
        assert len(await answer_all(backend, PROMPTS)) == len(PROMPTS)
        [[start, _, folder, visible]] = told(log)
        assert (start, visible) == ("-d", ""), "with CUDA_VISIBLE_DEVICES the daemon would number the cards anew"
        assert is_there(folder)
    assert told(log)[1:] == [["", "quit -t 10", folder, ""]]
    assert not is_there(folder)


async def test_workers_go_through_it(log: Path) -> None:
    async with make_backend(TEACHER, Sampling(), watch=says_its_pipes) as backend:
        folder = told(log)[0][2]
        with pytest.raises(ConfigError, match=f"pipes: {folder}, card 3"):
            await answer_all(backend, PROMPTS)


async def test_a_death_under_it_is_the_whole_teachers(log: Path) -> None:
    async with ReplicaBackend(TEACHER, Sampling()) as backend:
        pid = backend._replicas[0]._process.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(EngineError, match=r"^replica 0: its process ended without a word"):
            await backend.completions()


async def test_one_replica_a_card_needs_none(
    log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    async with make_backend(TEACHER, Sampling()) as backend:
        assert "mps" not in backend.describe()
    assert "no two replicas share a card" in capsys.readouterr().err
    assert not is_there(log)


async def test_a_daemon_of_the_users_is_left_alone(
    log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(mps.PIPES, "/somewhere")
    async with make_backend(TEACHER, Sampling()):
        pass
    assert "CUDA_MPS_PIPE_DIRECTORY is set" in capsys.readouterr().err
    assert not is_there(log)


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


KILLED = """
import os, signal
from engine import mps
mps.PROBE = ""
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
{early}
mps.Mps().check()
die()
"""


def started() -> mps.Mps:
    daemon = mps.Mps()
    try:
        daemon.check()
    except EngineError:
        daemon.stop()
        raise
    return daemon


@pytest.mark.parametrize(
    ("early", "more"),
    [("", ""), ("mps.wait = die", '[ -n "$told" ] || sleep 0.5'), ("mps.wait = die", '[ -n "$told" ] || echo ready')],
    ids=["at work", "while it starts", "while it says something"],
)
def test_it_ends_when_its_parent_is_killed(log: Path, tmp_path: Path, early: str, more: str) -> None:
    install(tmp_path, more)
    code = KILLED.format(early=early)
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert killed.returncode == -signal.SIGKILL
    until(lambda: is_there(log) and len(told(log)) == 2)
    [[_, _, folder, _], [_, quit, _, _]] = told(log)
    assert quit == "quit -t 10"
    until(lambda: not is_there(folder))


def test_a_daemon_that_comes_too_late_is_ended(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mps, "START_S", 0.1)
    install(tmp_path, '[ -n "$told" ] || sleep 1')
    with pytest.raises(EngineError, match=r"-d failed \(it said nothing\)"):
        started()
    assert [line[1] for line in told(log)] == ["", "quit -t 10"]
    assert not is_there(told(log)[0][2])


def test_what_it_says_is_not_taken_for_the_answer(log: Path, tmp_path: Path) -> None:
    install(tmp_path, "echo ready")
    daemon = started()
    daemon.stop()
    assert [line[1] for line in told(log)] == ["", "quit -t 10"]
    assert not is_there(told(log)[0][2])


@pytest.mark.parametrize("works", ["-z", "-n"], ids=["quit", "start"])
def test_a_control_program_that_hangs_is_ended(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], works: str
) -> None:
    monkeypatch.setattr(mps, "START_S", 2.0)
    monkeypatch.setattr(mps, "STOP_S", 1.0)
    os.mkfifo(tmp_path / "held")
    held = os.open(tmp_path / "held", os.O_RDONLY | os.O_NONBLOCK)
    install(tmp_path, f'[ {works} "$told" ] || exec sleep 60 >{tmp_path}/held')
    if works == "-z":
        started().stop()
        assert told(log)[1][1] == "quit -t 10"
    else:
        with pytest.raises(EngineError, match=r"-d failed \(it said nothing\)"):
            started()
    assert "did not end in 1 s" in capsys.readouterr().err
    assert not is_there(told(log)[0][2])
    assert wait([held], 20), "the program holds it open to its end"
    os.close(held)


def test_what_fails_is_one_sentence_and_leaves_nothing(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mps, "PROBE", "import sys; sys.exit('CUDA error 805')")
    with pytest.raises(EngineError, match=r"does not start under .* \(CUDA error 805\); set teacher.mps = false"):
        started()
    assert told(log)[1][1] == "quit -t 10"
    assert not Path(told(log)[0][2]).exists()
    install(tmp_path, "echo 'a daemon runs already' >&2; exit 1")
    with pytest.raises(EngineError, match=r"-d failed \(a daemon runs already\)"):
        started()
    assert not Path(told(log)[2][2]).exists()
    assert len(told(log)) == 3, "where none started none is ended"


def test_a_machine_without_it_is_told_so(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match=r"nvidia-cuda-mps-control, which comes with NVIDIA's driver, is not on PATH"):
        mps.Mps()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match=r"teacher\.mps: there is no CUDA card here"):
        mps.Mps()


def test_a_run_may_go_on_without_it() -> None:
    assert "teacher.mps" in SPEED_KEYS


def test_a_student_is_asked_alone(tmp_path: Path) -> None:
    config = Config(teacher=TEACHER)
    asked = Student(tmp_path, cast(Done, None), config, "folder", None, tmp_path).asked_as("model")
    assert (asked.backend, asked.model, asked.replicas, asked.mps) == ("vllm", "model", 1, False)


async def test_nobody_waits_for_it_who_does_not_want_it_any_more(log: Path, tmp_path: Path) -> None:
    install(tmp_path, '[ -n "$told" ] || sleep 3')
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await make_backend(TEACHER, Sampling()).__aenter__()
    await asyncio.get_running_loop().shutdown_default_executor()
    assert time.monotonic() - start < 2, "asyncio.run waits for its threads"
    until(lambda: is_there(log) and len(told(log)) == 2)
    [[_, _, folder, _], [_, quit, _, _]] = told(log)
    assert quit == "quit -t 10", "it started all the same, and was ended"
    until(lambda: not is_there(folder))
