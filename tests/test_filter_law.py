"""The law of the filter: its kept rows are exactly those of four naive list passes, whatever the rows look like."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from compiled import kernel
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.naive import naive_passes
from engine import config as configuration
from engine import raw_scan
from engine.columns import Batch, Columns, Parser
from engine.config import RECIPE_PHRASES
from engine.filter import Filter
from engine.filter_batch import BatchFilter
from engine.filter_run import filter_rows
from engine.native.load import SWITCH

ODD_PHRASES = (
    "не могу",
    "can't/won't",
    'so-called "ai"',
    "line\nbreak",
    "nul\x00",
    "\u1f40\u03b4\u03c5\u03c3\u03c3\u03b5\u03cd\u03c2",
    "stra\u00dfe",
    "i\u0307",
    "\\",
    "\u00e9",
)
"""Phrases that JSON escapes, or whose case is not ASCII's; the Greek one ends in a final sigma."""
LETTERS = (
    "abcK/\\\"'}{,:\u212a\u0130"
    "\u0131\u017f\u00df\u1e9e\u03a3\u03c3\u03c2\u00e9\u0301\u65e5\u2028\x00\x1f\x85\xa0\ufeff\u200b\u3000"
)
PIECES = [
    *(variant for phrase in (*RECIPE_PHRASES, *ODD_PHRASES) for variant in (phrase, phrase.upper(), phrase.title())),
    *LETTERS,
    *(
        " ",
        "  ",
        "\t",
        "\n",
        "\r\n",
        "I don\u2019t know",
        "I CANNOT",
        "word",
        "x" * 790,
        "Write a poem about",
        "😀" * 399,
    ),
]
TEXT = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), max_size=6).map("".join)
"""Few pieces, so that duplicates, hits and full templates are common."""


def _text(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


ROW = st.fixed_dictionaries({"instruction": TEXT.map(_text), "output": TEXT.map(_text)}, optional={"id": st.integers()})


def write_line(row: dict[str, Any], style: int) -> bytes:
    """Write one row in one of the ways that JSON allows."""
    if style & 4:
        row = dict(reversed(row.items()))
    text = json.dumps(
        row, ensure_ascii=bool(style & 1), indent=None, separators=(", ", " : ") if style & 2 else (",", ":")
    )
    end = "\r\n" if style & 8 else "\n"
    return (" " * (style & 16) + text + end).encode()


def kept_lines(
    lines: Sequence[bytes], rules: configuration.Filter, sizes: Iterable[int]
) -> tuple[list[bytes], BatchFilter]:
    """Filter lines in batches of the given sizes."""
    judge = BatchFilter(Filter(rules))
    parser = Parser(Columns(), judge.fields())
    kept: list[bytes] = []
    start = 0
    for size in [*sizes, len(lines)]:
        batch = Batch("test", start + 1, list(lines[start : start + size]))
        scan = judge.scan(batch.data, batch.lines)
        parsed = parser.parse(batch)
        assert not parsed.bad
        judged = judge.judge(parsed, range(start, start + size), scan)
        assert b"".join(judged.rejected).count(b"\n") == judged.rules.total() == len(parsed.rows) - len(judged.kept)
        kept += judged.kept
        start += size
    return kept, judge


@pytest.mark.parametrize("name", ["hyperscan", "automaton"])
@given(
    rows=st.lists(ROW, max_size=25),
    phrases=st.lists(st.sampled_from((*RECIPE_PHRASES, *ODD_PHRASES)), max_size=8, unique=True),
    cap=st.integers(1, 4),
    style=st.integers(0, 31),
    sizes=st.lists(st.integers(1, 9), max_size=5),
)
@settings(max_examples=200, deadline=None)
def test_batches_keep_what_the_passes_keep(
    name: str, rows: list[dict[str, Any]], phrases: list[str], cap: int, style: int, sizes: list[int]
) -> None:
    before = raw_scan.make_engine
    raw_scan.make_engine = raw_scan.HyperscanEngine if name == "hyperscan" else raw_scan.AutomatonEngine
    try:
        rules = configuration.Filter(phrases=tuple(phrases), cap_per_template=cap)
        lines = [write_line(row, style) for row in rows]
        kept, _ = kept_lines(lines, rules, sizes)
    finally:
        raw_scan.make_engine = before
    expected = naive_passes(rows, phrases, cap=cap)["cap"]
    assert [json.loads(line) for line in kept] == expected
    assert set(kept) <= set(lines)


@given(
    rows=st.lists(ROW, max_size=25),
    phrases=st.lists(st.sampled_from((*RECIPE_PHRASES, *ODD_PHRASES)), max_size=12, unique=True),
    match=st.sampled_from(["substring", "robust"]),
    cap_key=st.sampled_from(["prefix", "template"]),
    dedup_on=st.sampled_from([("instruction", "output"), ("instruction", "input", "output"), ("output",)]),
)
@settings(max_examples=200, deadline=None)
def test_batches_and_single_rows_get_the_same_verdicts(
    rows: list[dict[str, Any]], phrases: list[str], match: Any, cap_key: Any, dedup_on: Any
) -> None:
    phrases = [phrase for phrase in phrases if match == "substring" or phrase != "\\"]
    rules = configuration.Filter(
        phrases=tuple(phrases), cap_per_template=2, phrase_match=match, cap_key=cap_key, dedup_on=dedup_on
    )
    judge, single = BatchFilter(Filter(rules)), Filter(rules)
    rows = [row | {"template": row["instruction"][:1], "input": row["instruction"][:2]} for row in rows]
    parsed = Parser(Columns(), judge.fields()).parse(Batch("test", 1, [write_line(row, 0) for row in rows]))
    judged = judge.judge(parsed, range(len(rows)), judge.scan(parsed.data, parsed.lines))
    verdicts = [single.judge(row["instruction"], row["input"], row["output"], row["template"]) for row in rows]
    rejected = [json.loads(line) for line in b"".join(judged.rejected).split(b"\n")[:-1]]
    expected = [(number, verdict) for number, verdict in enumerate(verdicts) if not verdict.kept]
    assert [(row["row_number"], row["rule"], row["reason"]) for row in rejected] == [
        (number, verdict.rule, verdict.reason) for number, verdict in expected
    ]
    assert judge.filter.caps == single.caps
    assert judge.filter.seen.all() == single.seen.all()


@pytest.mark.parametrize("compiled", [True, False])
def test_a_hundred_thousand_random_rows(compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if compiled:
        kernel()
    else:
        monkeypatch.setenv(SWITCH, "0")
    chance = random.Random(4)
    rows: list[dict[str, Any]] = []
    for number in range(100_000):
        if rows and chance.random() < 0.3:
            row = dict(chance.choice(rows[-5000:]))
            if chance.random() < 0.3:
                row["output"] = chance.choice(PIECES[-12:-6]) + row["output"] + "\n"
            rows.append(row | {"id": number})
            continue
        texts = ["".join(chance.choices(PIECES, k=chance.randint(0, most))) for most in (3, 8)]
        if chance.random() < 0.7:
            texts[0] = f"Write a  {chance.choice(['poem', 'story', 'song'])} {chance.randint(0, 300)} " + texts[0]
        rows.append({"instruction": texts[0], "output": f"{texts[1]} {chance.randint(0, 10**6)}", "id": number})
    source = tmp_path / "rows.jsonl"
    source.write_bytes(b"".join(write_line(row, chance.choice((0, 0, 0, 1, 2, 4, 8, 16))) for row in rows))
    phrases = (*RECIPE_PHRASES, "не могу", "can't/won't", "ὀδυσσεύς")
    config = configuration.Config(
        filter=configuration.Filter(phrases=phrases), output=configuration.Output(shard_bytes=1 << 20)
    )
    summary = filter_rows([str(source)], tmp_path / "out", config)
    passes = naive_passes(rows, phrases)
    kept = [
        json.loads(line)
        for shard in sorted((tmp_path / "out").glob("kept-*"))
        for line in shard.read_bytes().splitlines()
    ]
    assert [row["id"] for row in kept] == [row["id"] for row in passes["cap"]]
    left = [len(rows), *(len(passes[name]) for name in ("duplicate", "length", "phrase", "cap"))]
    lost = [before - after for before, after in pairwise(left)]
    assert list(summary["rejected"].values()) == lost
    assert min(lost) > 1000
    assert summary["asked"] == 100_000
