"""The form of a text in which spelling tricks are gone: what `phrase_match = "robust"` compares.

Case, accents, full-width forms, invisible characters, curly quotes, markdown marks and Latin look-alikes are folded;
every other punctuation mark and white space becomes one space; the whole is padded with a space at either end, so a
phrase that went through the same function is found as whole words. Scripts that are written without spaces are set
off character by character. Promises canon(a + " " + b) == canon(a)[:-1] + canon(b): text may be judged in pieces.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

LOOKALIKES = str.maketrans(
    "авекмнорстухіјѕԁԛԝѵһӏαενοιρτυχкӀⅼ",
    "abekmhopctyxijsdqwvhlaevoiptyxkll",
)
"""Cyrillic and Greek letters that are read as Latin ones, lower case."""
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""Thai, Lao, Burmese, Khmer, Han and kana."""

_DELETED = b"'`*~"
"""Marks that stand inside a word or around it and say nothing: apostrophes and markdown."""
_RUN = re.compile(r"[^\x00-\x7f]+")
_RUNS_KEPT = 1 << 16
_LONG_RUN = 24
"""A run of more characters is a text in another script; its runs seldom repeat, so they are not remembered."""


def canon(text: str) -> bytes:
    """Return the folded form, in UTF-8, with one space at either end."""
    if not text.isascii():
        text = _RUN.sub(_fold_match, text)
    data = text.encode("utf-8", "surrogatepass").translate(_TABLE, _DELETED)
    if b"[" in data or b"]" in data:
        data = data.replace(b"[", b" [ ").replace(b"]", b" ] ")
    while b"  " in data:
        data = data.replace(b"  ", b" ")
    return b" %b " % data.strip(b" ") if data.strip(b" ") else b" "


def _fold_match(match: re.Match[str]) -> str:
    run = match.group()
    return _fold_remembered(run) if len(run) <= _LONG_RUN else _fold(run)


def _fold(run: str) -> str:
    plain = "".join(_fold_character(character) for character in unicodedata.normalize("NFKD", run))
    return UNSPACED.sub(r" \g<0> ", plain)


_fold_remembered = lru_cache(_RUNS_KEPT)(_fold)


@lru_cache(_RUNS_KEPT)
def _fold_character(character: str) -> str:
    """Fold one character of a decomposed text; nothing for one that is not seen, a space for punctuation."""
    if character in "\u2018\u2019\u201a\u201b\u02bc\u02b9\u2032\u00b4\u02c8\ua78c":
        return "'"
    category = unicodedata.category(character)
    if category in ("Mn", "Me", "Cf"):
        return ""
    if category[0] in "PSZ" or category == "Cc" or character.isspace():
        return character if character.isascii() else " "
    return character.casefold().translate(LOOKALIKES)


def _table() -> bytes:
    table = bytearray(range(256))
    for code in range(128):
        character = chr(code)
        table[code] = ord(character.lower()) if character.isalnum() or character in "[]" else 0x20
    return bytes(table)


_TABLE = _table()
