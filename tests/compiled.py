"""The compiled filter for tests: built once per machine, then taken from the cache."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence

import pytest

from engine import config as configuration
from engine.columns import BadLine, Batch, Columns, Parser
from engine.filter import Filter
from engine.filter_batch import BatchFilter
from engine.filter_chunk import Chunk
from engine.filter_native import NativeFilter
from engine.native.load import Run, load_kernel

Outcome = tuple[bytes, bytes, dict[str, int], dict[int, BadLine], int]
"""Kept bytes, rejected bytes, rejected rows by rule, bad lines by number, lines that are not blank."""


def kernel() -> Run:
    """Return the compiled kernel; a machine that cannot have it skips the test."""
    pytest.importorskip("numba")
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        pytest.skip("the filter is compiled on Linux on x86-64 only")
    run = load_kernel(build=True)
    assert run is not None
    return run


def judge_compiled(data: bytes, rules: configuration.Filter, columns: Columns, sizes: Iterable[int]) -> Outcome:
    """Filter lines in pieces of so many lines in compiled code."""
    native, chunk, first, line = NativeFilter(Filter(rules), columns, kernel()), Chunk(), 0, 0
    kept, rejected, counts, failed = b"", b"", dict[str, int](), dict[int, BadLine]()
    for piece in _pieces(data, sizes):
        native.scan(chunk, "test", piece)
        chunk.first_line = line + 1
        failed |= chunk.bad_lines(first)
        judged = native.judge(chunk, first)
        kept += b"".join(judged.kept)
        rejected += b"".join(judged.rejected)
        for rule, count in judged.rules.items():
            counts[rule] = counts.get(rule, 0) + count
        first += chunk.count - chunk.blank
        line += chunk.count
    return kept, rejected, {rule: count for rule, count in counts.items() if count}, failed, first


def judge_in_python(data: bytes, rules: configuration.Filter, columns: Columns, sizes: Iterable[int]) -> Outcome:
    """Do the same in Python."""
    judge, first, line = BatchFilter(Filter(rules)), 0, 0
    parser = Parser(columns, judge.fields())
    kept, rejected, counts, failed = b"", b"", dict[str, int](), dict[int, BadLine]()
    for piece in _pieces(data, sizes):
        batch = Batch("test", line + 1, piece)
        scan = judge.scan(batch.data, batch.lines)
        parsed = parser.parse(batch)
        if parsed.data is not batch.data:
            scan = judge.scan(parsed.data, parsed.lines)
        lines = len(parsed.rows) + len(parsed.bad)
        bad = {first + place: bad for place, bad in zip(parsed.bad_places, parsed.bad, strict=True)}
        judged = judge.judge(parsed, [number for number in range(first, first + lines) if number not in bad], scan)
        kept += b"".join(judged.kept)
        rejected += b"".join(judged.rejected)
        for rule, count in judged.rules.items():
            counts[rule] = counts.get(rule, 0) + count
        failed |= bad
        first += lines
        line += len(batch.lines)
    return kept, rejected, {rule: count for rule, count in counts.items() if count}, failed, first


def _pieces(data: bytes, sizes: Iterable[int]) -> Iterable[bytes]:
    lines: Sequence[bytes] = data.split(b"\n")
    lines = [*(line + b"\n" for line in lines[:-1]), *([lines[-1]] if lines[-1] else [])]
    start = 0
    for size in [*sizes, max(1, len(lines))]:
        if lines[start : start + size]:
            yield b"".join(lines[start : start + size])
        start += size
