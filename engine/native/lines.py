"""Lines of JSON -> what the rules need to know of each row, without building anything.

A line is read here only if it is without doubt an object in valid JSON and UTF-8 whose fields that the rules read are
strings; any other line is UNREAD and left to the JSON decoder, which decides the same way but slower.
"""

from __future__ import annotations

from engine.native.hash128 import digest
from engine.native.memory import NEWLINE, QUOTE, WIDE, load8, lowest, newlines, put_word, signed, store8, word
from engine.native.phrases import ANY_BEYOND, NONE, SUSPECT, cut, first_phrase, folds_to_ascii
from engine.native.text import BEYOND, ESCAPED, SEPARATOR, append, decode, first_words, string_end, strip
from engine.native.values import skip, value_end

(
    LINE,
    NEXT,
    STATE,
    BRACE,
    OUTPUT,
    OUTPUT_END,
    CHARS,
    KEY,
    KEY_LOW,
    CAP,
    CAP_LOW,
    PHRASE,
    TOPIC,
    TOPIC_END,
    VERDICT,
    MARK,
) = range(16)
"""Words of a row: where its line begins and ends, what it is, its last brace, its raw output, its characters, its
duplicate key, its cap's key, its phrase, the raw text that names its cap, the verdict, the mark of a rejected row."""
ROW_WORDS = 16
UNREAD, READ, MARKED, BLANK, BAD = range(5)
"""What a line is: not read here; a row; a row with a field that is called like a mark; no row (two kinds)."""
DATA, END, ROWS, ROOM, SCRATCH, FIELDS, NAMES, DEDUP, DEDUP_FIELDS, CAP_BY, TABLE, PHRASE_CHARS = range(12)
SECRET, LEAST, MOST, MARKS = range(12, 16)
"""Words of a scan's parameters; the first is moved to where it stopped."""
F_ROWS, F_COUNT, F_WORD, F_VALUE, F_FOUND = range(5)
"""Words of the parameters of `find`."""
FIELD_WORDS = 4
INSTRUCTION, OUTPUT_FIELD, INPUT, TEMPLATE, FIELD_COUNT = range(5)
BY_NOTHING, BY_PREFIX, BY_TEMPLATE = range(3)
PREFIX_WORDS = 4
MARK_COUNT = 3


def scan(q: int) -> int:
    """Read the lines of a chunk; return how many they are. It stops early where there is no room for more rows."""
    place, row = word(q + 8 * DATA), word(q + 8 * ROWS)
    end, room, count = word(q + 8 * END), word(q + 8 * ROOM), 0
    while place < end and count < room:
        put_word(row + 8 * LINE, place)
        put_word(row + 8 * STATE, UNREAD)
        put_word(row + 8 * PHRASE, NONE)
        put_word(row + 8 * VERDICT, 0)
        put_word(row + 8 * MARK, 0)
        following = _line(q, place, row)
        if following < 0:
            following = _line_end(place)
        elif not _features(q, row):
            put_word(row + 8 * STATE, UNREAD)
        put_word(row + 8 * NEXT, following)
        place = following
        row += 8 * ROW_WORDS
        count += 1
    put_word(q + 8 * DATA, place)
    return count


def find(q: int) -> int:
    """List the places of the rows of which a word has a value; return how many they are."""
    at, count = word(q + 8 * F_ROWS) + 8 * word(q + 8 * F_WORD), 0
    value, found = word(q + 8 * F_VALUE), word(q + 8 * F_FOUND)
    for number in range(word(q + 8 * F_COUNT)):
        if word(at + 8 * ROW_WORDS * number) == value:
            put_word(found + 8 * count, number)
            count += 1
    return count


def _line_end(place: int) -> int:
    while True:
        found = newlines(place)
        if found:
            return place + lowest(found) + 1
        place += WIDE


def _line(q: int, place: int, row: int) -> int:
    """Note the fields of a line's object; return where the next line begins, or -1."""
    fields, state = word(q + 8 * FIELDS), READ
    for number in range(FIELD_COUNT):
        _note(fields + 8 * FIELD_WORDS * number, 0, 0, 0, 0)
    place = skip(place)
    if load8(place) != 123:  # {
        return -1
    place = skip(place + 1)
    while True:
        name = place + 1
        if load8(place) != QUOTE:
            return -1
        end, extra, kinds = string_end(name)
        if end < 0 or kinds & ESCAPED:
            return -1
        length = end - name
        place = skip(end + 1)
        if load8(place) != 58:  # :
            return -1
        place = skip(place + 1)
        number = _named(word(q + 8 * NAMES), FIELD_COUNT, name, length)
        if load8(place) == QUOTE:
            start = place + 1
            end, extra, kinds = string_end(start)
            if end < 0:
                return -1
            if number >= 0:
                _note(fields + 8 * FIELD_WORDS * number, start, end, extra, kinds)
            place = end + 1
        else:
            place = -1 if number >= 0 else value_end(place)
            if place < 0:
                return -1
        if _named(word(q + 8 * MARKS), MARK_COUNT, name, length) >= 0:
            state = MARKED
        place = skip(place)
        byte = load8(place)
        if byte == 125:  # }
            break
        if byte != 44:  # ,
            return -1
        place = skip(place + 1)
    put_word(row + 8 * BRACE, place)
    place = skip(place + 1)
    if load8(place) != NEWLINE:
        return -1
    put_word(row + 8 * STATE, state)
    return place + 1


def _note(field: int, start: int, end: int, extra: int, kinds: int) -> int:
    put_word(field, start)
    put_word(field + 8, end)
    put_word(field + 16, extra)
    put_word(field + 24, kinds)
    return 0


def _named(names: int, count: int, name: int, length: int) -> int:
    """Return which of some names (address and length of each) a name is, or -1."""
    for number in range(count):
        if word(names + 16 * number + 8) == length:
            known, at = word(names + 16 * number), 0
            while at < length and load8(known + at) == load8(name + at):
                at += 1
            if at == length:
                return number
    return -1


def _features(q: int, row: int) -> bool:
    """Work out what the rules need of a row whose fields are noted; False leaves the line to the decoder."""
    fields = word(q + 8 * FIELDS)
    output = fields + 8 * FIELD_WORDS * OUTPUT_FIELD
    if word(fields) == 0 or word(output) == 0:
        return False
    put_word(row + 8 * OUTPUT, word(output))
    put_word(row + 8 * OUTPUT_END, word(output + 8))
    put_word(row + 8 * CHARS, word(output + 8) - word(output) - word(output + 16))
    topic = fields + 8 * FIELD_WORDS * (TEMPLATE if word(q + 8 * CAP_BY) == BY_TEMPLATE else INSTRUCTION)
    put_word(row + 8 * TOPIC, word(topic))
    put_word(row + 8 * TOPIC_END, word(topic + 8))
    state = word(q + 8 * SCRATCH)
    free = state + 64
    for number in range(FIELD_COUNT):
        field = fields + 8 * FIELD_WORDS * number
        if word(field + 24) & ESCAPED:
            end = decode(free, word(field), word(field + 8))
            if end < 0:
                return False
            put_word(field, free)
            put_word(field + 8, end)
            free = end
    _put_key(q, row, free, state)
    chars = word(row + 8 * CHARS)
    if word(q + 8 * LEAST) <= chars <= word(q + 8 * MOST):
        # Length is judged first, so an output of another length is not searched.
        put_word(row + 8 * PHRASE, _phrase(q, output))
    _put_cap_key(q, row, topic, free, state)
    return True


def _put_key(q: int, row: int, free: int, state: int) -> int:
    place, dedup = free, word(q + 8 * DEDUP)
    for number in range(word(q + 8 * DEDUP_FIELDS)):
        if number:
            store8(place, SEPARATOR)
            place += 1
        field = word(q + 8 * FIELDS) + 8 * FIELD_WORDS * word(dedup + 8 * number)
        start, end = strip(word(field), word(field + 8))
        place = append(place, start, end)
    high, low = digest(free, place - free, word(q + 8 * SECRET), state)
    put_word(row + 8 * KEY, signed(high))
    put_word(row + 8 * KEY_LOW, signed(low))
    return 0


def _put_cap_key(q: int, row: int, topic: int, free: int, state: int) -> int:
    by = word(q + 8 * CAP_BY)
    start, end = word(topic), word(topic + 8)
    if by == BY_NOTHING:
        return 0
    if by == BY_PREFIX:
        end = first_words(free, start, end, PREFIX_WORDS)
        start = free
    high, low = digest(start, end - start, word(q + 8 * SECRET), state)
    put_word(row + 8 * CAP, signed(high))
    put_word(row + 8 * CAP_LOW, signed(low))
    return 0


def _phrase(q: int, output: int) -> int:
    table = word(q + 8 * TABLE)
    if table == 0:
        return NONE
    start, end = word(output), word(output + 8)
    if word(q + 8 * PHRASE_CHARS) > 0:
        end = cut(start, end, word(q + 8 * PHRASE_CHARS))
    if word(output + 24) & BEYOND and (word(table + 8 * ANY_BEYOND) or folds_to_ascii(start, end)):
        return SUSPECT
    return first_phrase(table, start, end)
