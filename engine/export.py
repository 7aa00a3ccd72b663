"""`potstill export`: the kept rows of a run as a bundle that other trainers read.

One pass over the run writes every format at once, so memory does not grow with the rows. Promises a bundle that is
whole or not there, that every kept row is in one split or counted as refused, and the same bytes for the same run and
request. Knows exporters only as engine/bundle.py describes them.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from engine import config as configuration
from engine.bundle import DATA, FORMATS, SPLITS, TRAIN, VALIDATION, Exporter, Facts, Sink
from engine.card import Card
from engine.config import Config
from engine.errors import DataError, MissingError, UsageError
from engine.exports import exporters
from engine.facts import chat_template, facts_of, is_local, public, teacher_score, tokenizer_sha256
from engine.new_folder import File, checksum, checksums, new_folder, write_file
from engine.progress import note
from engine.run import versions
from engine.samples import Samples
from engine.shards import read_manifest
from engine.split import held_out

CARD = "README.md"
MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
NOTE_EVERY_S = 5.0


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for."""

    to: Sequence[str]
    """Names of exporters."""
    out: Path | None = None
    """The bundle's folder; None takes RUN/export/NAME."""
    name: str | None = None
    """What the bundle is called; None takes the run folder's name."""
    val_fraction: float | None = None
    """Share of groups that is held out; None takes the run's train.val_fraction, as the trainer does."""
    include_truncated: bool = False
    push_to: str | None = None
    """Repository on the hub."""
    overrides: Sequence[str] = ()
    """Settings to put in place of the run's, as section.key=value."""


def export(run: Path, request: Request) -> dict[str, Any]:
    """Write the bundle and return its counts.

    Raises: UsageError or MissingError where the request cannot be met, DataError where a shard is not the one that was
    published, EndpointError where the hub did not take the finished bundle.
    """
    chosen = _choose(request)
    manifest = read_manifest(run)
    if manifest.is_open:
        note(f"export: {run} has not ended; these are its rows so far")
    trains = any(exporter.files for exporter in chosen.values())
    facts = facts_of(run, manifest, _settings(run, request), name=request.name, trains=trains)
    _check_push(request, facts)
    out = (request.out or run / "export" / facts.name).absolute()
    samples = Samples(run, manifest, include_truncated=request.include_truncated)
    with new_folder(out) as folder:
        rows, counts = _write_rows(folder, chosen, facts, samples)
        facts = msgspec.structs.replace(facts, rows=rows)
        _write_texts(folder, chosen, facts)
        card = Card(
            facts=facts,
            manifest=manifest,
            exporters=chosen,
            files=checksums(folder, counts),
            refused=samples.refused,
            score=teacher_score(run),
        )
        write_file(folder / CARD, card.text().encode("utf-8", "replace"))
        files = [*card.files, checksum(folder, folder / CARD)]
        write_file(folder / MANIFEST, _manifest(card, files))
    size = sum(file.bytes for file in files)
    summary = {"export": str(out), "rows": rows, "refused": samples.refused, "files": len(files) + 1, "bytes": size}
    return summary | _publish(out, chosen, request.push_to)


def _choose(request: Request) -> dict[str, Exporter]:
    """Return the exporters that were asked for and those whose rows they read, by name."""
    known = exporters()
    names = list(dict.fromkeys(request.to))
    if not names:
        raise UsageError(f"--to names no format; there are {', '.join(known)}")
    for name in names:
        if name not in known:
            raise UsageError(f"--to {name}: no such format; there are {', '.join(known)}")
        names.extend(needed for needed in known[name].needs if needed not in names)
    if not any(known[name].folder == DATA for name in names):
        names.append("jsonl")
    chosen = {name: known[name] for name in sorted(names)}
    for name, exporter in chosen.items():
        missing = [package for package in exporter.packages if importlib.util.find_spec(package) is None]
        if missing:
            raise MissingError(f"--to {name} needs {' and '.join(missing)}; pip install potstill[export]")
    return chosen


def _check_push(request: Request, facts: Facts) -> None:
    """Refuse to publish before any work what could not be sent, or should not."""
    if not request.push_to:
        return
    able = [name for name, exporter in exporters().items() if exporter.publish]
    if not set(able) & set(request.to):
        raise UsageError(f"--push-to {request.push_to} needs a format that can be sent; add {able[0]} to --to")
    if is_local(facts.student):
        raise UsageError(
            f"--push-to would publish training configurations that name {facts.student}, a folder of this machine; "
            f"push with --to {able[0]} alone, or add --set student.model=OWNER/NAME"
        )


def _settings(run: Path, request: Request) -> Config:
    """Return the run's settings with what the request puts in their place."""
    path = run / "config.toml"
    overrides = list(request.overrides)
    if request.val_fraction is not None:
        if not 0 <= request.val_fraction < 1:
            raise UsageError(f"--val-fraction {request.val_fraction}: a share from 0 to below 1 is needed")
        overrides.append(f"train.val_fraction={request.val_fraction}")
    return configuration.load(path if path.exists() else None, overrides)


def _write_rows(
    folder: Path, chosen: Mapping[str, Exporter], facts: Facts, samples: Samples
) -> tuple[dict[str, int], dict[Path, int]]:
    """Write every format in one pass; return the rows of each split and of each file."""
    seed, val_fraction = facts.train.seed, facts.train.val_fraction
    counts: dict[Path, int] = {}
    rows = Counter(dict.fromkeys(SPLITS, 0))
    progress = _Progress()
    with ExitStack() as stack:
        sinks = {split: _open(folder, chosen, split, facts) for split in SPLITS}
        for sink in [*sinks[TRAIN], *sinks[VALIDATION]]:
            stack.callback(partial(_close, sink, counts))
        for sample in samples:
            split = VALIDATION if held_out(sample.group, val_fraction=val_fraction, seed=seed) else TRAIN
            rows[split] += 1
            for sink in sinks[split]:
                sink.write(sample)
            progress.tick(rows.total())
    if not rows[TRAIN]:
        raise DataError(
            f"no row to train on ({rows[VALIDATION]} held out, {sum(samples.refused.values())} refused as truncated); "
            "generate more, lower --val-fraction or add --include-truncated"
        )
    return dict(rows), counts


def _open(folder: Path, chosen: Mapping[str, Exporter], split: str, facts: Facts) -> list[Sink]:
    return [
        exporter.open(folder / (exporter.folder or f"{FORMATS}/{name}"), split, facts)
        for name, exporter in chosen.items()
        if exporter.open
    ]


def _close(sink: Sink, counts: dict[Path, int]) -> None:
    counts.update(sink.close())


def _write_texts(folder: Path, chosen: Mapping[str, Exporter], facts: Facts) -> None:
    for exporter in chosen.values():
        for path, text in (exporter.files(facts) if exporter.files else {}).items():
            write_file(folder / path, text.encode())
    template = chat_template(facts.student)
    if template is not None:
        write_file(folder / "chat_template.jinja", template.encode())


def _manifest(card: Card, files: Sequence[File]) -> bytes:
    """Return what made the bundle, and its files with their checksums."""
    facts, manifest = card.facts, card.manifest
    template = chat_template(facts.student)
    told = {
        "schema": SCHEMA_VERSION,
        "name": facts.name,
        "formats": list(card.exporters),
        "rows": facts.rows,
        "refused": card.refused,
        "split": {
            "by": "group",
            "rule": "validation where xxh3_64(seed + U+001F + group) / 2**64 < val_fraction",
            "val_fraction": facts.train.val_fraction,
            "seed": facts.train.seed,
        },
        "student": {
            "model": public(facts.student),
            "tokenizer_sha256": tokenizer_sha256(facts.student),
            "chat_template_sha256": hashlib.sha256(template.encode()).hexdigest() if template is not None else None,
            "chat_template_kwargs": facts.template_kwargs,
        },
        "run": {
            "finished": manifest.finished,
            "teacher": public(manifest.teacher),
            "fingerprint": public(manifest.fingerprint),
            "versions": manifest.versions,
            "summary": public(manifest.summary),
            "shards": manifest.of("kept"),
        },
        "versions": versions() | _package_versions(card.exporters),
        "files": files,
    }
    return msgspec.json.format(msgspec.json.encode(told), indent=2) + b"\n"


def _package_versions(chosen: Mapping[str, Exporter]) -> dict[str, str]:
    packages = {package for exporter in chosen.values() for package in exporter.packages}
    return {package: importlib.metadata.version(package) for package in sorted(packages)}


def _publish(out: Path, chosen: Mapping[str, Exporter], repository: str | None) -> dict[str, Any]:
    if repository is None:
        return {}
    return {"pushed": [exporter.publish(out, repository) for exporter in chosen.values() if exporter.publish]}


class _Progress:
    """Says every few seconds how far it is."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()

    def tick(self, rows: int) -> None:
        now = time.monotonic()
        if now - self._last >= NOTE_EVERY_S:
            self._last = now
            note(f"export  {rows:,} rows, {rows / (now - self._start):,.0f} rows/s")
