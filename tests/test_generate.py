"""Generation on the echo backend, end to end: counts, the same rows whatever the timing, dying teachers."""

import json
import subprocess
from pathlib import Path

import orjson
import pytest
from echo_runs import command, lines, settings

from engine import config
from engine.errors import EngineError
from engine.generate import generate
from engine.shards import read_manifest
from engine.verify import verify


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


def test_accepted_stops_as_soon_as_enough_is_kept(tmp_path: Path) -> None:
    summary = generate(settings("output.accepted=100"), tmp_path / "run")
    assert summary["kept"] == 100
    assert summary["asked"] < 200
    all_kept = lines(tmp_path / "run")
    assert len(all_kept) == 100
    verify(tmp_path / "run")


def test_an_empty_prompt_is_one_failed_row_and_is_not_asked(tmp_path: Path) -> None:
    texts = [" " if number % 50 == 0 else f"Name {number} things." for number in range(200)]
    (tmp_path / "prompts.jsonl").write_bytes(b"".join(orjson.dumps({"instruction": text}) + b"\n" for text in texts))
    changes = (
        "prompts.templates=",
        f"prompts.file={tmp_path / 'prompts.jsonl'}",
        "filter.cap_per_template=0",
        "teacher.echo.repeats=0",
    )
    summary = generate(settings(*changes), tmp_path / "run")
    failed = [orjson.loads(line) for line in lines(tmp_path / "run", "failed")]
    assert [(row["index"], row["reason"], row.get("output", "")) for row in failed] == [
        (number, "the prompt is empty", "") for number in (0, 50, 100, 150)
    ]
    assert (summary["asked"], summary["failed"]) == (200, 4)
    assert verify(tmp_path / "run")["failed"] == 4


def test_accepted_says_when_the_prompts_run_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = generate(settings("output.accepted=2900", "filter.cap_per_template=0"), tmp_path / "run")
    assert summary["asked"] == 3000
    assert summary["ending"] == "prompts"
    assert "the prompts ran out" in capsys.readouterr().err


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

        state = {"deaths": 0, "every": 400, "answered": 0, "poison": -1, "alone": 0, "always": 0}

        class Dying(EchoBackend):
            async def completions(self):  # type: ignore[no-untyped-def]
                taken = [*self._waiting.values(), *(prompt for prompt, _, _ in self._running.values())]
                state["alone"] += len(taken) == 1
                if state["always"] or any(prompt.index == state["poison"] for prompt in taken):
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

    @pytest.mark.parametrize("at_once", [1, 1024])
    def test_poison_may_come_before_the_first_answer(
        self, deadly: dict[str, int], tmp_path: Path, at_once: int
    ) -> None:
        deadly.update(every=0, poison=0)
        generate(settings(f"teacher.echo.max_num_seqs={at_once}"), tmp_path / "run")
        failed = [orjson.loads(line) for line in lines(tmp_path / "run", "failed")]
        assert [row["index"] for row in failed] == [0]
        verify(tmp_path / "run")

    def test_a_single_prompt_that_kills_is_a_failed_row(self, deadly: dict[str, int], tmp_path: Path) -> None:
        deadly.update(every=0, poison=0)
        assert generate(settings("prompts.count=1"), tmp_path / "run", gate=False)["failed"] == 1

    def test_one_that_never_answers_ends_the_run_and_no_prompt_is_to_blame(
        self, deadly: dict[str, int], whole: Path, tmp_path: Path
    ) -> None:
        deadly.update(every=0, always=1)
        with pytest.raises(EngineError, match="poisoned"):
            generate(settings("teacher.echo.max_num_seqs=1"), tmp_path / "run")
        assert deadly["deaths"] == 6
        assert not any(path.stat().st_size for path in (tmp_path / "run").glob("failed-*"))
        deadly.update(always=0)
        generate(settings(), tmp_path / "run")
        assert lines(tmp_path / "run") == lines(whole)
