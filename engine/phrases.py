"""The phrase guard: does an output hold a phrase that the user banned, and which.

Two ways to match. `substring` is the recipe's: the lower-cased phrase is somewhere in the lower-cased output.
`robust` (engine/canon.py) sees through quotes, spaces and look-alike letters and matches whole words only.
Promises to name the first phrase in list order, and that `watch` answers on a partial text only with what the
finished text is certain to hold. No I/O but reading a phrase file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from engine import config as configuration
from engine.canon import canon
from engine.errors import ConfigError, MissingError

if TYPE_CHECKING:
    import ahocorasick_rs

LOOP_PHRASES = 8
"""Up to so many phrases a loop of `in` is faster than an automaton (measured on outputs of 350 characters)."""
SHIPPED = Path(__file__).resolve().parent / "phrase_lists"
"""The lists that come with Potstill, inside the package so that a wheel has them; `data/phrases` links here."""
SHIPPED_PREFIX = "phrases:"
"""`phrases:refusals-en` names a shipped list instead of a file."""

_SIGMAS = {"\u03c2", "\u03c3"}


class PhraseGuard:
    """Finds banned phrases in outputs."""

    def __init__(self, settings: configuration.Filter) -> None:
        self.spelled = tuple(dict.fromkeys((*settings.phrases, *_from_files(settings.phrase_files))))
        self.robust = settings.phrase_match == "robust"
        self.limit = settings.phrase_chars or None
        self.phrases = tuple(_prepare(phrase, robust=self.robust) for phrase in self.spelled)

    def find(self, output: str) -> int | None:
        """Return the number of the first phrase in list order that the output holds, or None."""
        text = self.normalise(output)
        if len(self.phrases) > LOOP_PHRASES:
            hits = self._automaton.find_matches_as_indexes(text, overlapping=True)
            return min((hit[0] for hit in hits), default=None)
        return first(self.phrases, range(len(self.phrases)), text)

    def confirm(self, output: str, suspects: Iterable[int]) -> int | None:
        """Return the first of some phrases (by number) that the output holds, or None."""
        return first(self.phrases, sorted(set(suspects)), self.normalise(output))

    def watch(self, partial: str) -> int | None:
        """Return a phrase that an unfinished output holds already and cannot lose, or None."""
        if self.robust:
            # A word at the end may go on, and a mark may still join its last letter: judge up to the last space.
            return self.find(partial[: max(partial.rfind(" "), partial.rfind("\n")) + 1])
        return first(self.phrases, self._early, self.normalise(partial))

    def reason(self, number: int) -> str:
        """Return the sentence that a rejected row carries."""
        return f"holds {self.spelled[number]!r}"

    def normalise(self, output: str) -> bytes:
        """Return the form of an output in which phrases are looked for, in UTF-8."""
        text = output[: self.limit]
        return canon(text) if self.robust else lower(text)

    @cached_property
    def _automaton(self) -> ahocorasick_rs.BytesAhoCorasick:
        import ahocorasick_rs

        # Overlapping matches, so that the first in list order is found and not the first in the text.
        return ahocorasick_rs.BytesAhoCorasick(self.phrases)

    @cached_property
    def _early(self) -> Sequence[int]:
        # A final sigma lowers to another letter once text follows it, so a phrase with one is not judged early.
        return [number for number, phrase in enumerate(self.spelled) if not _SIGMAS & set(phrase.lower())]


def lower(text: str) -> bytes:
    """Return the lower-cased text in UTF-8, in which a substring is a substring of the text and nothing else."""
    return text.lower().encode("utf-8", "surrogatepass")


def first(phrases: Sequence[bytes], numbers: Iterable[int], text: bytes) -> int | None:
    """Return the first number whose phrase is in the text, or None."""
    for number in numbers:
        if phrases[number] in text:
            return number
    return None


def read_phrases(source: str) -> list[str]:
    """Read a phrase list: UTF-8, one phrase a line, blank lines and lines that begin with `#` left out.

    Raises: MissingError where it is not there, ConfigError where it holds no phrase or is not UTF-8.
    """
    shipped = source.startswith(SHIPPED_PREFIX)
    path = SHIPPED / f"{source.removeprefix(SHIPPED_PREFIX)}.txt" if shipped else Path(source).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (FileNotFoundError, IsADirectoryError):
        known = ", ".join(sorted(f"{SHIPPED_PREFIX}{found.stem}" for found in SHIPPED.glob("*.txt"))) or "none"
        raise MissingError(f"filter.phrase_files: no list {source}; give a file, or a shipped list ({known})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"filter.phrase_files: {path} is not UTF-8 ({error.reason} at byte {error.start})") from None
    phrases = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not phrases:
        raise ConfigError(f"filter.phrase_files: {path} holds no phrase; write one a line")
    return phrases


def list_digest(source: str) -> str:
    """Return the xxh3-128 of a phrase list; what it leaves out does not count."""
    return xxhash.xxh3_128_hexdigest("\n".join(read_phrases(source)).encode())


def _from_files(sources: Iterable[str]) -> Iterable[str]:
    for source in sources:
        yield from read_phrases(source)


def _prepare(phrase: str, *, robust: bool) -> bytes:
    if not phrase:
        raise ConfigError("filter.phrases: an empty phrase is in every output; take it out")
    prepared = canon(phrase) if robust else lower(phrase)
    if robust and not prepared.strip():
        raise ConfigError(f"filter.phrases: {phrase!r} is only punctuation, which phrase_match = 'robust' does not see")
    return prepared
