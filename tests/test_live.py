"""What a person sees of a run on a terminal: two lines that are written over, and notes on lines of their own."""

from __future__ import annotations

import asyncio
import io
import sys
from pathlib import Path

import pytest

from engine.config import Output
from engine.goal import Goal
from engine.live import CLEAR, COLUMNS, show
from engine.progress import Progress, note
from engine.rows import Row
from engine.tally import Tally


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def screen(written: str) -> list[str]:
    """Return the lines that stand on an endless terminal of COLUMNS columns."""
    lines, row, column = [""], 0, 0
    rest = written
    while rest:
        if rest.startswith("\x1b[J"):
            lines[row:] = [lines[row][:column]]
            rest = rest[3:]
        elif rest.startswith("\x1b[1A"):
            row, rest = row - 1, rest[4:]
        elif rest[0] == "\r":
            column, rest = 0, rest[1:]
        else:
            if rest[0] == "\n" or column == COLUMNS:
                row, column = row + 1, 0
                lines += [""] * (row == len(lines))
            if rest[0] != "\n":
                lines[row] = lines[row][:column] + rest[0] + lines[row][column + 1 :]
                column += 1
            rest = rest[1:]
    return lines


def test_lines_are_written_over_and_notes_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    tally, seen = Tally(), []
    many = Row("i", "", "o", "a template with a long name, so that it is cut", "id", 0, "stop", output_tokens=40)
    ended = Row("i", "", "o", many.template, "id", 0, "abort", output_tokens=10, rule="phrase", aborted=True)

    async def run() -> None:
        async with Progress(tmp_path, tally, total=1_000_000, goal=Goal(Output())) as progress:
            note("a note before")
            for _ in range(3):
                tally.add("kept", many)
                tally.add("rejected", ended)
                progress._last -= 2
                await progress.tick(in_flight=1)
                seen.append(screen(terminal.getvalue()))
            note("a note between")
            progress._last -= 2
            await progress.tick(in_flight=1)
            seen.append(screen(terminal.getvalue()))

    asyncio.run(run())
    note("a note after")
    for number, shown in enumerate(seen[:3], start=1):
        before, counts, worth = shown
        assert before == "a note before"
        assert counts.startswith(f"{2 * number} of 1,000,000 prompts, {number} kept (50%), ")
        assert worth.startswith(f"tokens saved: about {30 * number} aborted, a template")
        assert len(counts) < COLUMNS
        assert len(worth) == COLUMNS - 1
    assert seen[3][:2] == ["a note before", "a note between"]
    assert len(seen[3]) == 4
    last = screen(terminal.getvalue())
    assert [line for line in last if line.startswith("a note")] == ["a note before", "a note between", "a note after"]
    assert "".join(last).count("prompts, ") == 1, "what was written over is gone"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain " * 20, ("plain " * 20)[:79]),
        ("温度" * 40, "温度" * 19 + "温"),
        ("a" + "テ" * 40, "a" + "テ" * 39),
        ("e\u0301" * 100, "e\u0301" * 79),
        ("\u0915\u0941" * 100, "\u0915\u0941" * 79),
        ("\u26a0\ufe0f" * 100, "\u26a0\ufe0f" * 39 + "\u26a0"),
        ("a\nb\x1b[31mc\td\u202ee\u2028f\x9b2J", "a b?[31mc d?e f?2J"),
        ("lone \udcff", "lone ?"),
    ],
    ids=["plain", "wide", "wide at an odd place", "accents", "vowel signs", "emoji", "control codes", "no character"],
)
def test_a_line_is_cut_where_it_would_wrap(monkeypatch: pytest.MonkeyPatch, text: str, shown: str) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    show([text, "below"])
    assert terminal.getvalue() == f"{CLEAR}{shown}\nbelow\r\x1b[1A"


def test_a_line_is_cut_as_its_terminal_writes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(written, encoding="latin-1", errors="backslashreplace"))
    show(["é" + "温" * 80])
    assert written.getvalue().decode("latin-1") == CLEAR + "é" + "\\u6e29" * 13 + "\r"


async def test_a_name_breaks_no_line_of_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally()
    async with Progress(tmp_path, tally, total=1, goal=Goal(Output())) as progress:
        tally.add("kept", Row("i", "", "o", "a\nb\x1b[2J", "id", 0, "stop"))
        progress._last_plain -= 60
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("no tokens saved, a b?[2J 100%")


def test_a_log_is_not_given_control_codes(capsys: pytest.CaptureFixture[str]) -> None:
    note("a note")
    assert capsys.readouterr().err == "a note\n"


async def test_a_log_says_the_rates_since_its_last_line_and_what_is_left_of_the_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("engine.progress.PLAIN_EVERY_S", 10.0)
    tally, row = Tally(), Row("i", "", "o", "t", "id", 0, "stop", output_tokens=40)
    async with Progress(tmp_path, tally, total=300, goal=Goal(Output(accepted=1_000_000))) as progress:
        progress.ready(True)
        assert progress._answering_since is not None
        for _ in range(2):
            for moved in ("_last", "_last_plain", "_answering_since"):
                setattr(progress, moved, getattr(progress, moved) - 9)
            for _ in range(100):
                tally.add("kept", row)
            await progress.tick(in_flight=100)
            progress._last -= 1
            for moved in ("_last_plain", "_answering_since"):
                setattr(progress, moved, getattr(progress, moved) - 1)
            await progress.tick(in_flight=100)
        progress._last_plain -= 10
    first, second, last = capsys.readouterr().err.splitlines()
    assert "100 of 300 prompts, 100 kept (100%), 10 rows/s, 400 tok/s, 10 kept/s" in first, "too few have ended to say"
    assert "200 of 300 prompts, 200 kept (100%), 0:10 left, 10 rows/s" in second, "the prompts run out long before"
    assert "left" not in last
    assert ", 10 rows/s, 400 tok/s" in last


async def test_answers_that_wait_for_an_earlier_one_are_shown_and_count_for_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("engine.progress.PLAIN_EVERY_S", 0.0)
    tally = Tally()
    async with Progress(tmp_path, tally, total=400, goal=Goal(Output())) as progress:
        progress.ready(True)
        assert progress._answering_since is not None
        progress._answering_since -= 10
        progress._last -= 10
        tally.add("kept", Row("i", "", "o", "t", "id", 0, "stop", output_tokens=40))
        await progress.tick(in_flight=100, waiting=199)
    assert "1 of 400 prompts (+199 answered), 1 kept (100%), 0:10 left, " in capsys.readouterr().err
