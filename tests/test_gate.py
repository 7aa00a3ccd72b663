"""The gate: what the first rows say of a run, and which runs it stops."""

import asyncio
import re
from pathlib import Path

import msgspec
import pytest
from echo_runs import settings

from engine import config
from engine.errors import PotstillError
from engine.gate import Gate
from engine.generate import generate
from engine.rows import Completion, Prompt, Row


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


def test_the_gate_shows_what_the_chat_template_makes_of_a_question() -> None:
    gate = Gate()
    row = Row("Say a", "", "fine", "t", "0", 0, "stop")
    gate.add("kept", row, 10, Prompt(index=0, id="0", template="t", instruction="Say a"))
    form = "<|user|>\n{question}<|end|>\n<|assistant|>\n"
    shown = gate.report(total=None, seconds=1.0, form=form).splitlines()
    assert "the chat template makes of a question: <|user|>\\n{question}<|end|>\\n<|assistant|>\\n" in shown
    assert not any("chat template" in line for line in gate.report(total=None, seconds=1.0).splitlines())
