"""The compiled filter gives the verdicts, the bytes and the reasons that the Python one gives, whatever the lines."""

from __future__ import annotations

import json
import os
import random
from array import array
from typing import Any

import numpy as np
import pytest
import xxhash
from compiled import judge_compiled, judge_in_python
from compiled import kernel as compiled
from hypothesis import given, settings
from hypothesis import strategies as st
from test_filter_law import ODD_PHRASES, PIECES, ROW, write_line

from engine import config as configuration
from engine.columns import Columns
from engine.config import RECIPE_PHRASES
from engine.filter import Filter
from engine.filter_chunk import Chunk
from engine.filter_native import NativeFilter
from engine.key_table import SLOTS_BEHIND, KeyTable
from engine.native import commit, hash128, kernel, memory, phrases, table
from engine.room import Room

ODD_LINES = [
    b"",
    b"   ",
    b"\r",
    b"{}",
    b"[]",
    b"null",
    b'{"instruction":"a b c d e","output":"fine answer"} ',
    b'\t{ "output" : "fine answer" , "instruction" : "a" }\r',
    b'{"instruction":"a","output":"fine answer"}{"instruction":"a","output":"fine answer"}',
    b'{"instruction":"a","output":"fine answer",}',
    b'{"instruction":"a","output":"first answer","output":"second answer"}',
    b'{"instruction":"a","output":"first answer","output":5}',
    b'{"instruction":"a","output":5,"output":"second answer"}',
    b'{"instruction":"a","instruction ":"b","output":"fine answer"}',
    b'{"in\\u0073truction":"escaped key","output":"fine answer"}',
    b'{"instruction":"a","output":null}',
    b'{"instruction":"a"}',
    b'{"instruction":"a","output":"cut',
    b'{"instruction":"a","output":"tab\there"}',
    b'{"instruction":"a","output":"nul \x00 here"}',
    b'{"instruction":"a","output":"nul \\u0000 here"}',
    b'{"instruction":"a\\u001fb","output":"separator"}',
    b'{"instruction":"a","output":"\\u001f separator at the begin"}',
    b'{"instruction":"a","output":"lone \\ud83d surrogate"}',
    b'{"instruction":"a","output":"lone \\ude00 surrogate"}',
    b'{"instruction":"a","output":"pair \\ud83d\\ude00 pair"}',
    b'{"instruction":"a","output":"pair \\ud83d\\u0041 broken"}',
    b'{"instruction":"a","output":"bad escape \\x"}',
    b'{"instruction":"a","output":"bad escape \\u12g4"}',
    b'{"instruction":"a","output":"quote \\" slash \\\\ \\/ \\b\\f\\n\\r\\t end"}',
    b'{"instruction":"a","output":"bad \xff byte"}',
    b'{"instruction":"a","output":"overlong \xc0\x80 byte"}',
    b'{"instruction":"a","output":"surrogate \xed\xa0\x80 byte"}',
    b'{"instruction":"a","output":"beyond \xf4\x90\x80\x80 byte"}',
    b'{"instruction":"a","output":"torn \xe2\x82"}',
    b'{"instruction":"\xe3\x80\x80a\xc2\xa0","output":"\xe2\x80\xa8wide space\xc2\x85"}',
    b'{"instruction":"a","output":"kelvin i \xe2\x84\xaannot, i cannot \xc4\xb0 cannot"}',
    b'{"instruction":"a","output":"fine answer","x":[1,-2.5,{"y":[true,false,null,"\\n"]},[]],"z":{}}',
    b'{"instruction":"a","output":"fine answer","x":1e5}',
    b'{"instruction":"a","output":"fine answer","x":01}',
    b'{"instruction":"a","output":"fine answer","x":-}',
    b'{"instruction":"a","output":"fine answer","x":1.}',
    b'{"instruction":"a","output":"fine answer","x":tru}',
    b'{"instruction":"a","output":"fine answer","x":[1,]}',
    b'{"instruction":"a","output":"fine answer","x":{"a":1,}}',
    b'{"instruction":"a","output":"fine answer","x":[1}}',
    b'{"instruction":"a","output":"fine answer","x":123456789012345678901234567890}',
    b'{"instruction":"a","output":"fine answer","x":' + b"[" * 70 + b"]" * 70 + b"}",
    b'{"instruction":"a","output":"fine answer","x":' + b"[" * 30 + b"]" * 30 + b"}",
    b'{"instruction":"a","output":"no","rule":"mine","reason":4,"row_number":{"a":1}}',
    b'{"instruction":"a","output":"fine answer","rule":"mine"}',
    b'{"instruction":"a","input":null,"template":null,"output":"fine answer"}',
    b'{"instruction":"a","input":"b","template":"t","output":"fine answer"}',
    b'{"instruction":"a","input":5,"output":"fine answer"}',
    b"\xef\xbb\xbf{}",
]
PHRASES = st.lists(st.sampled_from((*RECIPE_PHRASES, *ODD_PHRASES, "a", "no", "ans", "fine")), max_size=9, unique=True)
RULES = st.builds(
    configuration.Filter,
    phrases=PHRASES.map(tuple),
    phrase_chars=st.sampled_from([0, 0, 3, 12]),
    cap_per_template=st.integers(0, 3),
    cap_key=st.sampled_from(["prefix", "template"]),
    min_chars=st.sampled_from([0, 5, 11]),
    dedup_on=st.sampled_from([("instruction", "output"), ("output", "instruction", "input"), ("input",), ("output",)]),
)
SIZES = st.lists(st.integers(1, 9), max_size=5)


def same(data: bytes, rules: configuration.Filter, sizes: list[int], columns: Columns | None = None) -> None:
    """Check that both filters do the same to some lines."""
    columns = columns or Columns()
    found = judge_compiled(data, rules, columns, sizes)
    expected = judge_in_python(data, rules, columns, sizes)
    assert found == expected


@given(rows=st.lists(ROW, max_size=25), rules=RULES, style=st.integers(0, 31), sizes=SIZES)
@settings(max_examples=400, deadline=None)
def test_rows(rows: list[dict[str, Any]], rules: configuration.Filter, style: int, sizes: list[int]) -> None:
    rows = [row | {"template": row["instruction"][:1], "input": row["output"][:2]} for row in rows]
    same(b"".join(write_line(row, style) for row in rows), rules, sizes)


@given(
    lines=st.lists(st.sampled_from(ODD_LINES), max_size=30), rules=RULES, sizes=SIZES, end=st.sampled_from([b"", b"\n"])
)
@settings(max_examples=400, deadline=None)
def test_odd_lines(lines: list[bytes], rules: configuration.Filter, sizes: list[int], end: bytes) -> None:
    same(b"\n".join(lines) + end, rules, sizes)


@given(
    line=st.sampled_from(ODD_LINES),
    changes=st.lists(st.tuples(st.integers(0, 200), st.binary(max_size=3), st.integers(0, 2)), min_size=1, max_size=3),
)
@settings(max_examples=2000, deadline=None)
def test_damaged_lines(line: bytes, changes: list[tuple[int, bytes, int]]) -> None:
    for place, put, cut in changes:
        place %= len(line) + 1
        line = line[:place] + put + line[place + cut :]
    same(line, configuration.Filter(cap_per_template=1), [1])


@pytest.mark.slow
def test_a_hundred_thousand_damaged_lines() -> None:
    chance = random.Random(11)
    alphabet = b'"\\{}[],:u0dDn \t\x00\x1f\x80\xbf\xc2\xe2\xed\xf0\xff-.1eE' + bytes(range(256))
    made = []
    for _ in range(100_000):
        line = bytearray(chance.choice(ODD_LINES) or b" ")
        for _ in range(chance.randint(1, 3)):
            place = chance.randrange(len(line) + 1)
            line[place : place + chance.randint(0, 2)] = bytes(chance.choices(alphabet, k=chance.randint(0, 2)))
        made.append(bytes(line))
    same(b"\n".join(made), configuration.Filter(), [1000] * 100)


def test_a_hundred_thousand_rows() -> None:
    chance = random.Random(5)
    made: list[bytes] = []
    for number in range(100_000):
        if made and chance.random() < 0.3:
            made.append(chance.choice(made[-3000:]))
            continue
        texts = ["".join(chance.choices(PIECES, k=chance.randint(0, most))) for most in (3, 8)]
        head = f"Write a {chance.choice(['poem', 'song'])} {chance.randint(0, 300)} " if chance.random() < 0.7 else ""
        row = {"instruction": head + texts[0], "output": f"{texts[1]} {chance.randint(0, 10**6)}", "id": number}
        made.append(write_line(row, chance.choice((0, 0, 0, 1, 2, 4, 8, 16))))
    phrases_ = (*RECIPE_PHRASES, "не могу", "can't/won't", "ὀδυσσεύς")
    same(b"".join(made), configuration.Filter(phrases=phrases_), [700] * 200)
    same(b"".join(made), configuration.Filter(), [5000] * 30)


@given(
    words=st.lists(st.text("abcé ", min_size=1, max_size=14), min_size=1, max_size=40, unique=True),
    texts=st.lists(st.lists(st.text("abcABCéÉ ", max_size=16), max_size=8), max_size=8),
    picks=st.lists(st.integers(0, 39), max_size=8),
)
@settings(max_examples=400, deadline=None)
def test_long_lists_of_phrases(words: list[str], texts: list[list[str]], picks: list[int]) -> None:
    outputs = ["x".join(text) for text in texts]
    outputs += [f"{'ab' * (pick % 5)}{words[pick % len(words)].upper()}{'c' * (pick % 3)}" for pick in picks]
    lines = [json.dumps({"instruction": str(n), "output": text}).encode() for n, text in enumerate(outputs)]
    same(b"\n".join(lines), configuration.Filter(phrases=tuple(words), min_chars=0), [])


def test_other_columns() -> None:
    line = b'{"question":"a b","answer":"fine answer","input":"x","instruction":5}\n'
    same(line + line, configuration.Filter(), [1], Columns(instruction="question", output="answer"))


def test_the_hash_is_xxh3() -> None:
    run, secret, state = compiled(), Room.of(hash128.SECRET), Room(64)
    for size in (*range(600), 1023, 1024, 1025, 1087, 1088, 1089, 2048, 2049, 100_000):
        data = os.urandom(size)
        room = Room.of(data)
        given_ = array("Q", (room.address, size, secret.address, state.address, 0, 0))
        run(kernel.DIGEST, given_.buffer_info()[0])
        high, low = given_[4:].tolist()
        assert high << 64 | low == xxhash.xxh3_128_intdigest(data), size


def test_what_is_compiled_also_runs_as_it_is() -> None:
    run, secret, state = compiled(), Room.of(hash128.SECRET), Room(64)
    for size in (0, 3, 8, 16, 100, 200, 1500):
        room = Room.of(os.urandom(size))
        given_ = array("Q", (room.address, size, secret.address, state.address, 0, 0))
        run(kernel.DIGEST, given_.buffer_info()[0])
        with np.errstate(over="ignore"):
            high, low = hash128.digest(room.address, size, secret.address, state.address)
        assert [int(high), int(low)] == given_[4:].tolist()


def test_a_million_keys_are_a_set() -> None:
    native = NativeFilter(Filter(configuration.Filter(phrases=(), cap_per_template=0)), Columns(), compiled())
    chunk, plain, first = Chunk(), set[int](), 0
    chance = random.Random(2)
    for _ in range(100):
        numbers = [chance.randrange(1_000_000) for _ in range(10_000)]
        data = b"".join(b'{"instruction":"","output":"number %d"}\n' % number for number in numbers)
        judged = native.judge(native.scan(chunk, "", data), first)
        first += chunk.count
        fresh = set(numbers) - plain
        assert judged.keeps == len(fresh)
        plain |= fresh
    assert len(native.seen) == len(plain)
    assert isinstance(native.seen, KeyTable)


@pytest.mark.parametrize("width", [commit.KEY_WIDTH, commit.COUNT_WIDTH])
@pytest.mark.parametrize("is_compiled", [False, True])
def test_keys_that_crowd_one_place_are_all_found(width: int, is_compiled: bool) -> None:
    held = KeyTable(compiled() if is_compiled else kernel.run, width)
    part, chance = held.address, random.Random(3)
    # So many in the last place that the slots behind it do not do, some in the first one, some anywhere.
    lows = [2**64 - 1 - number // 2 for number in range(250)] + [0] * 40 + [chance.getrandbits(64) for _ in range(250)]
    keys = [(number + 1, low) for number, low in enumerate(lows)]
    chance.shuffle(keys)
    with np.errstate(over="ignore"):
        halves = [(memory.u64(high), memory.u64(low)) for high, low in keys]
        for count, (high, low) in enumerate(halves):
            while table.is_full(part, width):
                assert held.grow(part)
            slot = table.find(part, width, high, low)
            assert not table.holds(slot, high, low)
            table.put(part, width, slot, high, low)
            if width == commit.COUNT_WIDTH:
                memory.put_word(slot + 16, count)
        for count, (high, low) in enumerate(halves):
            slot = table.find(part, width, high, low)
            assert table.holds(slot, high, low)
            assert width == commit.KEY_WIDTH or memory.word(slot + 16) == count
    assert len(held) == len(keys)
    places, slots = (memory.word(part + 8 * word) for word in (table.SIZE, table.CAPACITY))
    assert (places, len(keys)) == (1024, 540)
    assert SLOTS_BEHIND < slots - places < 250 + 2 * SLOTS_BEHIND


def test_only_two_characters_beyond_ascii_have_a_lower_case_with_ascii() -> None:
    found = {chr(code) for code in range(128, 0x110000) if any(letter < "\x80" for letter in chr(code).lower())}
    assert found == {"\u212a", "\u0130"}


def test_groups_are_hashed_alike() -> None:
    assert phrases.group_hash(0x61626364 | phrases.LOWER) < 1 << phrases.BUCKET_BITS + 4


def test_json_that_python_wrote_is_read_without_python() -> None:
    chance = random.Random(8)
    rows = [
        {"instruction": "".join(chance.choices(PIECES, k=4)), "output": 'x\n\u00e9"y', "n": 1.5} for _ in range(500)
    ]
    data = "".join(json.dumps(row, ensure_ascii=bool(number % 2)) + "\n" for number, row in enumerate(rows)).encode()
    native = NativeFilter(Filter(configuration.Filter()), Columns(), compiled())
    asked = []
    native._read = lambda chunk, place: asked.append(place)  # type: ignore[method-assign]
    native.scan(Chunk(), "", data)
    separators = [number for number, row in enumerate(rows) if "\x1f" in row["instruction"]]
    assert asked == separators
