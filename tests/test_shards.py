"""Shards: whole or not at all, and what a kill at any point leaves."""

import contextlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import shards
from engine.errors import DataError, DiskError, MissingError
from engine.leftovers import leftovers, publish_recovered
from engine.shards import (
    Manifest,
    ShardWriter,
    read_lines,
    read_manifest,
    replace_file,
    write_manifest,
)


def line(number: int) -> bytes:
    return json.dumps({"index": number, "text": "\u2028 \r is escaped, é is not"}, ensure_ascii=False).encode() + b"\n"


def write(folder: Path, batches: list[int], *, publish_after: set[int]) -> Manifest:
    manifest = Manifest()
    writer = ShardWriter(folder, manifest, shard_bytes=1024)
    write_manifest(folder, manifest)
    number = 0
    for batch, size in enumerate(batches):
        writer.append("kept", [line(number + i) for i in range(size)])
        number += size
        if batch in publish_after:
            writer.publish()
    writer.close()
    return manifest


def published(folder: Path) -> list[bytes]:
    manifest = read_manifest(folder)
    return [found for shard in manifest.of("kept") for found in read_lines(folder, shard)]


def test_a_shard_is_named_only_when_it_is_whole(tmp_path: Path) -> None:
    write(tmp_path, [2, 3], publish_after={0})
    assert published(tmp_path) == [line(0), line(1)]
    assert sorted(path.name for path in tmp_path.glob("kept*")) == ["kept-00000.jsonl", "kept-00001.jsonl.part"]
    assert leftovers(tmp_path, read_manifest(tmp_path)) == {"kept": [line(2), line(3), line(4)]}


def test_recovered_lines_become_a_shard(tmp_path: Path) -> None:
    manifest = write(tmp_path, [2, 3], publish_after={0})
    publish_recovered(tmp_path, manifest, {"kept": [line(2), line(3)]})
    assert published(tmp_path) == [line(i) for i in range(4)]
    assert not list(tmp_path.glob("*.part"))


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 400), junk=st.sampled_from([b"", b"\0" * 50, b'{"index": 9']))
def test_a_torn_tail_is_dropped(cut: int, junk: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("torn")
    write(folder, [4], publish_after=set())
    part = folder / "kept-00000.jsonl.part"
    data = part.read_bytes()[:cut]
    part.write_bytes(data + junk)
    whole = data.count(b"\n")
    assert leftovers(folder, read_manifest(folder)).get("kept", []) == [line(i) for i in range(whole)]


def test_renamed_but_not_in_the_manifest_is_read_like_a_part(tmp_path: Path) -> None:
    write(tmp_path, [2], publish_after=set())
    os.rename(tmp_path / "kept-00000.jsonl.part", tmp_path / "kept-00000.jsonl")
    manifest = read_manifest(tmp_path)
    found = leftovers(tmp_path, manifest)
    assert found == {"kept": [line(0), line(1)]}
    publish_recovered(tmp_path, manifest, found)
    assert published(tmp_path) == [line(0), line(1)]


@pytest.mark.parametrize("point", range(12))
def test_killed_while_recovering_it_recovers_again(point: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail at each system call that changes the disk in turn; what is left must still give every line."""
    manifest = write(tmp_path, [2, 3], publish_after={0})
    calls = {"left": point}

    class KilledError(Exception):
        pass

    def dying(function):  # type: ignore[no-untyped-def]
        def call(*arguments, **named):  # type: ignore[no-untyped-def]
            if calls["left"] == 0:
                raise KilledError
            calls["left"] -= 1
            return function(*arguments, **named)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(shards.os, "fsync", dying(os.fsync))
        patch.setattr(Path, "replace", dying(Path.replace))
        patch.setattr(Path, "unlink", dying(Path.unlink))
        with contextlib.suppress(KilledError):
            publish_recovered(tmp_path, manifest, leftovers(tmp_path, manifest))
    manifest = read_manifest(tmp_path)
    seen = {json.loads(found)["index"]: found for found in leftovers(tmp_path, manifest).get("kept", [])}
    position = sum(shard.rows for shard in manifest.shards)
    fresh = [seen[index] for index in sorted(seen) if index >= position]
    publish_recovered(tmp_path, manifest, {"kept": fresh})
    assert published(tmp_path) == [line(i) for i in range(5)]


@pytest.mark.parametrize("change", ["flip", "cut", "grow", "gone"])
def test_a_shard_that_is_not_what_was_published_is_named(tmp_path: Path, change: str) -> None:
    write(tmp_path, [5], publish_after={0})
    path = tmp_path / "kept-00000.jsonl"
    data = path.read_bytes()
    changed = {"flip": data.replace(b"escaped", b"escapeD", 1), "cut": data[:-9], "grow": data + line(9)}
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes(changed[change])
    with pytest.raises(DataError, match=r"kept-00000\.jsonl"):
        published(tmp_path)


def test_no_manifest_and_a_broken_one_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="is not a run"):
        read_manifest(tmp_path)
    of_a_bundle = b'{"schema": 1, "files": []}'
    for data in (b'{"schema": "one"}', b"{}", of_a_bundle, b"\xff", b'{"schema": 1, "shards": {}}', b"[" * 9999):
        (tmp_path / "manifest.json").write_bytes(data)
        with pytest.raises(DataError, match=r"manifest\.json: is no manifest of a run \(.+\); give the folder"):
            read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"schema": 2, "shards": [{"new": 1}]}')
    with pytest.raises(DataError, match=r"has schema 2, and this version of potstill reads 1"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(DataError, match=r"manifest\.json: cannot be read"):
        read_manifest(tmp_path)


def test_a_full_disk_is_a_sentence() -> None:
    with (
        pytest.raises(DiskError, match="the disk is full; free some space"),
        shards.disk(Path("/dev/full")),
        open("/dev/full", "wb", buffering=0) as file,
    ):
        file.write(b"x")


def test_replace_keeps_the_old_file_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "manifest.json"
    replace_file(path, b"old")

    def broken(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(shards.os, "fsync", broken)
    with pytest.raises(DiskError, match="Input/output error"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"


def test_what_a_user_put_into_the_folder_is_neither_read_nor_deleted(tmp_path: Path) -> None:
    manifest = write(tmp_path, [2, 3], publish_after={0})
    mine = [tmp_path / name for name in ("kept-all.jsonl", "kept-00000-clean.jsonl", "rejected-.jsonl.part")]
    for path in mine:
        path.write_bytes(line(0))
    assert leftovers(tmp_path, manifest) == {"kept": [line(2), line(3), line(4)]}
    publish_recovered(tmp_path, manifest, {})
    assert all(path.read_bytes() == line(0) for path in mine)
