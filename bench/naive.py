"""The filter as four list passes over all rows: what `potstill bench filter` measures against, and the law it keeps.

Written from the description of the original recipe: read the file and every line of it with json.loads, drop
duplicates through a set of stripped (instruction, output) tuples, keep outputs of 5 to 800 characters, drop outputs
that hold a banned phrase in any case, keep at most 50 rows that begin with the same four words, write what
json.dumps makes of the rest. `lean` reads and writes line by line instead, which takes a third of the memory.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MIN_CHARS, MAX_CHARS, CAP, WORDS = 5, 800, 50, 4


def naive_filter(source: Path, target: Path, phrases: Sequence[str], *, lean: bool = False) -> dict[str, int]:
    """Filter a JSONL file into another and return how many rows each pass left."""
    if lean:
        with source.open(encoding="utf-8", newline="\n") as file:
            rows = [json.loads(line) for line in file]
    else:
        rows = [json.loads(line) for line in source.read_text(encoding="utf-8").split("\n") if line]
    passes = naive_passes(rows, phrases)
    if lean:
        with target.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in passes["cap"])
    else:
        lines = [json.dumps(row, ensure_ascii=False) for row in passes["cap"]]
        target.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    return {"raw": len(rows), **{name: len(left) for name, left in passes.items()}}


def naive_passes(rows: list[dict[str, Any]], phrases: Sequence[str], cap: int = CAP) -> dict[str, list[dict[str, Any]]]:
    """Return the rows that each pass leaves."""
    seen: set[tuple[str, str]] = set()
    unique = []
    for row in rows:
        key = (row["instruction"].strip(), row["output"].strip())
        if key not in seen:
            seen.add(key)
            unique.append(row)
    sized = [row for row in unique if MIN_CHARS <= len(row["output"]) <= MAX_CHARS]
    banned = [phrase.lower() for phrase in phrases]
    clean = [row for row in sized if not any(phrase in row["output"].lower() for phrase in banned)]
    counts: Counter[str] = Counter()
    capped = []
    for row in clean:
        template = " ".join(row["instruction"].split()[:WORDS])
        if counts[template] < cap:
            counts[template] += 1
            capped.append(row)
    return {"duplicate": unique, "length": sized, "phrase": clean, "cap": capped}
