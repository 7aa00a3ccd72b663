"""Seeded rows to measure the filter with: what a teacher writes, with the faults that the filter is there for.

Rows of eight fields and about 640 bytes; outputs of 60 to 800 characters; 30% repeat an earlier row (one in twenty of
these with other white space around it); 4% hold a banned phrase; 2.5% have the wrong length; 12% hold letters beyond
ASCII; enough templates that a cap of 50 bites for the popular ones. The same seed writes the same bytes everywhere.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import orjson

from engine.config import RECIPE_PHRASES

REPEATS, SPACED, BANNED, ODD_LENGTH, BEYOND_ASCII = 0.30, 0.05, 0.04, 0.025, 0.12
ROWS_PER_TEMPLATE = 60
RECENT = 50_000
"""A repeat repeats one of so many latest rows."""
_COMMON = (
    "the of and to in is you that it he was for on are as with his they at be this have from or one had by word "
    "but not what all were we when your can said there use an each which she do how their if will up other about "
    "out many then them these so some her would make like him into time has look two more write go see number no "
    "way could people my than first water been call who oil its now find long down day did get come made may part "
    "over new sound take only little work know place year live me back give most very after thing our just name "
    "good sentence man think say great where help through much before line right too mean old any same tell boy "
    "follow came want show also around form three small set put end does another well large must big even such "
    "because turn here why ask went men read need land different home us move try kind hand picture again change "
    "off play spell air away animal house point page letter mother answer found study still learn should world "
    "language model request assistant information "
)
WORDS = tuple(_COMMON.split())


def write_rows(path: Path, count: int, *, seed: int = 1) -> None:
    """Write `count` rows as JSONL."""
    with path.open("wb", buffering=1 << 20) as file:
        for line in make_lines(count, seed=seed):
            file.write(line)


def write_variants(source: Path, target: Path, times: int) -> None:
    """Write rows several times over, each time with another number before the outputs: as many keys a row as there."""
    with target.open("wb", buffering=1 << 20) as file:
        for number in range(times):
            with source.open("rb") as lines:
                while chunk := lines.read(1 << 20):
                    chunk += lines.readline()
                    file.write(chunk.replace(b'"output":"', b'"output":"%d ' % number))


def make_lines(count: int, *, seed: int = 1) -> Iterator[bytes]:
    """Yield the lines of `count` rows."""
    chance = random.Random(seed)
    sentences = [" ".join(chance.choices(WORDS, k=chance.randint(5, 18))).capitalize() + "." for _ in range(20_000)]
    templates = max(4, count // ROWS_PER_TEMPLATE)
    recent: list[tuple[str, str]] = []
    for number in range(count):
        if recent and chance.random() < REPEATS:
            instruction, output = chance.choice(recent)
            if chance.random() < SPACED:
                output = f" {output}\n"
        else:
            instruction, output = _fresh(chance, sentences, templates)
            if len(recent) < RECENT:
                recent.append((instruction, output))
            else:
                recent[number % RECENT] = (instruction, output)
        row = {
            "id": f"{chance.getrandbits(128):032x}",
            "instruction": instruction,
            "input": "",
            "output": output,
            "template": instruction[:16],
            "finish_reason": "stop",
            "prompt_tokens": chance.randint(20, 90),
            "output_tokens": len(output) // 4,
        }
        yield orjson.dumps(row) + b"\n"


def _fresh(chance: random.Random, sentences: Sequence[str], templates: int) -> tuple[str, str]:
    # The square of a uniform draw: the first tenth of the templates gets a third of the rows.
    template = int(templates * chance.random() ** 2)
    instruction = f"Explain topic {template} as {chance.choice(sentences)}"
    length, parts, chars = chance.randint(60, 780), [], 0
    while chars < length:
        parts.append(chance.choice(sentences))
        chars += len(parts[-1]) + 1
    return instruction, _spoil(chance, " ".join(parts)[:length])


def _spoil(chance: random.Random, output: str) -> str:
    draw = chance.random()
    if draw < BANNED:
        phrase = chance.choice(RECIPE_PHRASES)
        output = f"{output[:30]} {chance.choice((phrase, phrase.upper(), phrase.capitalize()))} {output[30:]}"[:795]
    elif draw < BANNED + ODD_LENGTH:
        output = chance.choice(("", "ok", output * 14))
    if chance.random() < BEYOND_ASCII:
        output = output.replace("e", "\u00e9", 3).replace("a", "\u0436", 2)
    return output


def make_phrases(count: int) -> tuple[str, ...]:
    """Return the recipe's phrases and further ones up to `count`, of which the rows hold next to none."""
    chance = random.Random(count)
    phrases = list(RECIPE_PHRASES)
    while len(phrases) < count:
        phrase = " ".join(chance.choices(WORDS, k=5))
        if phrase not in phrases:
            phrases.append(phrase)
    return tuple(phrases[:count])
