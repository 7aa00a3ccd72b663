"""A first look at a whole batch of raw JSON lines, so that few rows need a second one.

One pass of a pattern engine over the undecoded bytes (hyperscan where it is installed, else Aho-Corasick) says which
lines might hold which phrase, and whether any object has keys of the kind that the filter puts into rejected rows.
Promises to miss no line whose decoded output holds a phrase in the sense of `substring`: an escape that may spell
anything, and the two letters whose lower case is ASCII, make their line a suspect. Knows nothing of verdicts.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

EVERY = -1
"""Stands for every phrase: the line must be looked at with all of them."""
ALWAYS = (b"\\u", "\u212a".encode(), "\u0130".encode())
"""An escape by number; the Kelvin sign and the dotted capital I, whose lower case begins with an ASCII letter."""
ESCAPED = {'"': b'\\"', "\\": b"\\\\", "\b": b"\\b", "\f": b"\\f", "\n": b"\\n", "\r": b"\\r", "\t": b"\\t"}
"""How JSON must write a character, if not by number."""

MARKED = -2
"""Stands for a key that the filter uses itself."""
Suspects = dict[int, list[int]]


class Scan(NamedTuple):
    """What a batch looks like before it is decoded."""

    suspects: Suspects | None
    """Row -> phrases that it may hold; None where every row must be looked at."""
    marked: bool
    """Some object may have a key that the filter puts into rejected rows."""


class Engine(Protocol):
    """Finds (phrase number, end offset) in raw bytes, or None where there are more than `most` hits."""

    def find(self, data: bytes, most: int) -> list[tuple[int, int]] | None: ...


class RawScanner:
    """Looks at batches."""

    def __init__(self, phrases: Sequence[bytes], marks: Sequence[str]) -> None:
        texts = [phrase.decode("utf-8", "surrogatepass") for phrase in phrases]
        self._engine = make_engine(texts, [f'"{mark}"'.encode() for mark in marks])

    def scan(self, data: bytes, lines: Sequence[bytes]) -> Scan:
        """Return what stands out in a batch."""
        hits = self._engine.find(data, 2 * len(lines) + 16)
        if not hits:
            return _EVERYTHING if hits is None else _NOTHING
        ends = list(accumulate(map(len, lines)))
        suspects: Suspects = {}
        found = {number for number, _ in hits}
        for number, end in hits:
            if number >= EVERY:
                suspects.setdefault(bisect_right(ends, end - 1), []).append(number)
        return Scan(suspects, MARKED in found)


_NOTHING, _EVERYTHING = Scan({}, False), Scan(None, True)


def make_engine(phrases: Sequence[str], marks: Sequence[bytes]) -> Engine:
    """Return the fastest engine that is installed and takes these phrases."""
    try:
        return HyperscanEngine(phrases, marks)
    except (ImportError, _TooLargeError):
        return AutomatonEngine(phrases, marks)


class _TooLargeError(Exception):
    """Hyperscan does not take a pattern (it is very long, for example)."""


class HyperscanEngine:
    """One block-mode database of all phrases. Not for two threads at once: they would share its scratch space."""

    def __init__(self, phrases: Sequence[str], marks: Sequence[bytes]) -> None:
        import hyperscan

        patterns = [(_hex(always), EVERY) for always in ALWAYS] if phrases else []
        patterns += [(_hex(mark), MARKED) for mark in marks]
        patterns += [(pattern, number) for number, phrase in enumerate(phrases) if (pattern := raw_pattern(phrase))]
        self._terminated: type[Exception] = hyperscan.ScanTerminated
        self._database = hyperscan.Database()
        try:
            self._database.compile(
                expressions=[pattern.encode() for pattern, _ in patterns],
                # Hyperscan's ids are unsigned; MARKED is the lowest of ours.
                ids=[number - MARKED for _, number in patterns],
                elements=len(patterns),
                flags=hyperscan.HS_FLAG_CASELESS,
            )
        except hyperscan.CompilerError as error:
            raise _TooLargeError(str(error)) from error

    def find(self, data: bytes, most: int) -> list[tuple[int, int]] | None:
        hits: list[tuple[int, int]] = []

        def found(number: int, start: int, end: int, flags: int, context: Any) -> bool:
            hits.append((number + MARKED, end))
            return len(hits) > most

        try:
            self._database.scan(data, match_event_handler=found)
        except self._terminated:
            return None
        return hits


class AutomatonEngine:
    """Aho-Corasick over the ASCII-lower-cased bytes."""

    def __init__(self, phrases: Sequence[str], marks: Sequence[bytes]) -> None:
        import ahocorasick_rs

        patterns = [(always.lower(), EVERY) for always in ALWAYS] if phrases else []
        patterns += [(mark, MARKED) for mark in marks]
        for number, phrase in enumerate(phrases):
            patterns.extend((spelling, number) for spelling in raw_spellings(phrase))
        # Case beyond ASCII is not folded here, so with such a phrase every line beyond ASCII is a suspect.
        self._ascii = all(phrase.isascii() for phrase in phrases)
        self._numbers = [number for _, number in patterns]
        self._automaton = ahocorasick_rs.BytesAhoCorasick([spelling for spelling, _ in patterns])

    def find(self, data: bytes, most: int) -> list[tuple[int, int]] | None:
        if not self._ascii and not data.isascii():
            return None
        hits = self._automaton.find_matches_as_indexes(data.lower(), overlapping=True)
        return [(self._numbers[hit[0]], hit[2]) for hit in hits] if len(hits) <= most else None


def raw_spellings(phrase: str) -> list[bytes]:
    """Return the spellings of an ASCII phrase in ASCII-lower-cased JSON, but for escapes by number."""
    if not phrase.isascii() or any(character < " " and character not in ESCAPED for character in phrase):
        return []
    spelled = b"".join(ESCAPED.get(character, character.encode()) for character in phrase)
    return [spelled, spelled.replace(b"/", b"\\/")] if b"/" in spelled else [spelled]


def raw_pattern(phrase: str) -> str:
    """Return the regular expression of every raw JSON spelling without escapes by number; "" if there is none."""
    parts = []
    for character in phrase:
        if character in ESCAPED:
            parts.append(_hex(ESCAPED[character]))
        elif character == "/":
            parts.append(r"\x5c?\x2f")
        elif character < " ":
            return ""
        elif character.isascii():
            parts.append(_hex(character.encode()))
        else:
            spellings = sorted({character, *_upper_cases().get(character, ())})
            parts.append(
                "(?:" + "|".join(_hex(spelling.encode("utf-8", "surrogatepass")) for spelling in spellings) + ")"
            )
    return "".join(parts)


def _hex(data: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in data)


@cache
def _upper_cases() -> dict[str, list[str]]:
    """Map every character beyond ASCII to the characters that become it in lower case."""
    upper: dict[str, list[str]] = {"ς": ["Σ"]}
    for character in map(chr, range(0x80, 0x110000)):
        lowered = character.lower()
        if lowered != character:
            upper.setdefault(lowered, []).append(character)
    return upper
