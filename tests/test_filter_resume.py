"""`potstill filter`, stopped and gone on with: a kill, a full disk, another setting, several workers."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import orjson
import pytest
import xxhash
from filter_runs import SMALL, assert_same, parts, rows_of, write

from engine.config import Config, load
from engine.errors import ConfigError, DataError, DiskError, MissingError, UsageError
from engine.filter_run import filter_rows
from engine.shards import Manifest, read_manifest, write_manifest
from engine.verify import verify

pytestmark = pytest.mark.usefixtures("way")


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
