"""Replicas, on the echo backend: the same rows, and nobody is left behind."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from processes import children, left_after_a_while
from wordiness import break_down

from engine import replicas
from engine.backend import answer_all, make_backend
from engine.config import Echo, Sampling, Teacher
from engine.errors import ConfigError, EngineError
from engine.placement import cards_used, environment
from engine.replica import Replica
from engine.replicas import ReplicaBackend
from engine.rows import Prompt

ROOT = Path(__file__).resolve().parent.parent
TEACHER = Teacher(backend="echo", replicas=3, echo=Echo(tokens_per_s=1e9, max_num_seqs=8))


def prompts(count: int) -> list[Prompt]:
    return [Prompt(index=i, id=str(i), template="t", instruction=f"Say {i}", seed=i) for i in range(count)]


async def test_every_prompt_is_answered_once_and_as_by_one_teacher() -> None:
    async with make_backend(TEACHER, Sampling()) as many:
        assert isinstance(many, ReplicaBackend)
        assert many.capacity == 24
        assert many.describe()["replicas"] == "3"
        answers = await answer_all(many, prompts(300))
    one = msgspec.structs.replace(TEACHER, replicas=1)
    async with make_backend(one, Sampling()) as alone:
        assert answers == await answer_all(alone, prompts(300))


async def test_aborted_prompts_make_room() -> None:
    slow = Teacher(backend="echo", replicas=2, echo=Echo(tokens_per_s=10, max_num_seqs=4))
    async with make_backend(slow, Sampling()) as backend:
        asked = prompts(40)
        await backend.add(asked)
        await backend.abort([prompt.id for prompt in asked])
        assert not any(replica.asked for replica in backend._replicas)  # type: ignore[attr-defined]


async def test_an_error_of_a_worker_comes_back_as_what_it_is() -> None:
    async with make_backend(TEACHER, Sampling(), watch=break_down) as backend:
        with pytest.raises(ConfigError, match=r"^teacher\.something: cannot be$"):
            await answer_all(backend, prompts(3))


async def test_a_replica_that_does_not_start_in_time_is_said_to_be_late(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(replicas, "PATIENCE_S", 0.01)
    late = msgspec.structs.replace(TEACHER, start_timeout_s=0.05)
    with pytest.raises(EngineError, match=r"replica \d did not start in 0.05 s \(teacher.start_timeout_s\)"):
        await make_backend(late, Sampling()).__aenter__()
    assert "is still starting" in capsys.readouterr().err


def test_gpu_seconds_count_each_card_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    for count, size, used in ((1, 1, 1), (3, 2, 4), (8, 1, 4), (1, 4, 4)):
        assert cards_used(Teacher(backend="vllm", replicas=count, tensor_parallel_size=size)) == used
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cards_used(Teacher(backend="vllm", replicas=2)) == 0


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "potstill", "generate", str(ROOT / "data" / "echo.toml"), "--out", str(tmp_path)]
    command += ["--set", "teacher.replicas=2", "--set", "teacher.echo.tokens_per_s=2000"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("kept-*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        workers = children(process.pid)
        assert len(workers) >= 2
    finally:
        process.kill()
        process.wait()
    assert left_after_a_while(workers) == []


def test_a_ctrl_c_does_not_reach_a_worker_that_is_not_ready_for_it() -> None:
    worker = Replica(0, TEACHER, Sampling())
    try:
        worker.start()
        status = Path(f"/proc/{worker._process.pid}/status").read_text()
    finally:
        worker.stop()
    masks = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith(("SigBlk", "SigIgn"))]
    assert any(mask >> (signal.SIGINT - 1) & 1 for mask in masks)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


STARTING = """
import asyncio, multiprocessing, sys
from engine import replica_worker
from engine.config import Sampling, Teacher

class Starting:
    async def __aenter__(self):
        sys.stderr.write("starting")
        sys.stderr.flush()
        await asyncio.sleep(60)
    async def __aexit__(self, *error):
        pass

def start(pipe):
    replica_worker.backend_here = lambda *settings, watch: Starting()
    replica_worker.work(pipe, Teacher(backend="echo"), Sampling(), None, {})

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=start, args=(theirs,))
    process.start()
    theirs.close()
    process.join()
"""


def test_a_worker_that_is_starting_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "starting.py").write_text(STARTING)
    process = subprocess.Popen([sys.executable, str(tmp_path / "starting.py")], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert process.stderr.read(8) == "starting"
        workers = children(process.pid)
        assert workers
    finally:
        process.kill()
        process.wait()
    process.stderr.close()
    assert left_after_a_while(workers) == []


def test_cards_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    pairs = Teacher(backend="vllm", replicas=3, tensor_parallel_size=2)
    assert [environment(number, pairs)["CUDA_VISIBLE_DEVICES"] for number in range(3)] == ["4,5", "6,7", "4,5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert environment(0, pairs) == {}
