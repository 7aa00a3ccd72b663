"""`potstill filter`: what lands on disk, bad lines, columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from filter_runs import SMALL, expected_ids, lines_of, rows_of, write

from engine.config import Config, load
from engine.errors import DataError
from engine.filter_run import filter_rows
from engine.shards import read_manifest

pytestmark = pytest.mark.usefixtures("way")


def test_kept_rejected_and_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(2000)
    source = write(tmp_path / "rows.jsonl", rows)
    summary = filter_rows([source], tmp_path / "out", SMALL)
    kept, rejected = lines_of(tmp_path / "out", "kept"), lines_of(tmp_path / "out", "rejected")
    assert [json.loads(line)["id"] for line in kept] == expected_ids(rows)
    assert set(kept) <= set((tmp_path / "rows.jsonl").read_bytes().splitlines(keepends=True))
    for line in rejected:
        row = json.loads(line)
        assert rows[row["row_number"]] == {key: row[key] for key in ("instruction", "output", "id")}
        assert row["rule"] in ("duplicate", "length", "phrase", "cap")
        assert row["reason"]
    assert summary["asked"] == 2000 == summary["kept"] + sum(summary["rejected"].values())
    assert summary["skipped"] == summary["failed"] == 0
    sizes = [shard.bytes for shard in read_manifest(tmp_path / "out").shards if shard.kind == "rejected"]
    assert len(sizes) > 3
    assert not list((tmp_path / "out").glob("*.part"))
    assert "raw 2000 -> dedup " in capsys.readouterr().err


def test_bad_lines_are_counted_and_written_with_their_place(tmp_path: Path) -> None:
    deep = b'{"instruction":"a","output":"deep enough","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    good = {"instruction": "Say one thing to", "output": "hello there"}
    bad = [
        b"not json",
        b'{"instruction":"a","output":5}',
        b'{"instruction":"a","output":null}',
        b'{"instruction":"a"}',
        b'["instruction","output"]',
        b'{"instruction":"a","output":"cut off',
        b'{"instruction":"a","output":"bad \xff byte"}',
        b'{"instruction":"a","output":"fine text","other":"\xc3\x28"}',
        b'{"instruction":"a","output":"lone \\ud83d surrogate"}',
        b'{"instruction":"a","output":"fine text","other":"\\ud83d"}',
        b'{"instruction":"a","output":"raw nul \x00 here"}',
        b'{"instruction":"a","output":"fine"} {"instruction":"b","output":"fine too"}',
        b'{"instruction":"a",\n"output":"two lines"}',
        b'{"instruction":"a","output":"fine text","n":NaN}',
        deep,
        b"\x00" * 50,
    ]
    lines: list[bytes] = []
    for number, line in enumerate(bad):
        lines += [line, b"", json.dumps(good | {"output": f"hello number {number}"}).encode()]
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines))
    summary = filter_rows([str(tmp_path / "rows.jsonl")], tmp_path / "out", Config())
    failed = [json.loads(line) for line in lines_of(tmp_path / "out", "failed")]
    assert summary["failed"] == len(failed) == len(bad) + 1, "the object on two lines is two bad lines"
    assert summary["kept"] == len(bad)
    places = [number for number, line in enumerate(b"\n".join(lines).split(b"\n"), 1) if line and b"hello" not in line]
    assert [row["at"] for row in failed] == [f"{tmp_path}/rows.jsonl:{place}" for place in places]
    assert all(row["reason"] for row in failed)
    with pytest.raises(DataError, match=r"rows.jsonl:1: not a row"):
        filter_rows([str(tmp_path / "rows.jsonl")], tmp_path / "strict", Config(), strict=True)


def test_unknown_fields_pass_byte_for_byte(tmp_path: Path) -> None:
    line = b'{ "z" : 1e5, "instruction":"caf\\u00e9 \\/ now", "deep":{"a":[1.0,{}]}, '
    line += b'"output" :"h\xc3\xa9llo", "z":18446744073709551617}\r\n'
    (tmp_path / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + line + line)
    filter_rows([str(tmp_path / "rows.jsonl")], tmp_path / "out", Config())
    assert lines_of(tmp_path / "out", "kept") == [line]
    (rejected,) = lines_of(tmp_path / "out", "rejected")
    assert rejected.startswith(line[:-3])
    assert json.loads(rejected)["rule"] == "duplicate"
    filter_rows([str(tmp_path / "out")], tmp_path / "again", load(None, ["filter.dedup_on=['output']"]))
    assert lines_of(tmp_path / "again", "kept") == [line]
    assert lines_of(tmp_path / "again", "rejected")[0].startswith(line[:-3])


def test_fields_called_like_a_mark_are_kept_under_another_name(tmp_path: Path) -> None:
    row = {"instruction": "a", "output": "", "reason": "mine", "rule": {"a": 1}, "reason_of_input": 3}
    filter_rows([write(tmp_path / "rows.jsonl", [row])], tmp_path / "out", Config())
    (line,) = lines_of(tmp_path / "out", "rejected")
    assert json.loads(line) == {
        "instruction": "a",
        "output": "",
        "reason_of_input": 3,
        "reason_of_input_of_input": "mine",
        "rule_of_input": {"a": 1},
        "rule": "length",
        "reason": "0 characters, not 5 to 800",
        "row_number": 0,
    }


def test_columns_and_chats(tmp_path: Path, run_cli: Any) -> None:
    rows = [{"question": "What is it?", "answer": "a long answer", "n": number} for number in range(3)]
    summary = run_cli(
        "filter",
        write(tmp_path / "a.jsonl", rows),
        "--out",
        str(tmp_path / "a"),
        "--instruction",
        "question",
        "--output",
        "answer",
    )
    assert (summary["kept"], summary["rejected"]["duplicate"]) == (1, 2)
    turns = [
        {"role": "system", "content": "be nice"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello you"},
    ]
    chats = [{"messages": turns}, {"messages": turns[1:]}, {"messages": turns[:2]}]
    summary = run_cli(
        "filter", write(tmp_path / "b.jsonl", chats), "--out", str(tmp_path / "b"), "--messages", "messages"
    )
    assert (summary["kept"], summary["rejected"]["duplicate"], summary["failed"]) == (1, 1, 1)


def test_robust_is_counted_where_substring_is_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = ["I don\u2019t know that.", "I don't know that.", "A plain answer.", "Hawaii cannot be seen."]
    rows = [{"instruction": f"Say {number} things now", "output": output} for number, output in enumerate(outputs)]
    summary = filter_rows([write(tmp_path / "rows.jsonl", rows)], tmp_path / "out", Config())
    assert summary["robust_would_drop"] == {"rows": 1, "of": 2}
    assert "would drop 1 more of 2 kept rows" in capsys.readouterr().err
    robust = filter_rows(
        [write(tmp_path / "rows.jsonl", rows)], tmp_path / "robust", load(None, ["filter.phrase_match=robust"])
    )
    assert robust["rejected"]["phrase"] == 2
    assert "robust_would_drop" not in robust


def test_two_objects_on_one_line_beside_a_blank_line_are_one_bad_line(tmp_path: Path) -> None:
    row = b'{"instruction":"a","output":"fine answer"}'
    (tmp_path / "rows.jsonl").write_bytes(b"\n" + row + row + b"\n" + row + b"\n")
    summary = filter_rows([str(tmp_path / "rows.jsonl")], tmp_path / "out", Config())
    assert (summary["failed"], summary["kept"]) == (1, 1)
