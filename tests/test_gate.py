"""The gate: what the first rows say of a run, and which runs it stops."""

import asyncio
import json
import re
import time
from pathlib import Path

import msgspec
import pytest
from echo_runs import settings

from engine import config
from engine.errors import PotstillError
from engine.gate import Gate
from engine.generate import generate
from engine.rows import Completion, Outcome, Prompt, Row


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
        generate(settings("prompts.count=640", "filter.cap_per_template=0"), tmp_path / "run")
    found = re.search(r"forecast for 640 prompts: .* (\d+):(\d\d) at this speed", capsys.readouterr().err)
    assert found is not None
    assert int(found[1]) * 60 + int(found[2]) < 0.5 * 10


@pytest.mark.parametrize(
    ("overrides", "prompts", "tokens_each"),
    [
        (["output.accepted=500"], 543, 1),
        (["output.accepted=100000", "prompts.count=64"], 64, 1),
        (["output.accepted=100000", "output.candidates=80"], 80, 1),
        (["output.quotas.colour=40"], 183, 1),
        (["prompts.count=200", "sampling.samples=4", "sampling.consensus='majority'"], 200, 4),
    ],
)
def test_the_forecast_is_for_the_rows_that_are_wanted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], prompts: int, tokens_each: int
) -> None:
    data = msgspec.to_builtins(settings("filter.cap_per_template=0", *overrides))
    if not any("prompts.count" in one for one in overrides):
        del data["prompts"]["count"]
    generate(config.from_mapping(data, where="test"), tmp_path / "run")
    found = re.search(r"forecast for (\d+) prompts: ([\d,]+) output tokens", capsys.readouterr().err)
    assert found is not None
    assert int(found[1]) == prompts
    assert 8 < int(found[2].replace(",", "")) / prompts / tokens_each < 24


def decision(folder: Path, early: bool, *overrides: str) -> str:
    """Return why the gate stops a run, or "" where it does not."""
    try:
        generate(settings(f"filter.early={str(early).lower()}", *overrides), folder)
    except PotstillError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("early", [True, False])
def test_one_question_over_and_over_is_stopped_though_it_is_asked_once(tmp_path: Path, early: bool) -> None:
    same = tmp_path / "same.jsonl"
    same.write_text((json.dumps({"prompt": "What is the capital of France?"}) + "\n") * 500)
    asked = ("prompts.templates=", f"prompts.file={same}", "prompts.count=500", "sampling.temperature=0")
    said = decision(tmp_path / "run", early, *asked)
    assert "98% of the first 64 rows are lost (duplicate 98%" in said
    assert "ask more different questions" in said
    assert decision(tmp_path / "run", early, *asked) == said, "a command that is only repeated is stopped again"


@pytest.mark.parametrize("early", [True, False])
def test_answers_that_are_too_long_are_stopped_though_they_are_ended_early(tmp_path: Path, early: bool) -> None:
    said = decision(tmp_path, early, "teacher.echo.overlong=0.95")
    assert re.search(r"\d\d% of the first 64 rows are lost \(length \d\d%.*800.*raise filter.max_chars", said)


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("full", ["filter.cap_per_template=2", "output.quotas={json=2, colour=2, temperature=500}"])
def test_a_cap_or_a_quota_that_is_full_soon_stops_nothing(tmp_path: Path, early: bool, full: str) -> None:
    assert not decision(tmp_path, early, "filter.cap_per_template=0", full)


@pytest.mark.parametrize("early", [True, False])
def test_good_answers_that_the_token_limit_cuts_off_are_stopped(tmp_path: Path, early: bool) -> None:
    said = decision(tmp_path, early, "sampling.max_tokens=8")
    assert re.search(r"lost \(truncated \d\d%.*raise sampling.max_tokens", said)


@pytest.mark.parametrize("early", [True, False])
def test_hardly_a_row_that_is_kept_stops_a_run_whatever_the_rest_is_lost_to(tmp_path: Path, early: bool) -> None:
    rule = 'filter.rules=[{use="format", regex="no such answer"}]'
    said = decision(tmp_path, early, rule)
    assert re.search(r"100% of the first 64 rows are lost \(format \d\d%.*see what the rule 'format'", said)


def test_rules_may_reject_much() -> None:
    gate = Gate()
    for number in range(64):
        rule = "own" if number % 8 else ""
        gate.add("rejected" if rule else "kept", Row("a", "", "b", "t", str(number), number, "stop", rule=rule), 10)
    assert gate.objection() is None


def test_the_forecast_counts_the_answers_that_wait(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = time.monotonic()
    generate(settings("teacher.echo.tokens_per_s=3000", "prompts.count=1500"), tmp_path / "run")
    seconds = time.monotonic() - start
    found = re.search(r"forecast for 1,500 prompts: .* 0:(\d\d) at this speed", capsys.readouterr().err)
    assert found is not None
    assert seconds / 2 < int(found[1]) < seconds * 2


def test_a_forecast_takes_no_time_for_prompts_that_are_not_asked() -> None:
    gate = Gate()
    for number in range(64):
        outcome: Outcome = "skipped" if number % 2 else "kept"
        gate.add(outcome, Row("a", "", "b", "t", str(number), number, "stop"), 10)
    assert "1:40 at this speed" in gate.report(total=32_000, seconds=1.0, answered=200)


def test_the_gate_shows_what_the_chat_template_makes_of_a_question() -> None:
    gate = Gate()
    row = Row("Say a", "", "fine", "t", "0", 0, "stop")
    gate.add("kept", row, 10, Prompt(index=0, id="0", template="t", instruction="Say a"))
    form = "<|user|>\n{question}<|end|>\n<|assistant|>\n"
    shown = gate.report(total=None, seconds=1.0, form=form).splitlines()
    assert "the chat template makes of a question: <|user|>\\n{question}<|end|>\\n<|assistant|>\\n" in shown
    assert not any("chat template" in line for line in gate.report(total=None, seconds=1.0).splitlines())
