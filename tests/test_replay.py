"""A row asked again: equal where nothing changed, and where it is not, the first difference."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import xxhash

import potstill
from engine import config
from engine.backend import EchoBackend
from engine.errors import ConfigError, MissingError, UsageError
from engine.generate import generate
from engine.replay import compare, replay
from engine.rows import Completion, Outcome, Row
from engine.shards import read_lines, read_manifest, write_manifest

ROOT = Path(__file__).resolve().parent.parent
FAST = ["teacher.echo.tokens_per_s=1e9", "prompts.count=600", "filter.cap_per_template=100"]


def rows(folder: Path, kind: Outcome) -> list[Row]:
    shards = read_manifest(folder).of(kind)
    return [msgspec.json.decode(line, type=Row) for shard in shards for line in read_lines(folder, shard)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replay") / "run"
    generate(config.load(ROOT / "data" / "echo.toml", FAST), folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_kind_of_row_is_equal_and_the_run_is_untouched(whole: Path) -> None:
    before = contents(whole)
    rejected = rows(whole, "rejected")
    aborted = next(row for row in rejected if row.aborted)
    for row in (rows(whole, "kept")[7], next(row for row in rejected if not row.aborted), aborted):
        by_id, by_number = replay(whole, row.id), replay(whole, str(row.index))
        assert by_id == by_number
        assert (by_id["equal"], by_id["first_difference"], by_id["changed"]) == (True, None, {})
        assert by_id["stored"]["output"] == row.output
    assert len(replay(whole, aborted.id)["answer"]["output"]) > len(aborted.output)
    assert contents(whole) == before


def test_a_run_knows_which_teacher_wrote_a_row_and_goes_on_with_the_same_model_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def part(count: int, **facts: str) -> None:
        teacher = {"backend": "echo", "model": "echo", "model_hash": "first", "vllm": "0.26.0", **facts}
        monkeypatch.setattr(EchoBackend, "describe", lambda _: teacher)
        generate(config.load(ROOT / "data" / "echo.toml", [*FAST, f"prompts.count={count}"]), tmp_path)

    part(300)
    assert "others than before" not in capsys.readouterr().err
    part(600, vllm="0.27.1", replicas="4")
    assert "rows from here on may be others than before would have come (vllm 0.26.0 -> 0.27.1)" in (
        capsys.readouterr().err
    )
    asked = [row.index for row in rows(tmp_path, "rejected") if row.output]
    for index in (0, max(number for number in asked if number < 300)):
        assert replay(tmp_path, str(index))["changed"] == {"vllm": ["0.26.0", "0.27.1"]}
    assert replay(tmp_path, str(min(number for number in asked if number >= 300)))["changed"] == {}
    with pytest.raises(ConfigError, match="begun with another teacher: its model_hash was first, and is second now"):
        part(900, vllm="0.27.1", model_hash="second")
    part(900, vllm="0.27.1")
    assert len(read_manifest(tmp_path).earlier) == 1


@pytest.mark.parametrize(
    "extra",
    [["sampling.samples=3"], ["sampling.samples=3", "sampling.consensus=majority"], ["sampling.logprobs=2"]],
    ids=["samples", "consensus", "logprobs"],
)
def test_samples_and_votes_are_asked_again(tmp_path: Path, extra: list[str]) -> None:
    generate(config.load(ROOT / "data" / "echo.toml", [*FAST, "prompts.count=50", *extra]), tmp_path / "run")
    for row in rows(tmp_path / "run", "kept")[:4]:
        assert replay(tmp_path / "run", row.id)["equal"]


def test_another_answer_is_exit_code_1_and_shown_where_it_begins(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "copy"))
    manifest = read_manifest(folder)
    place = manifest.shards.index(manifest.of("kept")[0])
    shard = manifest.shards[place]
    row = rows(folder, "kept")[0]
    old, new = msgspec.json.encode(row.output), msgspec.json.encode(row.output[:-1] + "!")
    data = (folder / shard.file).read_bytes().replace(old, new, 1)
    (folder / shard.file).write_bytes(data)
    manifest.shards[place] = msgspec.structs.replace(shard, bytes=len(data), xxh3=xxhash.xxh3_128_hexdigest(data))
    manifest.teacher["vllm"] = "0.0"
    write_manifest(folder, manifest)
    assert potstill.main(["replay", str(folder), row.id]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["equal"] is False
    assert found["first_difference"]["character"] == len(row.output) - 1
    assert found["first_difference"]["stored"].endswith("!")
    assert found["changed"] == {"vllm": ["0.0", None]}
    assert potstill.main(["replay", str(folder), rows(folder, "kept")[1].id]) == 0


def test_what_cannot_be_asked_again_says_why(whole: Path) -> None:
    with pytest.raises(UsageError, match="was never asked: skipped by the rule cap"):
        replay(whole, rows(whole, "skipped")[0].id)
    with pytest.raises(MissingError, match="has no row nobody"):
        replay(whole, "nobody")
    with pytest.raises(ConfigError, match=r"sampling\.temperature = 0\.7, not 0\.1"):
        replay(whole, "0", ["sampling.temperature=0.1"])


def test_an_empty_prompt_was_never_asked_and_is_not_asked_now(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Say it"}\n{"prompt": " "}\n')
    overrides = ["teacher.backend=echo", f"prompts.file={tmp_path / 'prompts.jsonl'}"]
    generate(config.load(None, overrides), tmp_path / "run")
    with pytest.raises(UsageError, match="was never asked: the prompt is empty"):
        replay(tmp_path / "run", "1")


ROW = Row(instruction="i", input="", output="abc", template="t", id="r", index=0, finish_reason="stop")


@pytest.mark.parametrize(
    ("changes", "answer", "equal", "place"),
    [
        ({}, {"text": "abc"}, True, None),
        ({}, {"text": "abcd"}, False, 3),
        ({}, {"text": "ab"}, False, 2),
        ({}, {"text": "abc", "finish_reason": "length"}, False, None),
        ({}, {"text": "abc", "error": "refused"}, False, None),
        ({"aborted": True, "finish_reason": "abort"}, {"text": "abcd"}, True, None),
        ({"aborted": True, "finish_reason": "abort"}, {"text": "abd"}, False, 2),
        ({"aborted": True, "finish_reason": "abort"}, {"text": "ab"}, False, 2),
        ({"votes": 3}, {"text": "abc", "votes": 2}, False, None),
    ],
)
def test_what_is_equal(changes: dict[str, Any], answer: dict[str, Any], equal: bool, place: int | None) -> None:
    row = msgspec.structs.replace(ROW, **changes)
    found = compare("kept", row, Completion(**{"id": "r", "finish_reason": "stop", **answer}))
    assert found["equal"] is equal
    assert (found["first_difference"] or {}).get("character") == place


@pytest.mark.model
@pytest.mark.slow
def test_on_vllm_alone_as_beside_others(tiny_model: Path, tmp_path: Path) -> None:
    overrides = [
        f"teacher.model={tiny_model}",
        "teacher.max_model_len=512",
        "teacher.engine_args={kv_cache_memory_bytes=67108864}",
        "sampling.max_tokens=16",
        "prompts.count=30",
        f"prompts.templates={ROOT / 'data' / 'templates' / 'echo.toml'}",
    ]
    generate(config.load(None, overrides), tmp_path / "run", gate=False)
    row = rows(tmp_path / "run", "kept")[-1]
    found = replay(tmp_path / "run", row.id)
    assert found["stored"]["output"] == found["answer"]["output"] == row.output
    assert (found["equal"], found["changed"]) == (True, {})
