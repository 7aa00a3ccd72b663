"""`potstill filter`, what it reads: runs, tables, compressed and damaged files, standard input."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filter_runs import SMALL, expected_ids, lines_of, rows_of, write

from engine.config import load
from engine.errors import PotstillError
from engine.filter_run import filter_rows
from potstill import main

pytestmark = pytest.mark.usefixtures("way")


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
