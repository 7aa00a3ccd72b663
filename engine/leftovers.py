"""Leftovers: what an unfinished run has on disk that its manifest does not name, to be published or deleted.

Promises to touch only names that `engine.shards` gives, and that recovering can itself be killed anywhere. Knows lines
and counts, not what a row means.
"""

from __future__ import annotations

import re
from pathlib import Path

from engine.part import PART, ZSTD, Part, disk, sync_folder
from engine.rows import OUTCOMES, Outcome
from engine.shards import Manifest, logprobs_path, published, write_manifest


def leftovers(folder: Path, manifest: Manifest) -> dict[Outcome, list[bytes]]:
    """Return the whole lines of each kind's unpublished files; a torn last line is dropped.

    A run that was killed between renaming its shards and replacing the manifest has them under their final name:
    they are read like `.part` files. A run that was killed while it recovered may hold a line twice.
    """
    lines: dict[Outcome, list[bytes]] = {}
    for kind in OUTCOMES:
        for path in unpublished(folder, manifest, kind):
            lines.setdefault(kind, []).extend(_whole_lines(path))
    return lines


def publish_recovered(
    folder: Path, manifest: Manifest, lines: dict[Outcome, list[bytes]], records: list[bytes] | None = None
) -> None:
    """Publish lines that an unfinished run left, then delete its unpublished files; safe to be killed anywhere.

    `records` are the log-probabilities of the kept ones, where the run has any.
    """
    shards = list(manifest.shards)
    for kind in OUTCOMES:
        if lines.get(kind):
            final = folder / f"{kind}-{len(manifest.of(kind)):05d}.jsonl"
            logprobs = _recovered(logprobs_path(final), records) if kind == "kept" and records else None
            shards.append(published(_recovered(final, lines[kind]), kind, final, logprobs))
    sync_folder(folder)
    manifest.shards = shards
    write_manifest(folder, manifest)
    discard_unpublished(folder, manifest)


def _recovered(final: Path, pieces: list[bytes]) -> Part:
    part = Part(final.with_name(f"{final.name}.recovered{PART}"))
    part.append(pieces, len(pieces))
    return part


def discard_unpublished(folder: Path, manifest: Manifest) -> None:
    """Delete what an unfinished run wrote and did not publish."""
    for name in (*OUTCOMES, "logprobs"):
        for path in unpublished(folder, manifest, name):
            with disk(path):
                path.unlink()


def unpublished(folder: Path, manifest: Manifest, name: str) -> list[Path]:
    """Return the files of one kind of row, or of `logprobs`, that the manifest does not name."""
    named = {shard.file for shard in manifest.shards}
    named |= {shard.logprobs.file for shard in manifest.shards if shard.logprobs}
    # Only names that are given here: what a user put beside the shards is not ours to read or to delete.
    ours = re.compile(rf"{name}-\d{{5,}}\.(jsonl(\{ZSTD})?|bin)(\.recovered)?(\{PART})?")
    return sorted(path for path in folder.glob(f"{name}-*") if ours.fullmatch(path.name) and path.name not in named)


def _whole_lines(path: Path) -> list[bytes]:
    data = path.read_bytes()
    return [line + b"\n" for line in data[: data.rfind(b"\n") + 1].split(b"\n")[:-1]]
