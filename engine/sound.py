"""Sound: which early decisions cannot change what is kept, under some rules. Knows settings; takes no decision."""

from __future__ import annotations

from engine.filter import Filter


class Sound:
    """What may be decided about a prompt before it is asked.

    A prompt that is not asked never gets its key into the duplicates' set, and no rule that remembers rows sees it. So
    it must be certain that another row with its key would be rejected too, and that no such rule would have seen it.
    """

    def __init__(self, rules: Filter, *, disjoint: bool, plain: bool) -> None:
        """`disjoint`: no two templates make the same text; `plain`: no prompt has an input."""
        settings = rules.settings
        told_apart = "instruction" in settings.dedup_on and not settings.dedup_ignore
        by_template = settings.cap_key == "template"
        self.caps = (
            settings.early
            and settings.cap_per_template > 0
            and told_apart
            and not rules.optional.remembers
            and (disjoint or not by_template)
        )
        """A template whose cap is full is not asked."""
        keyed = told_apart and (plain or "input" in settings.dedup_on)
        self.refuse = settings.early and bool(rules.optional) and keyed
        """A prompt that a rule refuses, whatever the answer, is not asked."""
