"""The filter over whole batches of raw lines: the same verdicts as `Filter.judge` row by row, several times as fast.

Promises that kept lines are the input's bytes and that a rejected line is the input's object with `rule`, `reason`
and `row_number` (its place in the input, from 0) put in at its end. Shares its state with the Filter that it drives.
Knows nothing of files.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import msgspec
import orjson
import xxhash

from engine.columns import BRACE_CLOSE, MARKS, Parsed
from engine.filter import DUPLICATE, RULES, SEPARATOR, Filter, text_key
from engine.filter import PREFIX_WORDS as WORDS
from engine.part import Pieces
from engine.raw_scan import EVERY, RawScanner, Scan, Suspects
from engine.rows import Verdict
from engine.rules import Draft
from engine.run_rows import OWN


class Judged(msgspec.Struct):
    """What became of a batch."""

    kept: Pieces
    """Lines."""
    rejected: Pieces
    """Pieces of lines."""
    rules: Counter[str]
    """Rejected rows by rule."""
    skipped: list[bytes] = []
    """Pieces of lines of rows whose generation was ended early for a reason that no longer holds."""
    skips: int = 0
    keeps: int = 0
    """Rows in `kept`."""


class BatchFilter:
    """Judges batches in order."""

    def __init__(self, rules: Filter, *, aborted: bool = False) -> None:
        self.filter = rules
        self._aborted = aborted
        self._special = bool(rules.optional) or rules.settings.cap_share > 0
        self._guard = rules.content.guard
        self._cap_marks: dict[str, bytes] = {}

    @cached_property
    def _scanner(self) -> RawScanner:
        return RawScanner(() if self._guard.robust else self._guard.phrases, MARKS)

    def fields(self) -> set[str]:
        """Return the fields besides instruction and output that the rules read."""
        settings = self.filter.settings
        fields = {"aborted"} if self._aborted else set()
        if self.filter.optional:
            return fields | {"input", "template", "finish_reason", "id"}
        fields |= {"input"} if "input" in settings.dedup_on else set()
        return fields | ({"template"} if settings.cap_key == "template" else set())

    def scan(self, data: bytes, lines: Sequence[bytes]) -> Scan:
        """Look at a batch before it is decoded."""
        return self._scanner.scan(data, lines)

    def judge(self, parsed: Parsed, numbers: Sequence[int], scan: Scan) -> Judged:
        """Return the verdicts on a batch, whose rows have the given numbers in the input, and remember its rows."""
        self._prepare(parsed.rows)
        settings, caps = self.filter.settings, self.filter.caps
        shortest, longest = settings.min_chars, settings.max_chars
        limit, by_prefix = settings.cap_per_template or sys.maxsize, settings.cap_key == "prefix"
        suspects = self._suspects(scan.suspects, len(parsed.rows))
        lines, keys, duplicate = parsed.lines, self.keys(parsed.rows), _DUPLICATE_MARK
        self.filter.seen.refresh(keys)
        seen = self.filter.seen.recent
        remember = seen.add
        kept, marks, rules = list[bytes](), list[bytes](), list[str]()
        rejected, skipped = list[int](), list[int]()
        duplicates, aborted, special = 0, self._aborted, self._special
        # One loop with everything in it: a call for each row and rule would cost as much as the rules do.
        for index, (row, key) in enumerate(zip(parsed.rows, keys, strict=True)):
            if aborted and row.aborted:
                verdict = self.filter.content.watch(row.output)
                if verdict is None:
                    skipped.append(index)
                    continue
                mark = put_mark(verdict.rule, verdict.reason)
                rules.append(verdict.rule)
            elif key in seen:
                mark = duplicate
                duplicates += 1
            else:
                remember(key)
                output = row.output
                if not shortest <= len(output) <= longest:
                    mark = put_mark("length", self.filter.content.length_reason(len(output)))
                    rules.append("length")
                elif index in suspects and (phrase := self._phrase(output, suspects[index])) is not None:
                    mark = put_mark("phrase", self._guard.reason(phrase))
                    rules.append("phrase")
                elif special:
                    verdict = self._judge_special(row)
                    if verdict.kept:
                        kept.append(lines[index])
                        continue
                    mark = put_mark(verdict.rule, verdict.reason)
                    rules.append(verdict.rule)
                else:
                    cap_key = " ".join(row.instruction.split(None, WORDS)[:WORDS]) if by_prefix else row.template or ""
                    count = caps[cap_key]
                    if count < limit:
                        caps[cap_key] = count + 1
                        kept.append(lines[index])
                        continue
                    mark = self._cap_mark(cap_key)
                    rules.append("cap")
            rejected.append(index)
            marks.append(mark)
        if not special:
            self.filter.kept += len(kept)
        counts = Counter(rules)
        counts["duplicate"] += duplicates
        put = _put_marks_beside_own if scan.marked else _put_marks
        skips = put(parsed, skipped, [_ABORTED_MARK] * len(skipped), numbers)
        return Judged(kept, put(parsed, rejected, marks, numbers), counts, skips, len(skipped), len(kept))

    def _prepare(self, rows: Sequence[Any]) -> None:
        """Let the optional rules prepare the rows of a batch that may come before them."""
        if self.filter.optional.prepares:
            whole = [draft_of(row) for row in rows if not (self._aborted and row.aborted)]
            self.filter.optional.prepare([draft for draft in whole if self.filter.reaches(draft)])

    def _judge_special(self, row: Any) -> Verdict:
        """Judge a row by the optional rules and the caps that need more than its own fields."""
        verdict = self.filter.optional.finish(draft_of(row)) if self.filter.optional else None
        return verdict or self.filter.take_place(self.filter.cap_key(row.instruction, self._template(row)))

    def restore(self, rows: Sequence[Any], *, kept: bool) -> None:
        """Take in rows that were judged before, but for the optional rules: `show` is for those."""
        if kept:
            for row in rows:
                self.filter.caps[self.filter.cap_key(row.instruction, self._template(row))] += 1
            self.filter.kept += len(rows)
        else:
            rows = [row for row in rows if row.rule != DUPLICATE.rule]
        for key in self.keys(rows):
            self.filter.seen.add(key)

    def show(self, rows: Sequence[Any], kept: Sequence[bool]) -> None:
        """Show the optional rules rows that were judged before, all of them in the order of the input."""
        drafts = [draft_of(row) for row, passed in zip(rows, kept, strict=True) if passed or row.rule not in RULES[:3]]
        self.filter.optional.prepare(drafts)
        for draft in drafts:
            self.filter.optional.finish(draft)

    def _template(self, row: Any) -> str:
        return (row.template or "") if self.filter.settings.cap_key == "template" else ""

    def keys(self, rows: Sequence[Any]) -> list[bytes]:
        """Return the duplicate keys of rows."""
        settings = self.filter.settings
        if settings.dedup_on != ("instruction", "output") or settings.dedup_ignore:
            return [self.filter.key(row.instruction, getattr(row, "input", "") or "", row.output) for row in rows]
        digest, separator = xxhash.xxh3_128_digest, SEPARATOR
        return [
            digest(f"{row.instruction.strip()}\x1f{row.output.strip()}".encode())
            if separator not in row.instruction
            else text_key([row.instruction.strip(), row.output.strip()])
            for row in rows
        ]

    def _suspects(self, found: Suspects | None, rows: int) -> Suspects:
        if not self._guard.phrases:
            return {}
        return {index: [EVERY] for index in range(rows)} if found is None or self._guard.robust else found

    def _phrase(self, output: str, numbers: list[int]) -> int | None:
        return self._guard.find(output) if EVERY in numbers else self._guard.confirm(output, numbers)

    def _cap_mark(self, cap_key: str) -> bytes:
        mark = self._cap_marks.get(cap_key)
        if mark is None:
            mark = self._cap_marks[cap_key] = put_mark("cap", self.filter.cap_reason(cap_key))
        return mark


def draft_of(row: Any) -> Draft:
    """Return what the optional rules read of a decoded row."""
    return Draft(
        row.instruction,
        row.output,
        row.input or "",
        row.template or "",
        row.finish_reason or "",
        "" if row.id is None else str(row.id),
    )


def put_mark(rule: str, reason: str) -> bytes:
    """Return what is put into a rejected row, up to its number."""
    return b',"rule":"%b","reason":%b,"row_number":' % (rule.encode(), orjson.dumps(reason))


_ABORTED_MARK = put_mark("aborted", "ended early for a reason that no longer holds; generate again to judge it")
_DUPLICATE_MARK = put_mark(DUPLICATE.rule, DUPLICATE.reason)


def _put_marks(parsed: Parsed, rejected: list[int], marks: list[bytes], numbers: Sequence[int]) -> list[bytes]:
    """Return the pieces of some rows' lines, by index, each with its mark and number at the end of its object."""
    lines, pieces = parsed.lines, list[bytes]()
    for index, mark in zip(rejected, marks, strict=True):
        line = lines[index]
        body = line[:-2] if line[-2] == BRACE_CLOSE else line.rstrip()[:-1]
        pieces += (body, mark, b"%d}\n" % numbers[index])
    return pieces


def _put_marks_beside_own(
    parsed: Parsed, rejected: list[int], marks: list[bytes], numbers: Sequence[int]
) -> list[bytes]:
    """Do the same for rows that may have fields called like a mark: those get another name."""
    pieces: list[bytes] = []
    for index, mark in zip(rejected, marks, strict=True):
        pieces += put_mark_beside_own(parsed.lines[index], mark, numbers[index])
    return pieces


def put_mark_beside_own(line: bytes, mark: bytes, number: int) -> tuple[bytes, bytes, bytes]:
    """Return the pieces of one such line."""
    line = line.rstrip()
    fields = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    for key in MARKS:
        if key in fields:
            value = fields.pop(key)
            fields[_free_name(key, fields)] = value
            line = msgspec.json.encode(fields)
    return line[:-1], mark, b"%d}\n" % number


def _free_name(key: str, fields: Mapping[str, Any]) -> str:
    while key in fields or key in MARKS:
        key += OWN
    return key
