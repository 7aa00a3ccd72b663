"""Generation on the echo backend, end to end: killed, stopped, full disks, changed settings, dying teachers."""

import asyncio
import json
import os
import random
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

import orjson
import pytest
from echo_runs import ROOT, command, lines, settings, size

from engine import config
from engine.errors import (
    ConfigError,
    DataError,
    DiskError,
    EngineError,
    Interrupted,
    MissingError,
    PotstillError,
    UsageError,
)
from engine.generate import generate
from engine.rows import Completion
from engine.shards import read_manifest, write_manifest
from engine.verify import verify


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    generate(settings(), folder)
    return folder


def test_every_prompt_ends_once_and_the_counts_add_up(whole: Path) -> None:
    result = verify(whole)
    total = result["kept"] + sum(result["rejected"].values()) + result["skipped"] + result["failed"]
    assert result["asked"] == total == 3000
    assert all(result["rejected"][rule] for rule in ("duplicate", "length", "phrase"))
    assert result["skipped"] > 0
    assert len(read_manifest(whole).of("kept")) > 3, "many shards"
    first = orjson.loads(lines(whole)[0])
    assert list(first)[:3] == ["instruction", "input", "output"]


def test_kept_rows_are_the_same_without_early_decisions_and_at_any_width(whole: Path, tmp_path: Path) -> None:
    generate(settings("filter.early=false"), tmp_path / "late")
    generate(settings("teacher.echo.max_num_seqs=7"), tmp_path / "narrow")
    assert lines(tmp_path / "late") == lines(whole)
    assert lines(tmp_path / "narrow") == lines(whole)


def test_kept_rows_are_the_same_from_worker_processes(whole: Path, tmp_path: Path) -> None:
    many = ("teacher.replicas=3", "teacher.echo.max_num_seqs=16")
    summary = generate(settings(*many), tmp_path / "early")
    late = generate(settings(*many, "filter.early=false"), tmp_path / "late")
    assert lines(tmp_path / "early") == lines(tmp_path / "late") == lines(whole)
    assert summary["skipped"] > 0 == late["skipped"]
    assert any(orjson.loads(line).get("aborted") for line in lines(tmp_path / "early", "rejected"))


def test_a_finished_run_is_a_no_op_that_says_so(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (whole / "manifest.json").read_bytes()
    summary = generate(settings(), whole)
    assert "is finished" in capsys.readouterr().err
    assert summary["kept"] == len(lines(whole))
    assert (whole / "manifest.json").read_bytes() == before


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
        assert not list(folder.glob("*.part")), "drained and published"
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
    from engine.progress import Progress
    from engine.tally import Tally

    async def show() -> None:
        async with Progress(tmp_path, Tally(), total=3, target=None):
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


def test_accepted_stops_as_soon_as_enough_is_kept(tmp_path: Path) -> None:
    summary = generate(settings("output.accepted=100"), tmp_path / "run")
    assert summary["kept"] == 100
    assert summary["asked"] < 200
    all_kept = lines(tmp_path / "run")
    assert len(all_kept) == 100
    verify(tmp_path / "run")


def test_accepted_says_when_the_prompts_run_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = generate(settings("output.accepted=2900", "filter.cap_per_template=0"), tmp_path / "run")
    assert summary["asked"] == 3000
    assert summary["ending"] == "prompts"
    assert "the prompts ran out" in capsys.readouterr().err


def test_the_gate_shows_the_first_rows_and_stops_what_is_hopeless(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(PotstillError, match=r"smoke gate.*refused.*--no-gate"):
        generate(settings("teacher.echo.refusals=0.95", "teacher.echo.repeats=0"), tmp_path / "run")
    shown = capsys.readouterr().err
    assert "user: " in shown
    assert "forecast for 3,000 prompts" in shown
    with pytest.raises(PotstillError, match="smoke gate"):
        generate(settings("teacher.echo.refusals=0.95", "teacher.echo.repeats=0"), tmp_path / "run")
    summary = generate(settings("teacher.echo.refusals=0.95", "teacher.echo.repeats=0"), tmp_path / "run", gate=False)
    assert summary["asked"] == 3000


def test_the_gate_stops_a_run_whose_prompts_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from engine import generate as module
    from engine.backend import EchoBackend

    class Refusing(EchoBackend):
        async def completions(self):  # type: ignore[no-untyped-def]
            return [
                Completion(id=one.id, text="", finish_reason="error", error="400 no such parameter")
                for one in await super().completions()
            ]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "make_backend", lambda teacher, sampling, **_: Refusing(teacher.echo, sampling))
        with pytest.raises(PotstillError, match=r"64 of the first 64 prompts failed.*400 no such parameter.*--no-gate"):
            generate(settings(), tmp_path / "run")
    assert "64 prompts failed" in capsys.readouterr().err


def test_the_forecast_leaves_the_start_of_the_teacher_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from engine import generate as module
    from engine.backend import EchoBackend

    class Slow(EchoBackend):
        async def __aenter__(self):  # type: ignore[no-untyped-def]
            await asyncio.sleep(0.5)
            return self

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "make_backend", lambda teacher, sampling, **_: Slow(teacher.echo, sampling))
        generate(
            settings("prompts.count=64000", "output.candidates=200", "filter.cap_per_template=0"), tmp_path / "run"
        )
    found = re.search(r"forecast for 64,000 prompts: .* ([0-9.]+) h", capsys.readouterr().err)
    assert found is not None
    assert float(found[1]) < 0.5 * 1000 / 3600


def test_a_port_that_is_none_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--metrics-port 99999: .*choose another port"):
        generate(settings(), tmp_path / "run", metrics_port=99999)


def test_prometheus_text_while_it_runs(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = [*command(tmp_path / "run", "teacher.echo.tokens_per_s=20000"), "--metrics-port", str(port)]
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        text, deadline = "", time.monotonic() + 20
        while 'result="kept",template="json"' not in text and time.monotonic() < deadline:
            time.sleep(0.1)
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
                    text = response.read().decode()
            except OSError:
                continue
    finally:
        process.kill()
        process.wait()
    assert 'potstill_prompts_total{outcome="kept"' in text
    assert 'potstill_tokens_total{kind="saved_skipped"}' in text
    assert 'potstill_template_prompts_total{result="kept",template="json"}' in text
    assert "potstill_kept_per_answering_s " in text


def test_metrics_and_summary_agree(whole: Path) -> None:
    last = orjson.loads((whole / "metrics.jsonl").read_bytes().splitlines()[-1])
    manifest = read_manifest(whole)
    assert manifest.finished
    for key in ("asked", "kept", "rejected", "skipped", "failed", "output_tokens", "tokens_saved", "templates"):
        assert last[key] == manifest.summary[key]
    assert {"rows_per_s", "output_tokens_per_s", "kept_per_s", "kept_per_answering_s", "kept_per_gpu_s"} <= last.keys()
    templates = last["templates"]
    assert sum(one["kept"] for one in templates.values()) == last["kept"]
    assert sum(sum(one.values()) for one in templates.values()) == last["asked"]


def test_the_resolved_config_is_in_the_run(whole: Path) -> None:
    assert config.load(whole / "config.toml") == settings()


def test_last_line_on_stdout_is_json(tmp_path: Path) -> None:
    result = subprocess.run(command(tmp_path / "run"), capture_output=True, text=True, check=True)
    last = json.loads(result.stdout.splitlines()[-1])
    assert {"asked", "kept", "rejected", "skipped", "failed", "seconds"} <= last.keys()
    assert {"duplicate", "length", "phrase", "cap"} <= last["rejected"].keys()
    assert "raw 3000 -> dedup" in result.stderr


class TestTeacherDies:
    """A teacher that dies is started again; a prompt that kills it is one failed row."""

    @pytest.fixture
    def deadly(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
        from engine import generate as module
        from engine.backend import EchoBackend

        state = {"deaths": 0, "every": 400, "answered": 0, "poison": -1, "alone": 0}

        class Dying(EchoBackend):
            async def completions(self):  # type: ignore[no-untyped-def]
                taken = [*self._waiting.values(), *(prompt for prompt, _, _ in self._running.values())]
                state["alone"] += len(taken) == 1
                if any(prompt.index == state["poison"] for prompt in taken):
                    state["deaths"] += 1
                    raise EngineError("poisoned")
                done = await super().completions()
                state["answered"] += len(done)
                if state["every"] and state["answered"] > state["every"]:
                    state["answered"] = 0
                    state["deaths"] += 1
                    raise EngineError("killed")
                return done

        def make(teacher, sampling, *, watch=None):  # type: ignore[no-untyped-def]
            return Dying(teacher.echo, sampling, watch=watch)

        monkeypatch.setattr(module, "make_backend", make)
        monkeypatch.setattr(module, "BACKOFF_S", 0.001)
        return state

    def test_the_rows_are_the_same(self, deadly: dict[str, int], whole: Path, tmp_path: Path) -> None:
        generate(settings(), tmp_path / "run")
        assert deadly["deaths"] >= 3
        assert lines(tmp_path / "run") == lines(whole)

    def test_poison_is_one_failed_row(self, deadly: dict[str, int], tmp_path: Path) -> None:
        deadly.update(every=0, poison=500)
        summary = generate(settings(), tmp_path / "run")
        assert summary["failed"] == 1
        failed = [orjson.loads(line) for line in lines(tmp_path / "run", "failed")]
        assert [row["index"] for row in failed] == [500]
        assert deadly["deaths"] <= 5
        assert deadly["alone"] < 40, "those that were in flight with it are not all asked alone"
        verify(tmp_path / "run")

    def test_one_that_never_answers_ends_the_run(self, deadly: dict[str, int], tmp_path: Path) -> None:
        deadly.update(every=0, poison=0)
        with pytest.raises(EngineError, match="poisoned"):
            generate(settings("teacher.echo.max_num_seqs=1"), tmp_path / "run")
