"""What a run folder tells: counts, examples, curves and scores, read once and kept small.

Promises to read every published row once, in constant memory, and to take whatever stages a run has: one that was
only generated or filtered has no curves and no scores. Which rows are shown is decided by a hash of their id. Knows
nothing of HTML.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from engine.decode import UNREADABLE
from engine.errors import DataError
from engine.filter import RULES
from engine.funnel import STAGES
from engine.rows import OUTCOMES, user_turn
from engine.shards import Manifest, published_rows, read_manifest
from evals.answers import Answer, read_answers
from evals.contestants import DONE, NAMES
from evals.evaluate import FOLDER, Summary, read_summary

KEPT_SHOWN = 6
REJECTED_SHOWN = 3
"""Rows that are shown of the kept, and of those that each rule rejected."""
PER_CELL = 5
"""Answers that are shown of each cell of right and wrong: twenty in all."""
TEMPLATES_SHOWN = 25
PHRASES_SHOWN = 10


class Shown(msgspec.Struct, frozen=True):
    """A row as it is shown."""

    instruction: str
    output: str = ""
    input: str = ""
    template: str = ""
    id: str = ""
    rule: str = ""
    reason: str = ""
    aborted: bool = False
    output_tokens: int = 0

    @property
    def question(self) -> str:
        return user_turn(self.instruction, self.input)


class Step(msgspec.Struct, frozen=True):
    """One stage of the funnel: what a rule cost and what it left."""

    name: str
    lost: int
    left: int


class TemplateCounts(msgspec.Struct, frozen=True):
    """What became of one template's prompts."""

    name: str
    asked: int
    kept: int
    lost: dict[str, int]


class Sides(msgspec.Struct, frozen=True):
    """One item with the answers of all three."""

    teacher: Answer
    student: Answer
    untrained: Answer


class Cell(msgspec.Struct, frozen=True):
    """Items on which teacher and student came out in one of the four ways."""

    title: str
    count: int
    shown: list[Sides]


class Curve(msgspec.Struct, frozen=True):
    """Lines of a metrics file that could be read, and how many could not."""

    points: list[dict[str, Any]]
    unreadable: int


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a report shows."""

    run: str
    manifest: Manifest
    outcomes: dict[str, int]
    skipped: dict[str, int]
    funnel: list[Step]
    rules: list[str]
    templates: list[TemplateCounts]
    templates_left_out: int
    phrases: list[tuple[str, int]]
    """What the phrase guard gave as its reason, the most frequent first."""
    kept: list[Shown]
    rejected: dict[str, list[Shown]]
    throughput: Curve
    training: Curve
    trained: dict[str, Any]
    summary: Summary | None
    cells: list[Cell]


def read_story(run: Path) -> Story:
    """Read a run folder.

    Raises: MissingError where it is no run, DataError where a file in it is not what was written.
    """
    manifest = read_manifest(run)
    rows = _Rows()
    for outcome, row in _rows(run, manifest):
        rows.add(outcome, row)
    summary = read_summary(run)
    return Story(
        run=run.resolve().name,
        manifest=manifest,
        outcomes={outcome: rows.outcomes[outcome] for outcome in OUTCOMES},
        skipped=dict(rows.skipped),
        funnel=_funnel(rows),
        rules=[rule for rule in _rule_order(rows.lost) if rows.lost[rule]],
        templates=rows.table()[:TEMPLATES_SHOWN],
        templates_left_out=max(0, len(rows.templates) - TEMPLATES_SHOWN),
        phrases=rows.phrases.most_common(PHRASES_SHOWN),
        kept=rows.chosen("kept"),
        rejected={rule: rows.chosen(rule) for rule in _rule_order(rows.lost) if rows.chosen(rule)},
        throughput=_curve(run / "metrics.jsonl"),
        training=_curve(run / "train/metrics.jsonl"),
        trained=_trained(run / DONE),
        summary=summary,
        cells=_cells(run) if summary else [],
    )


class _Rows:
    """Counts rows and keeps a fair few of each kind."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.phrases: Counter[str] = Counter()
        self.templates: dict[str, Counter[str]] = {}
        self._chosen: dict[str, list[tuple[int, int, Shown]]] = {}

    def add(self, outcome: str, row: Shown) -> None:
        """Take in one row."""
        self.outcomes[outcome] += 1
        counts = self.templates.setdefault(row.template, Counter())
        counts["asked"] += 1
        counts[row.rule or outcome] += 1
        if outcome == "skipped":
            self.skipped[row.rule] += 1
        if outcome in ("rejected", "skipped"):
            self.lost[row.rule] += 1
        if row.rule == "phrase":
            self.phrases[row.reason] += 1
        if outcome in ("kept", "rejected"):
            self._choose(row.rule or "kept", row)

    def chosen(self, kind: str) -> list[Shown]:
        """Return the rows that are shown of a kind, `kept` or a rule."""
        return [row for _, _, row in sorted(self._chosen.get(kind, ()), key=lambda entry: -entry[0])]

    def table(self) -> list[TemplateCounts]:
        """Return the counts by template, the most asked first."""
        found = [
            TemplateCounts(name, counts["asked"], counts["kept"], {rule: counts[rule] for rule in self.lost})
            for name, counts in self.templates.items()
        ]
        return sorted(found, key=lambda counts: (-counts.asked, counts.name))

    def _choose(self, kind: str, row: Shown) -> None:
        heap = self._chosen.setdefault(kind, [])
        entry = (-xxhash.xxh3_64_intdigest(row.id.encode()), self.outcomes.total(), row)
        if len(heap) < (KEPT_SHOWN if kind == "kept" else REJECTED_SHOWN):
            heapq.heappush(heap, entry)
        elif entry > heap[0]:
            heapq.heapreplace(heap, entry)


def _rows(run: Path, manifest: Manifest) -> Iterator[tuple[str, Shown]]:
    if "sources" in manifest.fingerprint:
        yield from _filtered_rows(run, manifest)
        return
    decoder = msgspec.json.Decoder(Shown)
    for shard in manifest.shards:
        for _, row in published_rows(run, shard, decoder.decode):
            yield shard.kind, row


def _filtered_rows(run: Path, manifest: Manifest) -> Iterator[tuple[str, Shown]]:
    """Yield the rows of a folder that `potstill filter` wrote: somebody's own fields, and lines that are no rows."""
    columns = {name: manifest.fingerprint[f"columns.{name}"] for name in ("instruction", "input", "output", "template")}
    decoder = msgspec.json.Decoder(dict[str, Any])
    for shard in manifest.shards:
        for number, (_, fields) in enumerate(published_rows(run, shard, decoder.decode)):
            own = {name: text for name, field in columns.items() if isinstance(text := fields.get(field), str)}
            marks = {name: fields[name] for name in ("rule", "reason") if isinstance(fields.get(name), str)}
            question = fields.get("text") if shard.kind == "failed" else msgspec.json.encode(fields).decode()
            yield shard.kind, Shown(**({"instruction": str(question), "id": f"{shard.file}:{number}"} | own | marks))


def _rule_order(lost: Counter[str]) -> list[str]:
    """Return all rules in the order in which they judge; those beyond the recipe's four stand before the cap."""
    known = [rule for rule in RULES if rule != "cap"]
    return [*known, *sorted(lost.keys() - set(RULES)), "cap"]


def _funnel(rows: _Rows) -> list[Step]:
    left = rows.outcomes.total() - rows.outcomes["failed"]
    steps = [Step("raw", 0, left)]
    for rule in _rule_order(rows.lost):
        left -= rows.lost[rule]
        steps.append(Step(STAGES.get(rule, rule), rows.lost[rule], left))
    return steps


def _curve(path: Path) -> Curve:
    points, unreadable = [], 0
    lines = path.read_bytes().splitlines() if path.is_file() else []
    for line in lines:
        try:
            points.append(msgspec.json.decode(line, type=dict[str, Any]))
        except UNREADABLE:
            unreadable += 1
    return Curve(points, unreadable)


def _trained(path: Path) -> dict[str, Any]:
    """Return the plain figures that training left beside the paths of its models."""
    if not path.is_file():
        return {}
    try:
        found = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except UNREADABLE as error:
        raise DataError(f"{path}: cannot be read ({error}); run potstill train again") from None
    return {key: value for key, value in found.items() if value and isinstance(value, str | int | float)}


def _cells(run: Path) -> list[Cell]:
    """Sort the items into the four cells of right and wrong; where scores are shares, half counts as right."""
    trio = [read_answers(run / FOLDER / f"answers-{name}.jsonl") for name in NAMES]
    if len({len(answers) for answers in trio}) > 1:
        raise DataError(f"{run / FOLDER}: the three models' answers are not of the same items; run potstill eval again")
    cells: dict[tuple[bool, bool], list[Sides]] = {}
    for teacher, student, untrained in zip(*trio, strict=True):
        right = (teacher.score >= 0.5, student.score >= 0.5)
        cells.setdefault(right, []).append(Sides(teacher, student, untrained))
    titles = {
        (True, False): "Teacher right, student wrong",
        (False, True): "Student right, teacher wrong",
        (True, True): "Both right",
        (False, False): "Both wrong",
    }
    return [Cell(title, len(cells.get(right, ())), _few(cells.get(right, ()))) for right, title in titles.items()]


def _few(sides: Sequence[Sides]) -> list[Sides]:
    return sorted(sides, key=lambda side: side.teacher.id)[:PER_CELL]
