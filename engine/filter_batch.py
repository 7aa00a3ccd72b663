"""The filter over whole batches of raw lines: the same verdicts as `Filter.judge` row by row, several times as fast.

Promises that kept lines are the input's bytes and that a rejected line is the input's object with `rule`, `reason`
and `row_number` (its place in the input, from 0) put in at its end. Shares its state with the Filter that it drives.
Knows nothing of files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import orjson
import xxhash
from msgspec import UNSET

from engine.columns import BRACE_CLOSE, MARKS, Parsed
from engine.filter import DUPLICATE, PREFIX_WORDS, SEPARATOR, Filter, text_key
from engine.phrase_scan import EVERY, PhraseScanner, Suspects

HEAD_CHARS = 48
"""A template is looked up by so many first characters of the instruction where its four words end within them."""
HEADS_KEPT = 1 << 15
OWN = "_of_input"
"""Put behind the name of a field of the input that is called like a mark."""


class Judged(msgspec.Struct):
    """What became of a batch."""

    kept: list[bytes]
    rejected: list[bytes]
    rules: Counter[str]


class BatchFilter:
    """Judges batches in order."""

    def __init__(self, rules: Filter) -> None:
        self.filter = rules
        self._guard = rules.content.guard
        robust = rules.settings.phrase_match == "robust"
        self._scanner = None if robust or not self._guard.phrases else PhraseScanner(self._guard.phrases)
        self._cap_keys = _CapKeys(rules)
        self._cap_marks: dict[str, bytes] = {}

    def fields(self) -> set[str]:
        """Return the fields besides instruction and output that the rules read."""
        settings = self.filter.settings
        fields = {"input"} if "input" in settings.dedup_on else set()
        return fields | ({"template"} if settings.cap_key == "template" else set())

    def judge(self, parsed: Parsed, numbers: Sequence[int]) -> Judged:
        """Return the verdicts on a batch, whose rows have the given numbers in the input, and remember its rows."""
        rows = parsed.rows
        keys = self.keys(rows)
        seen = self.filter.seen
        known = seen.intersection(keys)
        suspects = self.suspects(parsed)
        judged = Judged([], [], Counter())
        kept, rejected = judged.kept, judged.rejected
        for index, (line, row, key) in enumerate(zip(parsed.lines, rows, keys, strict=True)):
            if key in known:
                rule, why = "duplicate", _DUPLICATE_MARK
            else:
                known.add(key)
                rule, why = self._judge_fresh(row, suspects, index)
                if not rule:
                    kept.append(line)
                    continue
            judged.rules[rule] += 1
            splice = (
                _rewrite if row.rule is not UNSET or row.reason is not UNSET or row.row_number is not UNSET else _splice
            )
            rejected.append(splice(line, why, numbers[index]))
        seen.update(keys)
        return judged

    def _judge_fresh(self, row: Any, suspects: Suspects | None, index: int) -> tuple[str, bytes]:
        output = row.output
        settings = self.filter.settings
        if not settings.min_chars <= len(output) <= settings.max_chars:
            return "length", _mark("length", self.filter.content.length_reason(len(output)))
        if suspects is None or index in suspects:
            number = self._phrase(output, [EVERY] if suspects is None else suspects[index])
            if number is not None:
                return "phrase", _mark("phrase", self._guard.reason(number))
        cap_key = self._cap_keys.of(row)
        caps = self.filter.caps
        count = caps.get(cap_key, 0)
        if 0 < settings.cap_per_template <= count:
            return "cap", self._cap_mark(cap_key)
        caps[cap_key] = count + 1
        return _KEPT

    def restore(self, rows: Sequence[Any], *, kept: bool) -> None:
        """Take in rows that were judged before, so that a resumed run goes on as if it had not stopped."""
        if kept:
            self.filter.caps.update(self._cap_keys.of(row) for row in rows)
        else:
            rows = [row for row in rows if row.rule != DUPLICATE.rule]
        self.filter.seen.update(self.keys(rows))

    def keys(self, rows: Sequence[Any]) -> list[int]:
        """Return the duplicate keys of rows."""
        if self.filter.settings.dedup_on != ("instruction", "output"):
            return [self.filter.key(row.instruction, getattr(row, "input", "") or "", row.output) for row in rows]
        digest, separator = xxhash.xxh3_128_intdigest, SEPARATOR
        return [
            digest(f"{row.instruction.strip()}\x1f{row.output.strip()}".encode())
            if separator not in row.instruction
            else text_key([row.instruction.strip(), row.output.strip()])
            for row in rows
        ]

    def suspects(self, parsed: Parsed) -> Suspects | None:
        """Return the rows that may hold a phrase; None for all."""
        if self._scanner is None:
            return None if self._guard.phrases else {}
        return self._scanner.suspects(parsed.data, parsed.lines)

    def _phrase(self, output: str, numbers: list[int]) -> int | None:
        return self._guard.find(output) if EVERY in numbers else self._guard.confirm(output, numbers)

    def _cap_mark(self, cap_key: str) -> bytes:
        mark = self._cap_marks.get(cap_key)
        if mark is None:
            mark = self._cap_marks[cap_key] = _mark("cap", self.filter.cap_reason(cap_key))
        return mark


_KEPT = ("", b"")


class _CapKeys:
    """What the cap counts a row under, remembered by the head of the instruction."""

    def __init__(self, rules: Filter) -> None:
        self.of: Callable[[Any], str] = self._template if rules.settings.cap_key == "template" else self._prefix
        self._heads: dict[str, str] = {}

    def _template(self, row: Any) -> str:
        return row.template or ""

    def _prefix(self, row: Any) -> str:
        head = row.instruction[:HEAD_CHARS]
        known = self._heads.get(head)
        if known is not None:
            return known
        words = row.instruction.split(None, PREFIX_WORDS)
        cap_key = " ".join(words[:PREFIX_WORDS])
        if len(head.split(None, PREFIX_WORDS)) > PREFIX_WORDS or len(head) < HEAD_CHARS:
            if len(self._heads) >= HEADS_KEPT:
                self._heads.clear()
            self._heads[head] = cap_key
        return cap_key


def _mark(rule: str, reason: str) -> bytes:
    return b',"rule":"%b","reason":%b,"row_number":' % (rule.encode(), orjson.dumps(reason))


_DUPLICATE_MARK = _mark(DUPLICATE.rule, DUPLICATE.reason)


def _splice(line: bytes, mark: bytes, number: int) -> bytes:
    return b"%b%b%d}\n" % (line[:-2] if line[-2] == BRACE_CLOSE else line.rstrip()[:-1], mark, number)


def _rewrite(line: bytes, mark: bytes, number: int) -> bytes:
    """Put marks into a row that has such keys of its own: those get another name, and every value stays as it is."""
    fields = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    for key in MARKS:
        if key in fields:
            value = fields.pop(key)
            fields[_free_name(key, fields)] = value
    return _splice(msgspec.json.encode(fields) + b"\n", mark, number)


def _free_name(key: str, fields: Mapping[str, Any]) -> str:
    while key in fields or key in MARKS:
        key += OWN
    return key
