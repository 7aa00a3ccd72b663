"""Goal: when a run has enough, when it may ask no more, and how the end is told.

Promises that both follow from the committed rows alone, so that every run of one configuration ends at the same row.
Knows counts and settings; nothing of prompts, teachers or disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import ceil, sqrt
from typing import Literal

from engine import config as configuration
from engine.config import Config
from engine.filter import Filter

CANDIDATES_PER_ROW = 20
"""Budget for each wanted row where `output.candidates` is not set: a yield below 5% is a mistake, not a mixture."""
CANDIDATES_AT_LEAST = 1000
EXPECTED = (9, 10)
"""Before the first answers, so many of so many are taken to be kept: ten are soon outvoted."""
SPARE = 2.0
"""Standard deviations above the mean: one time in forty it is not enough, and more are asked."""
Ending = Literal["accepted", "quotas", "candidates", "prompts"]
"""Why a run is over."""


class Goal:
    """What a run is to reach, and what it may spend."""

    def __init__(self, output: configuration.Output, left: Callable[[int], Iterable[str]] | None = None) -> None:
        """`left` returns the templates that may have a prompt after one that was offered, by its index."""
        self.accepted = output.accepted
        self.quotas = output.quotas
        self._left = left
        wanted = output.accepted or sum(output.quotas.values())
        default = CANDIDATES_PER_ROW * wanted + CANDIDATES_AT_LEAST if wanted else None
        self.candidates = output.candidates or default

    def barren(self, rules: Filter, index: int) -> bool:
        """Say whether no prompt after this one can become a row: all that is wanted of its template is kept."""
        return self._left is not None and all(rules.quota(name) is not None for name in self._left(index))

    def ending(self, rules: Filter, *, kept: int, candidates: int) -> Ending | None:
        """Return why a run with these counts is over, or None."""
        if self.accepted is not None and kept >= self.accepted:
            return "accepted"
        if self.accepted is None and self.quotas and not rules.open_quotas:
            return "quotas"
        if self.candidates is not None and candidates >= self.candidates:
            return "candidates"
        return None

    def enough(self, kept: int, *, answered: int, passed: int) -> int | None:
        """Return how many more prompts will probably do for `accepted`, None without it.

        By `answered` prompts of which `passed` were kept. The number of prompts that m rows take, each with probability
        p, has mean m / p and variance m (1 - p) / p^2. Source: the negative binomial distribution.
        """
        if self.accepted is None:
            return None
        missing = max(0, self.accepted - kept)
        share = (passed + EXPECTED[0]) / (answered + EXPECTED[1])
        return ceil((missing + SPARE * sqrt(missing * (1 - share))) / share)

    def prompts(
        self, first: int, kept: int, of_template: Mapping[str, int], *, candidates: int, count: int | None
    ) -> int | None:
        """Return how many prompts the run will take, of the `count` that there are, None where that is not known.

        By its `first` prompts: so many were kept, in all and of templates with a quota, and the budget of candidates
        counts so many of them.
        """
        found = [] if count is None else [count]
        if self.candidates is not None:
            found.append(_taken(self.candidates, candidates, first))
        if self.accepted is not None:
            found.append(_taken(self.accepted, kept, first))
        elif self.quotas:
            found.append(max(_taken(wanted, of_template.get(name, 0), first) for name, wanted in self.quotas.items()))
        return min(found, default=None)

    def shortfall(self, ending: Ending, kept: int, of_quota: Mapping[str, int], *, more: str) -> str | None:
        """Return the sentence for a run that ended before its goal, or None; `more` says how it gets more prompts."""
        missing = [
            f"{of_quota.get(name, 0):,} of {wanted:,} rows of {name!r}"
            for name, wanted in self.quotas.items()
            if self.accepted is None and of_quota.get(name, 0) < wanted
        ]
        if self.accepted is not None and kept < self.accepted:
            missing = [f"{kept:,} of {self.accepted:,} rows"]
        if not missing:
            return None
        if ending == "candidates":
            assert self.candidates is not None
            why = f"the budget of {self.candidates:,} candidates ran out; see where rows are lost with potstill "
            why += "explain, then raise output.candidates and run the same command again to go on"
        else:
            why = f"the prompts ran out; {more}"
        return f"only {', '.join(missing)}: {why}"


def way_on(settings: Config, *, asked: int, count: int | None) -> str:
    """Return what to do about prompts that ran out after so many were asked, of the `count` that the settings allow."""
    prompts, sampling = settings.prompts, settings.sampling
    greedy = sampling.temperature == 0
    if prompts.file:
        # A count that the file cannot fill is cut to its lines; one that it fills exactly looks like any other.
        if prompts.count is None or count is None or count < prompts.count * sampling.rows_per_prompt:
            return "every line of prompts.file is asked; start another run with more lines, with its own --out"
        rest = "if prompts.file has more lines; else start another run with more lines, with its own --out"
    elif count is None or asked < count:
        return (
            "at temperature 0 no combination of slots is asked twice, and those that could help are used up; start "
            "another run with wider slots or a higher sampling.temperature, with its own --out"
        )
    else:
        rest = "to go on"
        rest += ", as far as there are combinations of slots: at temperature 0 none is asked twice" if greedy else ""
    return f"raise prompts.count and run the same command again {rest}"


def _taken(wanted: int, had: int, first: int) -> int:
    """Return how many prompts it takes to have so many, by the first; where these have none, one more will be it."""
    return ceil(wanted * max(first, 1) / max(had, 1))
