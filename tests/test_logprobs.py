"""Log-probabilities beside the kept shards: whole, of the right rows, and the same after a kill or a torn tail."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import xxhash

from engine import config
from engine.errors import ConfigError, DataError, MissingError
from engine.export import Request, export
from engine.generate import generate
from engine.logprobs import Logprobs, left_records, pack, read_logprobs, record
from engine.rows import Row
from engine.shards import Manifest, Shard, ShardWriter, Sidecar, read_lines, read_manifest, write_manifest
from engine.verify import verify

ROOT = Path(__file__).resolve().parent.parent
ECHO = ROOT / "data" / "echo.toml"
FAST = [
    "teacher.echo.tokens_per_s=1e9",
    "prompts.count=1200",
    "filter.cap_per_template=300",
    "output.shard_bytes=32768",
    "sampling.logprobs=3",
]


def settings(*overrides: str) -> config.Config:
    return config.load(ECHO, [*FAST, *overrides])


def rows(folder: Path) -> list[Row]:
    shards = read_manifest(folder).of("kept")
    return [msgspec.json.decode(line, type=Row) for shard in shards for line in read_lines(folder, shard)]


def sidecars(folder: Path) -> bytes:
    """Everything that was captured, however it is cut into files."""
    return b"".join((folder / shard.logprobs.file).read_bytes() for shard in read_manifest(folder).of("kept"))  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scored") / "run"
    generate(settings(), folder)
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def test_every_kept_row_has_its_own_in_order(whole: Path) -> None:
    found, kept = list(read_logprobs(whole)), rows(whole)
    assert [one.id for one in found] == [row.id for row in kept]
    assert len(read_manifest(whole).of("kept")) > 2, "many shards"
    for one, row in zip(found, kept, strict=True):
        assert one.token_ids.shape == one.sampled_logprobs.shape == (row.output_tokens,)
        assert one.topk_ids.shape == one.topk_logprobs.shape == (row.output_tokens, 3)
        first = xxhash.xxh32_intdigest(row.output[:4].encode()) % 50_000
        assert one.token_ids[0] == one.topk_ids[0, 0] == first
    assert found[0].topk_logprobs.dtype == np.float16
    assert verify(whole)["kept"] == len(kept)


def test_off_there_is_nothing_of_it_and_the_rows_are_the_same(whole: Path, tmp_path: Path) -> None:
    generate(settings("sampling.logprobs=0"), tmp_path / "run")
    assert rows(tmp_path / "run") == rows(whole)
    assert not list((tmp_path / "run").glob("logprobs-*"))
    assert b'"logprobs"' not in (tmp_path / "run" / "manifest.json").read_bytes()
    with pytest.raises(MissingError, match=r"no log-probabilities; generate with sampling\.logprobs = 20"):
        next(read_logprobs(tmp_path / "run"))


def test_it_cannot_be_switched_on_half_way(tmp_path: Path) -> None:
    generate(settings("sampling.logprobs=0", "prompts.count=200"), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"sampling\.logprobs = 0, not 3"):
        generate(settings("prompts.count=200"), tmp_path / "run")


def test_killed_it_resumes_to_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    folder, rng, kills = tmp_path / "run", random.Random(3), 0
    pace = ["teacher.echo.tokens_per_s=5000", "teacher.echo.max_num_seqs=16"]
    slow = [part for override in [*FAST, *pace] for part in ("--set", override)]
    command = [sys.executable, "-m", "potstill", "generate", str(ECHO), "--out", str(folder), *slow]
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = size(folder)
        while process.poll() is None and size(folder) == before:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.3)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    generate(settings(), folder)
    assert kills >= 2, "it was killed while it ran"
    assert sidecars(folder) == sidecars(whole)
    assert rows(folder) == rows(whole)
    assert verify(folder)["kept"] == len(rows(whole))
    assert not list(folder.glob("*.part"))


def size(folder: Path) -> int:
    """Bytes of records in a run folder, published or not; a file may be renamed while they are counted."""
    found = 0
    for path in folder.glob("logprobs-*"):
        with suppress(FileNotFoundError):
            found += path.stat().st_size
    return found


@pytest.mark.parametrize("torn", ["records", "rows", "all records"])
def test_what_is_torn_on_either_side_is_asked_again(whole: Path, copy: Path, torn: str) -> None:
    """The shards are as a power cut may leave them: renamed, not in the manifest yet, and one side cut."""
    manifest = read_manifest(copy)
    manifest.finished, manifest.summary = False, {}
    lost = manifest.of("kept")[-1]
    manifest.shards = []
    write_manifest(copy, manifest)
    assert lost.logprobs is not None
    victim = copy / (lost.file if torn == "rows" else lost.logprobs.file)
    data = victim.read_bytes()
    victim.write_bytes(b"" if torn == "all records" else data[: len(data) // 2] + b"\0" * 100)
    generate(settings(), copy)
    assert sidecars(copy) == sidecars(whole)
    assert rows(copy) == rows(whole)
    verify(copy)


def test_a_changed_or_missing_file_is_found(copy: Path) -> None:
    victim = copy / "logprobs-00001.bin"
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    for check in (verify, lambda folder: list(read_logprobs(folder))):
        with pytest.raises(DataError, match=r"logprobs-00001\.bin.*checksum"):
            check(copy)
    victim.write_bytes(data[:-1])
    manifest = read_manifest(copy)
    manifest.finished = False
    write_manifest(copy, manifest)
    with pytest.raises(DataError, match=r"logprobs-00001\.bin: missing or cut"):
        generate(settings(), copy)
    victim.unlink()
    with pytest.raises(DataError, match="missing"):
        verify(copy)


def test_a_record_of_another_row_is_found(copy: Path) -> None:
    """The file is whole, and the manifest agrees with it: only the rows do not."""
    manifest = read_manifest(copy)
    place = manifest.shards.index(manifest.of("kept")[0])
    shard = manifest.shards[place]
    assert shard.logprobs is not None
    records = list(left_records(copy, Manifest()).values())[: shard.rows]
    for changed in (records[::-1], records[:-1], [*records, records[0]]):
        data = b"".join(changed)
        (copy / shard.logprobs.file).write_bytes(data)
        sidecar = Sidecar(shard.logprobs.file, len(data), xxhash.xxh3_128_hexdigest(data))
        manifest.shards[place] = msgspec.structs.replace(shard, logprobs=sidecar)
        write_manifest(copy, manifest)
        with pytest.raises(DataError, match=r"logprobs-00000\.bin: (record \d+ is not that of row|holds more records)"):
            verify(copy)
    manifest.shards[place] = msgspec.structs.replace(shard, logprobs=None)
    write_manifest(copy, manifest)
    with pytest.raises(DataError, match="has no log-probabilities, though they were asked for"):
        verify(copy)


def test_the_gate_counts_them_in_its_forecast_of_the_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    megabytes = []
    for width in (0, 50):
        generate(settings(f"sampling.logprobs={width}", "prompts.count=100"), tmp_path / str(width))
        megabytes.append(float(capsys.readouterr().err.partition(" output tokens, ")[2].partition(" MB")[0]))
    assert megabytes[1] > megabytes[0] + 100 * 0.5 * 8 * 300 / 1e6, "300 bytes for each of some 10 tokens"


def test_an_endpoint_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sampling\.logprobs needs teacher\.backend = vllm"):
        generate(settings("teacher.backend=openai"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("cut", [1, 8, 9, 50])
def test_a_record_cut_anywhere_is_none(tmp_path: Path, cut: int) -> None:
    data = b"".join(
        record(name, pack([7, 9], [[7, 1], [2, 9]], [[-0.1, -2], [-0.5, -0.75]], [-0.1, -0.75])) for name in ("é", "b")
    )
    path = tmp_path / "logprobs-00000.bin.part"
    path.write_bytes(data[:-cut])
    assert list(left_records(tmp_path, Manifest())) == ["é"]
    spoilt = bytearray(data)
    spoilt[-cut] ^= 255
    path.write_bytes(spoilt)
    assert list(left_records(tmp_path, Manifest())) == ["é"]
    path.write_bytes(data)
    assert list(left_records(tmp_path, Manifest())) == ["é", "b"]


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    given: list[Any] = [[7, 9], [[7, 1], [2, 9]], [[-0.125, -2], [-0.5, -0.75]], [-0.125, -0.75]]
    data = record("é", pack(*given)) + record("", pack([], [], [], []))
    path = tmp_path / "logprobs-00000.bin"
    path.write_bytes(data)
    line = b'{"id":"x"}\n'
    (tmp_path / "kept-00000.jsonl").write_bytes(line)
    sidecar = Sidecar(path.name, len(data), xxhash.xxh3_128_hexdigest(data))
    shard = Shard("kept-00000.jsonl", "kept", 1, len(line), xxhash.xxh3_128_hexdigest(line), sidecar)
    write_manifest(tmp_path, Manifest(shards=[shard]))
    first, empty = read_logprobs(tmp_path)
    assert first.id == "é"
    assert [array.tolist() for array in first[1:]] == given
    assert isinstance(first, Logprobs)
    assert empty.id == ""
    assert empty.token_ids.shape == (0,)


def test_a_shard_is_due_when_its_log_probabilities_are_large(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, Manifest(), shard_bytes=1000)
    writer.append_logprobs([b"x" * 7900])
    writer.append("kept", [b"{}\n"])
    assert not writer.due
    writer.append_logprobs([b"x" * 100])
    assert writer.due
    writer.publish()
    assert not writer.due
    (shard,) = read_manifest(tmp_path).shards
    assert shard.logprobs == Sidecar("logprobs-00000.bin", 8000, xxhash.xxh3_128_hexdigest(b"x" * 8000))


def test_they_leave_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each split has its own, joined to the rows by id, and numbers come out as they were captured."""
    pytest.importorskip("pyarrow")
    from pyarrow import parquet

    monkeypatch.setattr("engine.parquet_files.GROUP_BYTES", 20_000)
    run = tmp_path / "run"
    generate(settings("sampling.max_tokens=11"), run, gate=False)
    refused = {row.id for row in rows(run) if row.finish_reason == "length"}
    assert refused
    export(run, Request(to=["kd"], out=tmp_path / "out", val_fraction=0.2))
    captured = {one.id: one for one in read_logprobs(run)}
    seen = []
    for split in ("train", "validation"):
        (file,) = (tmp_path / "out" / "kd").glob(f"{split}-*.parquet")
        found = parquet.read_table(file).to_pylist()
        lines = (tmp_path / "out" / "data" / f"{split}.jsonl").read_bytes().splitlines()
        beside = [msgspec.json.decode(line)["id"] for line in lines]
        assert [row["id"] for row in found] == beside
        seen += found
    assert {row["id"] for row in seen} == captured.keys() - refused
    for row in seen:
        for name, array in captured[row["id"]]._asdict().items():
            assert name == "id" or np.array_equal(np.array(row[name], dtype=array.dtype), array)


def test_a_run_without_them_has_none_to_export(tmp_path: Path) -> None:
    generate(settings("sampling.logprobs=0", "prompts.count=200"), tmp_path / "run")
    with pytest.raises(MissingError, match=r"holds no log-probabilities; generate with sampling\.logprobs"):
        export(tmp_path / "run", Request(to=["kd"], out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
