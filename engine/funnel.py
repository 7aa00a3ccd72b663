"""The funnel: one line that says how many rows each rule left, and a warning where the yield is odd."""

from __future__ import annotations

from collections.abc import Mapping

from engine.filter import QUOTA

STAGES = {"duplicate": "dedup", "length": "length", "phrase": "phrases", "cap": "cap"}
"""Rule -> its name in the line, in the order of the rules."""
HIGH_YIELD = 0.95
LOW_YIELD = 0.30
"""Shares of kept rows outside of which something is usually wrong. Source: the original recipe."""


def funnel_line(asked: int, lost: Mapping[str, int]) -> str:
    """Return `raw 2000 -> dedup 1731 -> length 1702 -> phrases 1655 -> cap 1204`.

    `lost` counts the rows that each rule cost; rules beyond the four stand before the cap.
    """
    first = [QUOTA] if lost.get(QUOTA) else []
    names = [*first, *(rule for rule in STAGES if rule != "cap"), *sorted(lost.keys() - STAGES.keys() - {QUOTA}), "cap"]
    line, left = f"raw {asked}", asked
    for rule in names:
        left -= lost.get(rule, 0)
        line += f" -> {STAGES.get(rule, rule)} {left}"
    return line


def yield_warning(asked: int, kept: int) -> str | None:
    """Return a sentence where more than 95% or less than 30% of the rows are kept, else None."""
    if not asked:
        return None
    share = kept / asked
    if share > HIGH_YIELD:
        return (
            f"warning: {share:.0%} of the rows are kept, which is unusually many; the filter may not fit the data "
            "(phrases in another language, caps too high), or the prompts are very uniform: read some rows"
        )
    if share < LOW_YIELD:
        return (
            f"warning: only {share:.0%} of the rows are kept; usually the prompts repeat (few slot values), the "
            "teacher refuses or rambles (prompt, max_tokens), or a cap is low for so many prompts: see rejected-*.jsonl"
        )
    return None
