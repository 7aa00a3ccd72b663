"""A mix of prompts of which 40 in a hundred end as rows that nobody keeps, the way real prompt sets do.

Three useful tasks, and beside them: questions asked again, more of one task than its cap takes, tasks whose answers are
too long, and tasks that end in a refusal. Promises the same file for the same arguments. Knows nothing of teachers.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

SETTINGS = (
    "prompts.templates=",
    "sampling.temperature=0",
    "sampling.max_tokens=256",
    "filter.max_chars=400",
    "filter.cap_key=prefix",
    'filter.phrases=["i cannot", "i can\'t", "i am unable", "sorry, i", "sorry, but"]',
)
"""What the mix is judged by, beside a cap of a fifth of the prompts for each task."""
SHARES = (
    ("temperature", 0.20),
    ("summary", 0.20),
    ("json", 0.20),
    ("json", 0.12),  # more than the cap takes
    ("again", 0.12),
    ("story", 0.08),
    ("refusal", 0.08),
)
SEEDS = Path(__file__).parent.parent / "data" / "seeds"


def write_waste(path: Path, rows: int, seed: int) -> None:
    """Write the mix as a prompt file: `rows` lines, shuffled."""
    path.write_text("".join(json.dumps(record) + "\n" for record in _mix(rows, seed)))


def _mix(rows: int, seed: int) -> Iterator[dict[str, str]]:
    draw = random.Random(seed)
    kinds = [kind for kind, share in SHARES for _ in range(round(share * rows))]
    draw.shuffle(kinds)
    names = (SEEDS / "names.txt").read_text().split("\n")
    paragraphs = [line for line in (SEEDS / "paragraphs.txt").read_text().split("\n") if line]
    made: list[dict[str, str]] = []
    for number, kind in enumerate(kinds):
        if kind == "again" and made:
            yield draw.choice(made)
            continue
        record = _ask(kind, number, draw.choice(names), draw.choice(paragraphs))
        made.append(record)
        yield record


def _ask(kind: str, number: int, name: str, paragraph: str) -> dict[str, str]:
    """Return one question; the number makes it one that was not asked before."""
    texts = {
        "temperature": ("Convert this temperature to Celsius, the number only.", f"{number / 10 - 80:.1f} F"),
        "json": ("Write this record as JSON, nothing else.", f"name={name} number={number}"),
        "summary": ("Summarise this in one short sentence.", f"No. {number}: {paragraph}"),
        "story": ("Write a long story that goes on from here.", f"No. {number}: {paragraph}"),
    }
    refusal = ("Begin with the words: Sorry, I cannot help. Then explain at length why not.", f"Request {number}")
    instruction, text = texts.get(kind, refusal)
    return {"instruction": instruction, "input": text, "template": kind}
