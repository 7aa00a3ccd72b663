"""Rules that prepare rows: every row before its end, off the event loop, and the same rows come out."""

from __future__ import annotations

import asyncio
import json
import pickle
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from echo_runs import lines, settings
from steering import Remembering

from engine import config as configuration
from engine import rule_settings
from engine.config import Config, Output
from engine.errors import DataError
from engine.filter_run import filter_rows
from engine.generate import generate, generate_with
from engine.rules import Draft, OptionalRules
from engine.shards import read_manifest

BEAT = threading.Event()
"""Set again and again by a loop that is not blocked."""
MADE: list[Ready] = []


class Ready(Remembering):
    """Notes what is prepared, and what ends without having been."""

    def __init__(self) -> None:
        super().__init__()
        self.prepared: list[Draft] = []
        self.unprepared: list[Draft] = []
        self.finished: list[str] = []
        MADE.append(self)

    def prepare(self, drafts: Sequence[Draft]) -> None:
        self.prepared += drafts

    def finish(self, draft: Draft) -> str | None:
        self.finished.append(draft.id)
        if draft not in self.prepared:
            self.unprepared.append(draft)
        return super().finish(draft)


class Waiting(Ready):
    """Goes on only where the loop does."""

    beats = 0

    def prepare(self, drafts: Sequence[Draft]) -> None:
        BEAT.clear()
        self.beats += BEAT.wait(10)
        super().prepare(drafts)


@pytest.fixture(autouse=True)
def _forget() -> None:
    MADE.clear()


def own(name: str) -> rule_settings.Own:
    return rule_settings.Own(path=f"{__name__ if name != 'Remembering' else 'steering'}:{name}", name="own")


def echo(name: str, *overrides: str) -> Config:
    found = settings("prompts.count=600", "teacher.echo.max_num_seqs=32", *overrides)
    return msgspec.structs.replace(found, filter=msgspec.structs.replace(found.filter, rules=(own(name),)))


async def _generate_beating(config: Config, folder: Path) -> None:
    async def beat() -> None:
        while True:
            BEAT.set()
            await asyncio.sleep(0.001)

    beating = asyncio.create_task(beat())
    await generate_with(None, config, folder)
    beating.cancel()


def test_generate_prepares_off_the_loop_and_keeps_the_same_rows(tmp_path: Path) -> None:
    generate(echo("Remembering"), tmp_path / "plain")
    asyncio.run(_generate_beating(echo("Waiting"), tmp_path / "prepared"))
    assert lines(tmp_path / "prepared") == lines(tmp_path / "plain")
    assert lines(tmp_path / "prepared", "rejected") == lines(tmp_path / "plain", "rejected")
    rules = read_manifest(tmp_path / "prepared").summary["rejected"]
    assert rules["own"] > 0
    made = MADE[-1]
    assert isinstance(made, Waiting)
    assert made.beats > 1, "the loop went on while rows were prepared"
    assert len(made.finished) > 100
    assert made.unprepared == []
    assert all(5 <= len(draft.output) <= 800 for draft in made.prepared), "earlier rules reject these for certain"


def test_a_resumed_generation_prepares_what_it_takes_in(tmp_path: Path) -> None:
    generate(echo("Remembering"), tmp_path / "whole")
    generate(echo("Ready", "output.candidates=400"), tmp_path / "run")
    before = MADE[-1]
    generate(echo("Ready"), tmp_path / "run")
    after = MADE[-1]
    assert after is not before
    assert len(after.finished) > len(before.finished) > 100
    assert after.finished[: len(before.finished)] == before.finished, "it is shown all rows again, in order"
    assert after.unprepared == []
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")


def source(path: Path, *, bad: bool) -> str:
    """Write rows of several batches: too short, with a phrase, said before, and one of the last no row."""
    found = []
    for number in range(900):
        output = ("ok", f"As an AI, I cannot {number}", f"{number % 100} words, {number % 700} " + "and more " * 40)[
            min(2, number % 20)
        ]
        found.append(json.dumps({"instruction": f"Say {number % 700}", "output": output, "id": str(number)}))
    found[-1] = " " * 20 if not bad else "no row".ljust(20)
    path.write_text("\n".join(found) + "\n")
    return str(path)


def test_filter_prepares_every_batch_and_so_does_its_resume(tmp_path: Path) -> None:
    def config(name: str) -> Config:
        return Config(filter=configuration.Filter(rules=(own(name),)), output=Output(shard_bytes=65536))

    rows = source(tmp_path / "rows.jsonl", bad=False)
    summary = filter_rows([rows], tmp_path / "plain", config("Remembering"))
    assert all(summary["rejected"][rule] for rule in ("duplicate", "length", "phrase", "own"))
    assert filter_rows([rows], tmp_path / "run", config("Ready"))["kept"] == summary["kept"] > 0
    assert MADE[-1].unprepared == []
    assert len(whole := MADE[-1].finished) > 100
    assert {draft.id for draft in MADE[-1].prepared}.isdisjoint(str(number) for number in range(0, 900, 20))

    source(tmp_path / "rows.jsonl", bad=True)
    with pytest.raises(DataError, match="not a row"):
        filter_rows([rows], tmp_path / "cut", config("Ready"), strict=True)
    published = read_manifest(tmp_path / "cut").of("kept")
    assert published, "it stopped behind a shard"
    source(tmp_path / "rows.jsonl", bad=False)
    filter_rows([rows], tmp_path / "cut", config("Ready"))
    assert MADE[-1].unprepared == []
    assert MADE[-1].finished == whole, "published rows are shown again in the order of the input, then those to come"
    for kind in ("kept", "rejected"):
        assert lines(tmp_path / "cut", kind) == lines(tmp_path / "run", kind) == lines(tmp_path / "plain", kind)


def test_what_earlier_rules_reject_is_not_prepared() -> None:
    rules = OptionalRules([rule_settings.Truncated(), own("Remembering"), own("Ready"), rule_settings.Blank()])
    cut, whole, blank = Draft("Ask", "A", finish_reason="length"), Draft("Ask", "B"), Draft("Ask", " ")
    assert rules.prepares
    rules.prepare([cut, whole, whole, blank])
    assert MADE[-1].prepared == [whole, whole, blank]
    assert MADE[-1].finished == []
    assert rules.finish(whole) is None, "a rule that remembers was not shown the row before"


def test_without_such_a_rule_there_is_nothing_to_prepare() -> None:
    assert not OptionalRules([own("Remembering"), rule_settings.Blank()]).prepares
    here = OptionalRules([own("Ready")])
    assert here.prepares
    assert not pickle.loads(pickle.dumps(here)).prepares, "a teacher's process judges unfinished outputs alone"
