"""`potstill explain`: why a row of a run was dropped, what it duplicated, and what each rule cost each template.

Reads a run of `generate` or of `filter`; what a duplicate duplicated is found again by its key, since a run does not
store it. Promises that a row that is found is explained by what is on disk, not by judging it again.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from engine import config as configuration
from engine.command import path_of
from engine.errors import DataError, MissingError
from engine.filter import DUPLICATE, QUOTA, Filter
from engine.named_files import files_of
from engine.progress import note
from engine.rows import OUTCOMES, Outcome
from engine.shards import MANIFEST, Manifest, published_rows, read_manifest

TEMPLATES_SHOWN = 20


class Stored(msgspec.Struct):
    """What is read of a row on disk."""

    instruction: str = ""
    output: str = ""
    input: str | None = ""
    template: str | None = ""
    id: Any = ""
    index: int | None = None
    row_number: int | None = None
    rule: Any = ""
    reason: Any = ""

    @property
    def number(self) -> int | None:
        """Place in the order of judgement."""
        return self.index if self.index is not None else self.row_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `potstill explain`."""
    parser.add_argument("run", type=path_of, metavar="RUN", help="run folder of generate or filter")
    parser.add_argument(
        "row", nargs="?", default="", metavar="ROW", help="a row's id or number; default: the yield table"
    )


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Explain one row, or the yield of a run."""
    manifest = read_manifest(args.run)
    return explain_row(args.run, manifest, args.row) if args.row else explain_yield(args.run, manifest)


def explain_row(folder: Path, manifest: Manifest, wanted: str) -> dict[str, Any]:
    """Say what became of a row and, for a duplicate, which row it duplicated.

    Raises: MissingError where the run holds no such row.
    """
    settings = filter_settings(manifest)
    names = _columns(manifest)
    for kind, line, row in _rows(folder, manifest, names):
        if wanted not in (str(row.id or ""), str(row.number)):
            continue
        found: dict[str, Any] = {"outcome": kind, "id": row.id, "number": row.number}
        if kind != "kept":
            found.update(rule=row.rule, reason=row.reason)
        if row.rule == DUPLICATE.rule and kind == "rejected":
            found["first"] = _first(folder, manifest, names, Filter(settings), row)
        found["row"] = msgspec.json.decode(line)
        return found
    raise MissingError(f"{folder} has no row {wanted}; give an id, an index or a row_number from its shards")


def explain_yield(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Count what each rule cost each template, and show the templates that lost the most."""
    rules = Filter(filter_settings(manifest))
    table: dict[str, Counter[str]] = {}
    total: Counter[str] = Counter()
    for kind, _, row in _rows(folder, manifest, _columns(manifest)):
        what = kind if kind in ("kept", "failed") else str(row.rule or kind)
        total[what] += 1
        if kind != "failed":
            table.setdefault(rules.cap_key(row.instruction, row.template or ""), Counter())[what] += 1
    _show(total, table)
    return {"run": str(folder), "rows": total.total(), "by_rule": total, "templates": table}


def filter_settings(manifest: Manifest) -> configuration.Filter:
    """Return the filter settings that a run was begun with.

    Raises: DataError where this version does not know them.
    """
    said = manifest.fingerprint
    chosen = {
        key.removeprefix("filter."): said[key] for key in said.keys() - files_of(said) if key.startswith("filter.")
    }
    try:
        return msgspec.convert(chosen, configuration.Filter)
    except msgspec.ValidationError as error:
        raise DataError(
            f"{MANIFEST}: this version of potstill does not know the run's filter settings ({error}); use the version "
            "that wrote it"
        ) from None


def _first(
    folder: Path, manifest: Manifest, names: dict[str, str], rules: Filter, row: Stored
) -> dict[str, Any] | None:
    """Return the row that another duplicates: the first of the same key, kept or rejected by a later rule."""
    key = rules.key(row.instruction, row.input or "", row.output)
    for kind, _, other in _rows(folder, manifest, names):
        judged = kind in ("kept", "rejected") and other.rule not in (DUPLICATE.rule, QUOTA)
        if judged and rules.key(other.instruction, other.input or "", other.output) == key:
            found = {"outcome": kind, "id": other.id, "number": other.number, "output": other.output}
            return found if kind == "kept" else {**found, "rule": other.rule, "reason": other.reason}
    return None


def _columns(manifest: Manifest) -> dict[str, str]:
    """Return what the rows call the fields, where it is not the same name."""
    said = {key.removeprefix("columns."): value for key, value in manifest.fingerprint.items() if "columns." in key}
    return {value: name for name, value in said.items() if name != value and value}


def _rows(folder: Path, manifest: Manifest, names: dict[str, str]) -> Iterator[tuple[Outcome, bytes, Stored]]:
    kinds = [kind for kind in OUTCOMES if manifest.of(kind)]
    for kind in kinds:
        for shard in manifest.of(kind):
            for line, row in published_rows(folder, shard, partial(_stored, names=names)):
                if kind == "kept":
                    row.rule = row.reason = ""
                yield kind, line, row


def _stored(line: bytes, *, names: dict[str, str]) -> Stored:
    if not names:
        return msgspec.json.decode(line, type=Stored)
    fields = msgspec.json.decode(line, type=dict[str, Any])
    return msgspec.convert({names.get(key, key): value for key, value in fields.items()}, Stored)


def _show(total: Counter[str], table: dict[str, Counter[str]]) -> None:
    rules = [rule for rule, _ in total.most_common() if rule != "kept"]
    note("  ".join(["template".ljust(40), "rows".rjust(8), "kept".rjust(8), *(rule.rjust(10) for rule in rules)]))
    most_lost = sorted(table, key=lambda name: table[name]["kept"] - table[name].total())
    for name in ["all", *most_lost[:TEMPLATES_SHOWN]]:
        counts = total if name == "all" else table[name]
        cells = [
            str(counts.total()).rjust(8),
            str(counts["kept"]).rjust(8),
            *(str(counts[rule]).rjust(10) for rule in rules),
        ]
        note("  ".join([name[:40].ljust(40), *cells]))
    if len(most_lost) > TEMPLATES_SHOWN:
        note(f"({len(most_lost) - TEMPLATES_SHOWN} more templates)")
