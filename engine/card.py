"""The card of an exported data set: what it is, who wrote it, what was left out and why, and how to use it.

A README whose front matter the Hugging Face hub reads. Promises that what a user typed (phrases, model names) stands
in code, where it can neither be taken for Markdown nor for HTML. Pure: no disk, no clock.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from engine.bundle import DATA, SPLITS, Exporter, Facts
from engine.canonical import COLUMNS, MEANINGS, features
from engine.facts import public
from engine.funnel import funnel_line
from engine.new_folder import File
from engine.shards import Manifest
from engine.yaml_text import to_yaml


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the card tells."""

    facts: Facts
    manifest: Manifest
    exporters: Mapping[str, Exporter]
    files: Sequence[File]
    refused: Mapping[str, int]
    score: tuple[float, int] | None
    """The teacher's score on held-out items, and how many there were."""

    def text(self) -> str:
        """Return the card."""
        sections = (
            self._head,
            self._teacher,
            self._filter,
            self._split,
            self._columns,
            self._use,
            self._errors,
            self._licence,
            self._checksums,
        )
        body = "\n".join("\n".join(section()) + "\n" for section in sections)
        return f"---\n{to_yaml(front_matter(self.facts, self.files))}---\n\n{body}"

    def _head(self) -> Iterator[str]:
        rows = self.facts.rows
        yield f"# {self.facts.name}"
        yield ""
        yield f"{rows['train']:,} rows to train on and {rows['validation']:,} held out, written by"
        yield f"{_code(self.facts.teacher.model or 'a teacher that is not recorded')} and filtered by Potstill."

    def _teacher(self) -> Iterator[str]:
        yield "## The teacher and its sampling"
        yield ""
        described = {f"teacher.{key}": value for key, value in public(self.manifest.teacher).items()}
        asked = _section(self.manifest, "teacher.", "sampling.", "prompts.")
        yield from _settings(described | {key: value for key, value in asked.items() if value not in ("", {}, [])})
        yield ""
        yield "The teacher may have seen a system prompt and worked examples; the student sees neither, and no row has"
        yield "them."

    def _filter(self) -> Iterator[str]:
        yield "## The filter and its yield"
        yield ""
        yield from _settings(_section(self.manifest, "filter."))
        yield ""
        yield from _settings(_yield(self.manifest))
        for reason, count in self.refused.items():
            yield ""
            yield f"Of the kept rows, {count:,} were left out of this export because they are {reason}."

    def _split(self) -> Iterator[str]:
        yield "## The split"
        yield ""
        train = self.facts.train
        yield f"About {train.val_fraction:.1%} of the questions are held out with all their rows: what asks the same,"
        yield "but for case and spaces, is on one side. The side is a hash of the question and of the seed,"
        yield f"{train.seed}, so it stays the same when rows are added."

    def _columns(self) -> Iterator[str]:
        yield f"## The columns of `{DATA}/`"
        yield ""
        yield "| column | meaning |"
        yield "|---|---|"
        for name in COLUMNS:
            yield f"| `{name}` | {MEANINGS[name]} |"

    def _use(self) -> Iterator[str]:
        yield "## How to use it"
        yield ""
        yield "Commands are run in this folder."
        yield ""
        for name, exporter in self.exporters.items():
            yield f"- **{name}** ({exporter.consumer}): {exporter.usage}"
        yield ""
        kwargs = self.facts.template_kwargs
        given = f"with {_code(json.dumps(kwargs, ensure_ascii=False))}" if kwargs else "without further arguments"
        yield f"Render rows with the student's own chat template, {given}, in training and in serving alike:"
        yield "a student that is served in another form than it was trained in answers badly."

    def _errors(self) -> Iterator[str]:
        yield "## Known errors"
        yield ""
        yield "A model wrote the answers and nobody read them all; the filter knows form, not truth."
        if self.score is not None:
            yield f"On {self.score[1]:,} held-out items with known answers, the teacher scored {self.score[0]:.1%}."

    def _licence(self) -> Iterator[str]:
        yield "## Licence"
        yield ""
        yield "What a model writes may be bound by its licence or its terms of use, and so may the prompts by those of"
        yield "their source. Check both before you publish the rows or train on them, and name the licence here."

    def _checksums(self) -> Iterator[str]:
        yield "## Checksums"
        yield ""
        yield "| file | rows | bytes | sha256 |"
        yield "|---|---:|---:|---|"
        for file in self.files:
            yield f"| `{file.path}` | {'' if file.rows is None else file.rows} | {file.bytes} | `{file.sha256}` |"
        yield ""
        yield "`manifest.json` has these and xxh3, with the versions of everything that made them."


def front_matter(facts: Facts, files: Sequence[File]) -> dict[str, Any]:
    """Return what the hub reads.

    Source: https://huggingface.co/docs/hub/datasets-cards
    """
    data = {split: _data(files, split) for split in SPLITS}
    splits = [
        {"name": split, "num_bytes": sum(file.bytes for file in found), "num_examples": facts.rows[split]}
        for split, found in data.items()
        if found
    ]
    return {
        "pretty_name": facts.name,
        "license": "other",
        "license_name": "terms-of-the-teacher",
        "task_categories": ["text-generation"],
        "size_categories": [_size(sum(facts.rows.values()))],
        "tags": ["synthetic", "distillation", "potstill"],
        "annotations_creators": ["machine-generated"],
        "source_datasets": ["original"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": split, "path": [file.path for file in found]} for split, found in data.items() if found
                ],
            }
        ],
        "dataset_info": {
            "features": features(COLUMNS),
            "splits": splits,
            "download_size": sum(split["num_bytes"] for split in splits),
            "dataset_size": sum(split["num_bytes"] for split in splits),
        },
    }


def _data(files: Sequence[File], split: str) -> list[File]:
    """Return the files that hold a split, in one form: Parquet where it is there, since the hub's viewer pages it."""
    parquet = [file for file in files if file.path.startswith(f"{DATA}/{split}-")]
    return parquet or [file for file in files if file.path == f"{DATA}/{split}.jsonl"]


def _size(rows: int) -> str:
    """Return the hub's word for a number of rows."""
    steps = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    return next((word for limit, word in steps if rows < limit), "1M<n<10M" if rows < 10_000_000 else "n>10M")


def _section(manifest: Manifest, *prefixes: str) -> dict[str, Any]:
    return {key: value for key, value in public(manifest.fingerprint).items() if key.startswith(prefixes)}


def _yield(manifest: Manifest) -> dict[str, Any]:
    """Return how many rows each rule cost; while a run goes on only the outcomes are known."""
    summary = manifest.summary
    if not manifest.finished or "asked" not in summary:
        counts = {kind: sum(shard.rows for shard in manifest.of(kind)) for kind in ("kept", "rejected", "skipped")}
        return {"finished": manifest.finished, **counts}
    rejected = summary.get("rejected", {})
    asked, failed = summary["asked"], summary.get("failed", 0)
    return {
        "asked": asked,
        **{f"rejected.{rule}": count for rule, count in rejected.items()},
        "skipped": summary.get("skipped", 0),
        "failed": failed,
        "kept": summary.get("kept", 0),
        "funnel": funnel_line(asked - failed - summary.get("skipped", 0), rejected),
    }


def _settings(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield settings as indented code, which no value can break out of."""
    for key, value in settings.items():
        yield f"    {key} = {json.dumps(value, ensure_ascii=False)}"


def _code(text: str) -> str:
    plain = " ".join(text.replace("`", "'").split())
    return f"`{plain}`"
