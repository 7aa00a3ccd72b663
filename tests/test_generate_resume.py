"""Generation, stopped and gone on with: kills, signals, full disks, torn files, changed settings."""

import asyncio
import os
import random
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from echo_runs import ROOT, command, lines, settings, size

from engine.errors import ConfigError, DataError, DiskError, Interrupted, MissingError, UsageError
from engine.generate import generate
from engine.shards import read_manifest, write_manifest
from engine.verify import verify


def test_killed_at_random_points_it_resumes_to_the_same_rows(whole: Path, tmp_path: Path) -> None:
    folder, rng, kills = tmp_path / "run", random.Random(5), 0
    slow = "teacher.echo.tokens_per_s=4000"
    for _ in range(4):
        process = subprocess.Popen(command(folder, slow), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = size(folder)
        while process.poll() is None and size(folder) == before:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.3)
        kills += process.poll() is None
        process.kill()
        process.wait()
    generate(settings(), folder)
    assert kills >= 2, "it was killed while it ran"
    assert lines(folder) == lines(whole)
    assert verify(folder)["asked"] == 3000
    assert not list(folder.glob("*.part"))


def test_torn_and_spoilt_tails_are_dropped(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen(command(folder, "teacher.echo.tokens_per_s=20000", "output.shard_bytes=10000000"))
    part = folder / "kept-00000.jsonl.part"
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size > 50_000) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    data = part.read_bytes()
    assert len(data) > 50_000
    part.write_bytes(data[: len(data) // 2] + b"\0" * 300)
    generate(settings("output.shard_bytes=10000000"), folder)
    assert lines(folder) == lines(whole)
    verify(folder)


@pytest.mark.parametrize("signals", [1, 2])
def test_interrupted_it_can_go_on(whole: Path, tmp_path: Path, signals: int) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen(
        command(folder, "teacher.echo.tokens_per_s=20000"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not list(folder.glob("kept-*")):
        time.sleep(0.02)
    time.sleep(0.3)
    for _ in range(signals):
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == ""
    assert "run the same command again" in err
    assert "Traceback" not in err
    assert not read_manifest(folder).finished
    if signals == 1:
        assert all(path.name.startswith("answered-") for path in folder.glob("*.part")), "drained and published"
    generate(settings(), folder)
    assert lines(folder) == lines(whole)


def test_a_teacher_that_is_starting_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine import generate as module
    from engine.backend import EchoBackend

    class Late(EchoBackend):
        async def __aenter__(self):  # type: ignore[no-untyped-def]
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
            await asyncio.sleep(30)
            return self

    monkeypatch.setattr(module, "make_backend", lambda teacher, sampling, **_: Late(teacher.echo, sampling))
    start = time.monotonic()
    with pytest.raises(Interrupted, match="run the same command again"):
        generate(settings(), tmp_path / "run")
    assert time.monotonic() - start < 10


def test_stopped_with_the_last_prompts_in_flight_it_is_finished(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine import generate as module
    from engine.backend import EchoBackend

    class Stopped(EchoBackend):
        async def add(self, prompts):  # type: ignore[no-untyped-def]
            await super().add(prompts)
            if prompts[-1].index == 2999:
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(module, "make_backend", lambda teacher, sampling, **_: Stopped(teacher.echo, sampling))
    assert generate(settings(), tmp_path / "run")["asked"] == 3000
    manifest = read_manifest(tmp_path / "run")
    manifest.finished = False
    write_manifest(tmp_path / "run", manifest)
    monkeypatch.setattr(module, "make_backend", None)
    assert generate(settings(), tmp_path / "run")["asked"] == 3000, "with everything committed no teacher is started"


def test_a_full_disk_ends_the_run_with_a_sentence_and_loses_nothing(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    from engine import shards

    original = shards.ShardWriter._part_path

    def onto_a_full_disk(writer: shards.ShardWriter, kind: str) -> Path:
        path = original(writer, kind)  # type: ignore[arg-type]
        if path.name == "kept-00003.jsonl.part" and not path.is_symlink():
            path.symlink_to("/dev/full")
        return path

    monkeypatch.setattr(shards.ShardWriter, "_part_path", onto_a_full_disk)
    with pytest.raises(DiskError, match="the disk is full; free some space"):
        generate(settings(), folder)
    monkeypatch.undo()
    assert len(read_manifest(folder).of("kept")) == 3
    (folder / "kept-00003.jsonl.part").unlink()
    generate(settings(), folder)
    assert lines(folder) == lines(whole)


def test_a_disk_that_takes_no_metrics_is_a_sentence_too(tmp_path: Path) -> None:
    from engine.config import Output
    from engine.goal import Goal
    from engine.progress import Progress
    from engine.tally import Tally

    async def show() -> None:
        async with Progress(tmp_path, Tally(), total=3, goal=Goal(Output())):
            (tmp_path / "metrics.jsonl").symlink_to("/dev/full")

    with pytest.raises(DiskError, match=r"metrics\.jsonl: the disk is full; free some space"):
        asyncio.run(show())


def test_a_changed_setting_is_refused_by_name(whole: Path) -> None:
    with pytest.raises(ConfigError, match=r"filter\.max_chars = 800, not 700"):
        generate(settings("filter.max_chars=700"), whole)
    with pytest.raises(ConfigError, match=r"prompts\.content"):
        generate(settings(f"prompts.templates={ROOT / 'data' / 'templates' / 'three-tasks.toml'}"), whole)


def test_a_setting_that_came_later_does_not_stop_an_older_run(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for path in whole.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    manifest = read_manifest(folder)
    del manifest.fingerprint["filter.phrase_match"]
    write_manifest(folder, manifest)
    assert generate(settings(), folder)["asked"] == 3000
    with pytest.raises(ConfigError, match=r"filter\.phrase_match = 'substring', not 'robust'"):
        generate(settings("filter.phrase_match=robust"), folder)


def test_resume_never_and_always(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds a run already"):
        generate(settings(), whole, resume="never")
    with pytest.raises(MissingError, match="no run to resume"):
        generate(settings(), tmp_path / "none", resume="always")


def test_a_run_without_a_row_may_be_begun_anew(tmp_path: Path) -> None:
    """Its teacher did not start, and what the sentence said to change is a setting of the run."""
    wrong = ["teacher.backend=vllm", f"teacher.model={tmp_path / 'nowhere'}"]
    with pytest.raises(MissingError, match="is not a folder"):
        generate(settings(*wrong), tmp_path / "run")
    assert (tmp_path / "run" / "manifest.json").exists()
    assert generate(settings("prompts.count=50"), tmp_path / "run", resume="never")["asked"] == 50
    with pytest.raises(ConfigError, match=r"sampling\.max_tokens"):
        generate(settings("prompts.count=60", "sampling.max_tokens=9"), tmp_path / "run")


def test_two_processes_do_not_write_one_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen(command(folder, "teacher.echo.tokens_per_s=5000"), stderr=subprocess.DEVNULL)
    try:
        while not (folder / "manifest.json").exists():
            time.sleep(0.02)
        with pytest.raises(UsageError, match="another process"):
            generate(settings(), folder)
    finally:
        process.kill()
        process.wait()


def test_a_changed_shard_is_found(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for path in whole.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    victim = folder / "kept-00001.jsonl"
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    with pytest.raises(DataError, match=r"kept-00001\.jsonl.*checksum"):
        verify(folder)
    victim.unlink()
    with pytest.raises(DataError, match="missing"):
        verify(folder)
