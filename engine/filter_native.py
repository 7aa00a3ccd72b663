"""The filter over whole chunks in compiled code: the same verdicts and bytes as `filter_batch`, many times as fast.

Two steps. `scan` works out what the rules need of each row, from the chunk alone, so several may run at once; a line
that the compiled code does not read (engine/native/lines.py) is decoded in Python here. `judge` gives the verdicts, in
the order of the input, with what earlier rows left in the tables. Knows nothing of files.
"""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from typing import TYPE_CHECKING

import msgspec
import xxhash

from engine.columns import MARKS, Columns, Parser
from engine.filter import RULES, Filter
from engine.filter_batch import Judged, put_mark, put_mark_beside_own
from engine.filter_chunk import ROW_BYTES, Chunk, Marks, Names
from engine.key_table import KeyTable
from engine.native import commit, kernel, lines
from engine.native.hash128 import SECRET
from engine.native.phrases import NONE, SUSPECT
from engine.phrase_table import PhraseTable
from engine.room import WORD, Room

if TYPE_CHECKING:
    from engine.native.load import Run

_FIELDS = ("instruction", "output", "input", "template")
_QUOTED_MARKS = tuple(f'"{mark}"'.encode() for mark in MARKS)
_TOPIC = "topic"
"""Stands for the name of any cap."""
_NUMBER_BYTES = 32
"""Room for a row's number and the end of its line."""
_MARKED_BY = {
    commit.LENGTH: lines.CHARS,
    commit.BANNED: lines.PHRASE,
    commit.FULL: lines.CAP,
}
"""Word of a row that says which mark it gets, by verdict."""


class NativeFilter:
    """Scans chunks and judges them in order. Its tables are its own; the Filter lends rules and sentences."""

    def __init__(self, rules: Filter, columns: Columns, run: Run) -> None:
        self.filter = rules
        self._run = run
        settings = rules.settings
        self._guard = rules.content.guard
        self._by_template = settings.cap_key == "template"
        fields = {"input", "template"} & {*settings.dedup_on, *(("template",) if self._by_template else ())}
        self._parser = Parser(columns, fields)
        self._phrases = PhraseTable(self._guard.phrases) if self._guard.phrases else None
        used = ("instruction", "output", *fields)
        self._names = Names([getattr(columns, name) if name in used else None for name in _FIELDS])
        self._mark_names = Names(MARKS)
        self._dedup = array("q", [_FIELDS.index(name) for name in settings.dedup_on])
        self._secret = Room.of(SECRET)
        self.seen = KeyTable(run, commit.KEY_WIDTH)
        self.caps = KeyTable(run, commit.COUNT_WIDTH)
        before, behind = put_mark("cap", rules.cap_reason(_TOPIC)).split(_TOPIC.encode())
        self._marks = Marks((before, behind))
        self._kept, self._rejected = Room(0), Room(0)
        self._again = Chunk()

    def scan(self, chunk: Chunk, name: str, data: bytes) -> Chunk:
        """Fill a chunk and work out what the rules need of its rows."""
        chunk.fill(name, data)
        given = self._scan_parameters(chunk)
        while given[lines.DATA] < given[lines.END]:
            if chunk.count == chunk.most_rows:
                chunk.more_rows()
            given[lines.ROWS] = chunk.rows.address + ROW_BYTES * chunk.count
            given[lines.ROOM] = chunk.most_rows - chunk.count
            chunk.count += self._run(kernel.SCAN, given.buffer_info()[0])
        for place in self._find(chunk, lines.STATE, lines.UNREAD):
            self._read(chunk, place)
        for place in self._find(chunk, lines.PHRASE, SUSPECT):
            found = self._guard.find(self._string(chunk, place, lines.OUTPUT, lines.OUTPUT_END))
            chunk.words[lines.ROW_WORDS * place + lines.PHRASE] = NONE if found is None else found
        return chunk

    def _find(self, chunk: Chunk, word: int, value: int) -> list[int]:
        """Return the places of the rows of which a word has a value."""
        given = array("q", (chunk.rows.address, chunk.count, word, value, chunk.found.address))
        count = self._run(kernel.FIND, given.buffer_info()[0])
        return chunk.found.words()[:count].tolist() if count else []

    def _scan_parameters(self, chunk: Chunk) -> array[int]:
        by = lines.BY_TEMPLATE if self._by_template else lines.BY_PREFIX
        given = array("q", bytes(WORD * (lines.MARKS + 1)))
        given[lines.DATA], given[lines.END] = chunk.data.address, chunk.data.address + chunk.size
        given[lines.SCRATCH], given[lines.FIELDS] = chunk.scratch.address, chunk.fields.address
        given[lines.NAMES], given[lines.MARKS] = self._names.address, self._mark_names.address
        given[lines.DEDUP], given[lines.DEDUP_FIELDS] = self._dedup.buffer_info()
        given[lines.CAP_BY] = by if self.filter.settings.cap_per_template else lines.BY_NOTHING
        given[lines.TABLE] = self._phrases.address if self._phrases else 0
        given[lines.LEAST], given[lines.MOST] = self.filter.settings.min_chars, self.filter.settings.max_chars
        given[lines.PHRASE_CHARS], given[lines.SECRET] = self._guard.limit or 0, self._secret.address
        return given

    def _read(self, chunk: Chunk, place: int) -> None:
        """Read a line that the compiled code left, and note the same of it."""
        first = lines.ROW_WORDS * place
        row, line = chunk.words[first : first + lines.ROW_WORDS], chunk.line(place)
        row[lines.PHRASE], row[lines.TOPIC] = NONE, 0
        if line.isspace():
            row[lines.STATE] = lines.BLANK
            chunk.blank += 1
            return
        read = self._parser.read_line(line)
        if isinstance(read, str):
            row[lines.STATE] = lines.BAD
            chunk.bad.append((place, read))
            return
        input_text, template = getattr(read, "input", "") or "", getattr(read, "template", "") or ""
        topic = self.filter.cap_key(read.instruction, template)
        key = self.filter.key(read.instruction, input_text, read.output)
        row[lines.STATE] = lines.MARKED if any(mark in line for mark in _QUOTED_MARKS) else lines.READ
        row[lines.BRACE] = row[lines.LINE] + len(line.rstrip()) - 1
        row[lines.CHARS] = len(read.output)
        row[lines.KEY], row[lines.KEY_LOW] = _halves(key)
        row[lines.CAP], row[lines.CAP_LOW] = _halves(xxhash.xxh3_128_digest(topic.encode()))
        found = self._guard.find(read.output) if self._guard.phrases else None
        row[lines.PHRASE] = NONE if found is None else found
        chunk.topics[place] = topic

    def _string(self, chunk: Chunk, place: int, start: int, end: int) -> str:
        """Return what a raw JSON string of a row says."""
        row = lines.ROW_WORDS * place
        raw = chunk.between(chunk.words[row + start], chunk.words[row + end])
        text: str = msgspec.json.decode(b'"' + raw + b'"')
        return text

    def judge(self, chunk: Chunk, first: int) -> Judged:
        """Return the verdicts on a scanned chunk, whose first line that is not blank has this number in the input."""
        settings = self.filter.settings
        counts = self._commit(chunk, settings.min_chars, settings.max_chars, settings.cap_per_template)
        self._put_marks(chunk)
        rules = Counter(dict(zip(RULES, counts[commit.DUPLICATE : commit.BESIDE_OWN], strict=True)))
        judged = self._gather(chunk, first, rules)
        if counts[commit.BESIDE_OWN]:
            judged.rejected = self._beside_own(chunk, first)
        judged.keeps = counts[commit.KEPT]
        return judged

    def restore(self, data: bytes, *, kept: bool) -> None:
        """Take in rows that were judged before: kept ones with their caps, or rejected ones that are no duplicates."""
        chunk = self.scan(self._again, "", data)
        chunk.words[lines.PHRASE : lines.ROW_WORDS * chunk.count : lines.ROW_WORDS] = array("q", [NONE]) * chunk.count
        self._commit(chunk, 0, sys.maxsize, self.filter.settings.cap_per_template if kept else 0)

    def outputs(self, chunk: Chunk, most: int) -> list[str]:
        """Return the outputs of the first rows that were kept."""
        kept = self._find(chunk, lines.VERDICT, commit.KEPT)[:most]
        return [self._parser.read_line(chunk.line(place)).output for place in kept]

    def _commit(self, chunk: Chunk, shortest: int, longest: int, limit: int) -> list[int]:
        """Give the rows their verdicts and return how many got which, and how many have a mark of their own."""
        counts = array("q", bytes(WORD * (commit.BESIDE_OWN + 1)))
        given = array("q", bytes(WORD * (commit.COUNTS + 1)))
        given[commit.ROWS], given[commit.COUNT] = chunk.rows.address, chunk.count
        given[commit.SEEN], given[commit.CAPS] = self.seen.address, self.caps.address
        given[commit.SHORTEST], given[commit.LONGEST], given[commit.LIMIT] = shortest, longest, limit
        given[commit.COUNTS] = counts.buffer_info()[0]
        while (done := self._run(kernel.JUDGE, given.buffer_info()[0])) < chunk.count:
            if not self.seen.grow(given[commit.FULL_PART]):
                self.caps.grow(given[commit.FULL_PART])
            given[commit.FIRST] = done
        return counts.tolist()

    def _put_marks(self, chunk: Chunk) -> None:
        """Give the rejected rows that have none yet their marks."""
        self._marks.tidy()
        words, known = chunk.words, self._marks.numbers
        for place in self._find(chunk, lines.MARK, commit.UNMARKED):
            row = lines.ROW_WORDS * place
            verdict = words[row + lines.VERDICT]
            value = words[row + _MARKED_BY[verdict]]
            what = (verdict, value, words[row + lines.CAP_LOW] if verdict == commit.FULL else 0)
            number = known.get(what)
            if number is None:
                number = self._marks.put(what, self._mark(chunk, place, verdict, value))
            words[row + lines.MARK] = number

    def _mark(self, chunk: Chunk, place: int, verdict: int, value: int) -> bytes:
        if verdict == commit.LENGTH:
            return put_mark("length", self.filter.content.length_reason(value))
        if verdict == commit.BANNED:
            return put_mark("phrase", self._guard.reason(value))
        return put_mark("cap", self.filter.cap_reason(self._topic(chunk, place)))

    def _topic(self, chunk: Chunk, place: int) -> str:
        """Return what the cap counts a row under."""
        if place in chunk.topics:
            return chunk.topics[place]
        there = chunk.words[lines.ROW_WORDS * place + lines.TOPIC] != 0
        text = self._string(chunk, place, lines.TOPIC, lines.TOPIC_END) if there else ""
        return self.filter.cap_key(text, text)

    def _gather(self, chunk: Chunk, first: int, rules: Counter[str]) -> Judged:
        """Return the lines of kept and rejected rows, in memory that the next call writes over."""
        self._kept = self._kept.at_least(chunk.size)
        # A row's line, the name of its cap, which is a part of the line, two marks around that at most, its number.
        most = 2 * chunk.size + rules.total() * (2 * self._marks.longest + _NUMBER_BYTES)
        self._rejected = self._rejected.at_least(most)
        given = array("q", bytes(WORD * (commit.G_REJECTED_END + 1)))
        given[commit.G_ROWS], given[commit.G_COUNT] = chunk.rows.address, chunk.count
        given[commit.G_KEPT], given[commit.G_REJECTED] = self._kept.address, self._rejected.address
        given[commit.G_MARKS], given[commit.G_NUMBER] = self._marks.address, first
        given[commit.G_WORDS] = 0 if self._by_template else lines.PREFIX_WORDS
        self._run(kernel.GATHER, given.buffer_info()[0])
        kept = self._kept.until(given[commit.G_KEPT_END])
        rejected = self._rejected.until(given[commit.G_REJECTED_END])
        return Judged([kept] if kept else [], [rejected] if rejected else [], rules)

    def _beside_own(self, chunk: Chunk, first: int) -> list[bytes]:
        """Return the pieces of rejected rows of which some have fields that are called like a mark."""
        numbers, pieces = chunk.numbers(first), list[bytes]()
        for place, verdict in enumerate(chunk.words[lines.VERDICT : lines.ROW_WORDS * chunk.count : lines.ROW_WORDS]):
            if verdict <= commit.KEPT:
                continue
            number = chunk.words[lines.ROW_WORDS * place + lines.MARK]
            mark = self._marks.text(number)
            if number == commit.BEFORE_TOPIC:
                mark += self._topic(chunk, place).encode() + self._marks.text(commit.BEHIND_TOPIC)
            pieces += put_mark_beside_own(chunk.line(place), mark, numbers[place])
        return pieces


def _halves(key: bytes) -> tuple[int, int]:
    return int.from_bytes(key[:8], signed=True), int.from_bytes(key[8:], signed=True)
