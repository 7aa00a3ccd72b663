"""`potstill filter`: what lands on disk, bad lines, resume after a kill, a full disk."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest
import xxhash
from compiled import kernel

from bench.naive import naive_passes
from engine.config import RECIPE_PHRASES, Config, Output, load
from engine.errors import ConfigError, DataError, DiskError, MissingError, PotstillError, UsageError
from engine.filter_run import filter_rows
from engine.native.load import SWITCH
from engine.shards import Manifest, check_shard, read_lines, read_manifest, write_manifest
from engine.verify import verify
from potstill import main

SMALL = Config(output=Output(shard_bytes=20_000))


@pytest.fixture(autouse=True, params=["compiled", "python"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test twice: with the compiled filter and without."""
    if request.param == "compiled":
        kernel()
    else:
        monkeypatch.setenv(SWITCH, "0")


def rows_of(count: int, seed: int = 1) -> list[dict[str, Any]]:
    """Make rows with duplicates, odd lengths, phrases and full templates."""
    chance = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        if rows and chance.random() < 0.2:
            rows.append(chance.choice(rows) | {"id": number})
            continue
        output = chance.choice(["", "ok", "I cannot do that", "x" * 900, "fine words " * 5]) + str(number)
        instruction = f"Do this with {chance.randint(0, 9)} of {number}"
        rows.append({"instruction": instruction, "output": output, "id": number})
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def lines_of(folder: Path, kind: str) -> list[bytes]:
    """Read the published lines of one kind, in order, after checking the shards."""
    lines: list[bytes] = []
    manifest = read_manifest(folder)
    for shard in manifest.shards:
        check_shard(folder, shard)
        if shard.kind == kind:
            lines += read_lines(folder, shard)
    return lines


def expected_ids(rows: list[dict[str, Any]]) -> list[int]:
    return [row["id"] for row in naive_passes(rows, RECIPE_PHRASES)["cap"]]


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


def test_a_finished_folder_is_left_alone_and_another_setting_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", rows_of(100))
    first = filter_rows([source], tmp_path / "out", Config())
    assert filter_rows([source], tmp_path / "out", Config()) == first
    with pytest.raises(ConfigError, match=r"filter.max_chars = 800, not 1200"):
        filter_rows([source], tmp_path / "out", load(None, ["filter.max_chars=1200"]))
    (tmp_path / "stray").mkdir()
    (tmp_path / "stray" / "kept-00000.jsonl").touch()
    with pytest.raises(UsageError, match=r"kept-00000\.jsonl but no manifest"):
        filter_rows([source], tmp_path / "stray", Config())
    with pytest.raises(MissingError, match="no such file"):
        filter_rows([str(tmp_path / "absent.jsonl")], tmp_path / "fresh", Config())


def test_killed_anywhere_it_goes_on_with_the_same_rows(tmp_path: Path) -> None:
    rows = rows_of(20_000)
    sources = [write(tmp_path / "a.jsonl", rows[:9_000]), write(tmp_path / "b.jsonl", rows[9_000:])]
    filter_rows(sources, tmp_path / "whole", SMALL)
    command = [sys.executable, "-m", "potstill", "filter", *sources, "--out", str(tmp_path / "out")]
    command += ["--set", "output.shard_bytes=20000"]
    chance, kills = random.Random(7), 0
    for _ in range(40):
        before = parts(tmp_path / "out")
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not parts(tmp_path / "out") - before:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            break
        kills += 1
        if kills == 6:
            subprocess.run(command, check=True, capture_output=True)
            break
    assert kills >= 3
    assert_same(tmp_path / "whole", tmp_path / "out")


def parts(folder: Path) -> set[tuple[str, int]]:
    """Return the unpublished files, told apart from those of an earlier process."""
    found = set()
    for path in folder.glob("*.part"):
        with contextlib.suppress(FileNotFoundError):
            found.add((path.name, path.stat().st_mtime_ns))
    return found


def assert_same(whole: Path, other: Path) -> None:
    """Check that two output folders hold the same rows, whatever their shards."""
    for kind in ("kept", "rejected", "failed"):
        assert lines_of(whole, kind) == lines_of(other, kind)
    own = {"seconds": 0, "run": "", "robust_would_drop": {}}
    counts = [{**read_manifest(folder).summary, **own} for folder in (whole, other)]
    assert counts[0] == counts[1]
    assert not list(other.glob("*.part"))


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(tmp_path: Path, workers: int) -> None:
    rows = rows_of(6_000)
    sources = [write(tmp_path / "a.jsonl", rows[:4_500]), write(tmp_path / "b.jsonl", rows[4_500:])]
    with Path(sources[0]).open("ab") as file:
        file.write(b"not json\n\n{}\n")
    filter_rows(sources, tmp_path / "alone", SMALL)
    filter_rows(sources, tmp_path / "out", SMALL, workers=workers)
    assert_same(tmp_path / "alone", tmp_path / "out")
    assert len(read_manifest(tmp_path / "out").shards) > 6


def test_a_full_disk_is_one_sentence_and_can_be_gone_on_with(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", rows_of(3_000))
    filter_rows([source], tmp_path / "whole", SMALL)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limit[1]))
        with pytest.raises(DiskError, match=r"cannot be written \(File too large\)"):
            filter_rows([source], tmp_path / "out", Config())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    filter_rows([source], tmp_path / "out", Config())
    assert_same(tmp_path / "whole", tmp_path / "out")


def test_a_source_that_has_shrunk_is_noticed(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    write(source, rows_of(3_000))
    filter_rows([str(source)], tmp_path / "out", SMALL)
    manifest = read_manifest(tmp_path / "out")
    half: Manifest = manifest
    half.finished, half.position = False, {"source": 0, "line": 2999, "offset": os.path.getsize(source) - 10}
    write_manifest(tmp_path / "out", half)
    source.write_bytes(source.read_bytes()[:1000])
    with pytest.raises(DataError, match="has shrunk to 1,000 bytes"):
        filter_rows([str(source)], tmp_path / "out", SMALL)


@pytest.mark.parametrize("zstd", [False, True])
def test_a_run_is_filtered_again_as_if_for_the_first_time(tmp_path: Path, zstd: bool) -> None:
    rows = rows_of(3_000)
    source = write(tmp_path / "rows.jsonl", rows)
    lines = (tmp_path / "rows.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_bytes(b"".join([*lines[:100], b"not json\n", *lines[100:]]))
    filter_rows(
        [source], tmp_path / "narrow", load(None, ["filter.max_chars=30", "output.shard_bytes=20000"]), zstd=zstd
    )
    filter_rows([source], tmp_path / "wide", SMALL)
    again = filter_rows([str(tmp_path / "narrow")], tmp_path / "again", SMALL)
    assert again["asked"] == 3000
    assert lines_of(tmp_path / "again", "kept") == lines_of(tmp_path / "wide", "kept")
    numbers = [json.loads(line)["id"] for line in lines_of(tmp_path / "again", "rejected")]
    assert numbers == [json.loads(line)["id"] for line in lines_of(tmp_path / "wide", "rejected")]


def test_a_generated_run_is_filtered_again(tmp_path: Path, run_cli: Any) -> None:
    templates = tmp_path / "templates.toml"
    templates.write_text(TEMPLATES)
    head = f'[teacher]\nbackend = "echo"\n[prompts]\ntemplates = "{templates}"\ncount = 400\n'
    (tmp_path / "run.toml").write_text(head + "[filter]\nmax_chars = 800\ncap_per_template = 0\n")
    made = run_cli("generate", str(tmp_path / "run.toml"), "--out", str(tmp_path / "run"))
    same = run_cli("filter", str(tmp_path / "run"), "--out", str(tmp_path / "same"))
    assert same["kept"] == made["kept"]
    assert same["rejected"] == made["rejected"]
    assert lines_of(tmp_path / "same", "kept") == lines_of(tmp_path / "run", "kept")
    wide = run_cli("filter", str(tmp_path / "run"), "--out", str(tmp_path / "wide"), "--set", "filter.max_chars=20000")
    assert (
        wide["asked"]
        == made["asked"] - made["skipped"]
        == wide["kept"] + wide["skipped"] + sum(wide["rejected"].values())
    )
    aborted = [json.loads(line) for line in lines_of(tmp_path / "run", "rejected") if b'"aborted":true' in line]
    assert wide["skipped"] == sum(row["rule"] == "length" for row in aborted) > 0
    run_cli("filter", str(tmp_path / "wide"), "--out", str(tmp_path / "narrow"), "--set", "filter.max_chars=800")
    assert lines_of(tmp_path / "narrow", "kept") == lines_of(tmp_path / "run", "kept")
    assert main(["filter", str(tmp_path / "run"), "--out", str(tmp_path / "run")]) == 2


TEMPLATES = """
[[template]]
id = "city"
text = "Write about the city of {name} in {number} words."
[template.slots.name]
choices = ["Oslo", "Bergen", "Paris", "Rome"]
[template.slots.number]
range = [1, 150]
"""


def test_compressed_and_table_sources(tmp_path: Path) -> None:
    rows = rows_of(700)
    plain = write(tmp_path / "rows.jsonl", rows)
    data = Path(plain).read_bytes()
    whole = filter_rows([plain], tmp_path / "plain", SMALL)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(data[:1000]) + gzip.compress(data[1000:]))
    zstandard = pytest.importorskip("zstandard")
    pack = zstandard.ZstdCompressor().compress
    (tmp_path / "rows.jsonl.zst").write_bytes(pack(data[:1000]) + pack(data[1000:]))
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.Table.from_pylist(rows)
    parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=100)
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "folder"), num_shards=3)
    for name in ("rows.jsonl.gz", "rows.jsonl.zst", "rows.parquet", "folder"):
        summary = filter_rows([str(tmp_path / name)], tmp_path / f"out-{name}", SMALL)
        assert summary["rejected"] == whole["rejected"]
        kept = [json.loads(line) for line in lines_of(tmp_path / f"out-{name}", "kept")]
        assert kept == [json.loads(line) for line in lines_of(tmp_path / "plain", "kept")]


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.jsonl.zst", "rows.parquet", "folder"])
def test_a_damaged_source_is_one_sentence(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    elif name.endswith("gz"):
        path.write_bytes(gzip.compress(b'{"instruction":"a","output":"b"}\n' * 1000)[:-20])
    elif name.endswith("zst"):
        zstandard = pytest.importorskip("zstandard")
        path.write_bytes(zstandard.ZstdCompressor().compress(os.urandom(300_000))[:-100_000])
    else:
        path.write_bytes(b"PAR1 but no table")
    with pytest.raises(PotstillError, match=name):
        filter_rows([str(path)], tmp_path / "out", SMALL)


@pytest.mark.parametrize(("ending", "workers"), [("gz", 0), ("zst", 2)])
def test_what_stands_before_a_cut_is_read_first(tmp_path: Path, ending: str, workers: int) -> None:
    chance = random.Random(1)
    lines = [b'{"instruction":"a","output":"%d"}\n' % chance.getrandbits(200) for _ in range(4000)]
    lines[2000] = b"bad\n"
    if ending == "gz":
        packed = gzip.compress(b"".join(lines))
    else:
        packed = pytest.importorskip("zstandard").ZstdCompressor().compress(b"".join(lines))
    path = tmp_path / f"rows.jsonl.{ending}"
    path.write_bytes(packed[:-10])
    with pytest.raises(PotstillError, match=r"rows\.jsonl.*cannot be read to its end"):
        filter_rows([str(path)], tmp_path / "out", SMALL)
    with pytest.raises(PotstillError, match=r"rows\.jsonl\..*:2001: not a row"):
        filter_rows([str(path)], tmp_path / "strict", SMALL, strict=True, workers=workers)


def test_standard_input(tmp_path: Path) -> None:
    rows = rows_of(500)
    data = Path(write(tmp_path / "rows.jsonl", rows)).read_bytes()
    command = [sys.executable, "-m", "potstill", "filter", "-", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, input=data, capture_output=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["asked"] == 500
    assert [json.loads(line)["id"] for line in lines_of(tmp_path / "out", "kept")] == expected_ids(rows)


def test_standard_output(tmp_path: Path) -> None:
    rows = rows_of(500)
    source = write(tmp_path / "rows.jsonl", rows)
    command = [sys.executable, "-m", "potstill", "filter", source, "--out", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == expected_ids(rows)
    assert json.loads(done.stderr.splitlines()[-1])["asked"] == 500
    many = write(
        tmp_path / "many.jsonl", [row | {"instruction": str(number)} for number, row in enumerate(rows_of(9000))]
    )
    process = subprocess.Popen([*command[:4], many, *command[5:]], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait() == 130
    assert "has stopped reading" in said
    assert "Traceback" not in said


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


@pytest.fixture
def run_cli(capfd: pytest.CaptureFixture[str]) -> Any:
    """Run the command line and return its last line."""

    def run(*arguments: str) -> dict[str, Any]:
        assert main(list(arguments)) == 0
        found: dict[str, Any] = json.loads(capfd.readouterr().out.splitlines()[-1])
        return found

    return run


def test_verify_judges_a_filtered_folder_again(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    texts = ["fine answer 1", "fine answer 2", "no", "I cannot say", "fine answer 1", "fine answer 3"]
    rows = [{"instruction": "Say a b c", "output": text} for text in texts]
    source.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows) + b"{bad\n")
    settings = load(None, ["filter.cap_per_template=2"])
    summary = filter_rows([str(source)], tmp_path / "out", settings)
    found = verify(tmp_path / "out")
    for key in ("asked", "kept", "rejected", "skipped", "failed"):
        assert found[key] == summary[key]
    assert found["kept"] == 2
    shard = tmp_path / "out" / "kept-00000.jsonl"
    shard.write_bytes(shard.read_bytes().replace(b"fine answer 2", b"sorry, i fear"))
    manifest = read_manifest(tmp_path / "out")
    digest = xxhash.xxh3_128_hexdigest(shard.read_bytes())
    manifest.shards = [
        msgspec.structs.replace(one, xxh3=digest) if one.file == shard.name else one for one in manifest.shards
    ]
    write_manifest(tmp_path / "out", manifest)
    with pytest.raises(DataError, match="filed as kept"):
        verify(tmp_path / "out")


def test_two_objects_on_one_line_beside_a_blank_line_are_one_bad_line(tmp_path: Path) -> None:
    row = b'{"instruction":"a","output":"fine answer"}'
    (tmp_path / "rows.jsonl").write_bytes(b"\n" + row + row + b"\n" + row + b"\n")
    summary = filter_rows([str(tmp_path / "rows.jsonl")], tmp_path / "out", Config())
    assert (summary["failed"], summary["kept"]) == (1, 1)
