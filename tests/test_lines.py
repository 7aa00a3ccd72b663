"""Lines of a file: the same in order and by number as when the file is held, and never those of another file."""

import codecs
import os
from pathlib import Path

import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine import lines
from engine.errors import DataError, MissingError
from engine.lines import LineFile, numbered_lines

PIECE = st.sampled_from([b"a", b"\xc3\xa4", b" ", b"\t", b"\r", b"\n", b"\n\n\n", b"\r\n", b"\x0c", b"\x00", b"x" * 9])


def held(data: bytes) -> list[tuple[int, bytes]]:
    """Return the lines of a file as they are said to be."""
    found = enumerate(data.removeprefix(codecs.BOM_UTF8).split(b"\n"), 1)
    return [(number, line.rstrip(b"\r")) for number, line in found if line.strip()]


def opened(path: Path) -> LineFile:
    return LineFile(path, lambda number, line: None)


@given(pieces=st.lists(PIECE, max_size=40), bom=st.booleans(), block=st.sampled_from([1, 7, 4096]))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lines_are_those_of_the_file(
    pieces: list[bytes], bom: bool, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", block)
    data = codecs.BOM_UTF8 * bom + b"".join(pieces)
    path = tmp_path / "lines"
    path.write_bytes(data)
    expected = held(data)
    checked: list[tuple[int, bytes]] = []
    file = LineFile(path, lambda number, line: checked.append((number, line)))
    assert checked == list(numbered_lines(path)) == expected
    assert len(file) == len(expected)
    assert [file[index] for index in range(len(file))] == expected
    for start in range(len(expected) + 2):
        assert list(file.lines(start)) == expected[start:]
    assert file.digest == xxhash.xxh3_128_hexdigest(data)
    with pytest.raises(IndexError):
        file[len(expected)]


def test_a_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"fine\n" * 5000 + b"\xff\n" + b"fine\n")
    with pytest.raises(DataError, match="lines:5001: not UTF-8"):
        opened(path)
    with pytest.raises(DataError, match="lines:5001: not UTF-8"):
        list(numbered_lines(path))


def test_a_file_that_changes_is_not_read_on(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"one and the same\n" * 1000)
    file = opened(path)
    following = file.lines()
    next(following)
    with path.open("r+b") as other:
        other.seek(-2, os.SEEK_END)
        other.write(b"!")
    assert file[0] == (1, b"one and the same")
    with pytest.raises(DataError, match="has changed since"):
        list(following)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="has changed since"):
        file[0]


def test_a_file_that_is_replaced_or_appended_to_is_read_as_it_was(tmp_path: Path) -> None:
    path, other = tmp_path / "lines", tmp_path / "other"
    path.write_bytes(b"one\ntwo")
    file = opened(path)
    with path.open("ab") as more:
        more.write(b"\nthree\n")
    assert list(file.lines()) == [(1, b"one"), (2, b"two")]
    other.write_bytes(b"another\n")
    other.replace(path)
    assert list(file.lines()) == [(1, b"one"), (2, b"two")]


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    read, write = os.pipe()
    try:
        for path in (tmp_path, tmp_path / "none", Path(f"/proc/self/fd/{read}")):
            with pytest.raises(MissingError, match="give the path of a file"):
                opened(path)
    finally:
        os.close(read)
        os.close(write)
