"""The rules, in order: exact duplicate -> length -> phrase guard -> (optional rules) -> cap per template.

Promises the law of the filter: rows are judged once, in the order given; a row's key enters `seen` before the
later rules judge it; only a row that passed everything counts towards its template's cap. `watch` answers on a
partial text only where the finished row is certain to be rejected. No I/O, no clock, no vLLM.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping

import xxhash

from engine import config as configuration
from engine.counts import Counts
from engine.errors import ConfigError
from engine.phrases import PhraseGuard
from engine.rows import KEPT, Row, Verdict
from engine.rules import Draft, OptionalRules
from engine.seen import SeenKeys

PREFIX_WORDS = 4
"""Words of the instruction that name a template with `cap_key = "prefix"` (the recipe's)."""
SEPARATOR = "\x1f"
"""Stands between the texts of a key."""
RULES = ("duplicate", "length", "phrase", "cap")
"""Names of the rules, in the order in which they judge."""

SHARE_FROM = 100
"""Kept rows from which `cap_share` counts: before, every row is a large share."""
QUOTA = "quota"
"""What rows are filed under whose template has all the rows that the run wants of it; no rule has judged them."""
DUPLICATE = Verdict("duplicate", "same text as an earlier row")


class Filter:
    """Judges rows one by one, in order."""

    def __init__(self, settings: configuration.Filter, quotas: Mapping[str, int] | None = None) -> None:
        """Judge by these settings; `quotas`: rows of each template after which none of it is judged any more."""
        self.settings = settings
        self.quotas = quotas or {}
        self.of_quota: Counter[str] = Counter()
        self.open_quotas = len(self.quotas)
        self.seen = SeenKeys()
        self.caps = Counts()
        self.kept = 0
        self.content = Content(settings)
        self.optional = self.content.optional

    def judge(
        self,
        instruction: str,
        input_text: str,
        output: str,
        template: str,
        *,
        finish_reason: str = "",
        row_id: str = "",
    ) -> Verdict:
        """Return the verdict on the next row, and remember it."""
        filled = self.quota(template)
        if filled is not None:
            return filled
        key = self.key(instruction, input_text, output)
        if key in self.seen:
            return DUPLICATE
        self.seen.add(key)
        verdict = self.content.judge(output)
        if verdict is None and self.optional:
            verdict = self.optional.finish(Draft(instruction, output, input_text, template, finish_reason, row_id))
        verdict = verdict or self.take_place(self.cap_key(instruction, template))
        if verdict.kept:
            self._count(template)
        return verdict

    def reaches(self, draft: Draft) -> bool:
        """Say whether a row may yet come before the optional rules when it is judged; it is not remembered."""
        if self.quota(draft.template) is not None or self.content.judge(draft.output) is not None:
            return False
        return self.key(draft.instruction, draft.input, draft.output) not in self.seen

    def quota(self, template: str) -> Verdict | None:
        """Return what becomes of a template's rows once its quota is filled, or None while it is not."""
        wanted = self.quotas.get(template)
        if wanted is None or self.of_quota[template] < wanted:
            return None
        return Verdict(QUOTA, f"{wanted} rows of template {template!r} are kept, as many as are wanted")

    def _count(self, template: str) -> None:
        wanted = self.quotas.get(template)
        if wanted is not None:
            self.of_quota[template] += 1
            self.open_quotas -= self.of_quota[template] == wanted

    def take_place(self, cap_key: str) -> Verdict:
        """Return KEPT and count the row, or the rejection by its template's cap."""
        if self.full(cap_key):
            return Verdict("cap", self.cap_reason(cap_key))
        count, share = self.caps[cap_key], self.settings.cap_share
        if 0 < share < (count + 1) / (self.kept + 1) and self.kept >= SHARE_FROM:
            return Verdict(
                "cap", f"{cap_key!r} would have more than {share:.0%} of the {self.kept + 1} rows kept by then"
            )
        self.caps[cap_key] = count + 1
        self.kept += 1
        return KEPT

    def full(self, cap_key: str) -> bool:
        """Say whether a template has all the rows that it may ever have."""
        return 0 < self.settings.cap_per_template <= self.caps[cap_key]

    def cap_reason(self, cap_key: str) -> str:
        """Return the sentence that a row over its template's cap carries."""
        return f"{self.settings.cap_per_template} rows of {cap_key!r} are kept already"

    def cap_key(self, instruction: str, template: str) -> str:
        """Return what the cap counts this row under."""
        if self.settings.cap_key == "template":
            return template
        return " ".join(instruction.split(None, PREFIX_WORDS)[:PREFIX_WORDS])

    def key(self, instruction: str, input_text: str, output: str) -> bytes:
        """Return the 128-bit key of exact duplicates: xxh3 of the stripped fields."""
        fields = {"instruction": instruction, "input": input_text, "output": output}
        ignore = self.settings.dedup_ignore
        return text_key([_normalised(fields[name], ignore) for name in self.settings.dedup_on])

    def judge_aborted(self, instruction: str, input_text: str, verdict: Verdict) -> Verdict:
        """Return the verdict on the next row where its generation was ended early with `verdict`.

        Its output is not known whole. A later row with the same output would be rejected for the same reason, so
        its key is only needed where the key does not look at the output.
        """
        if "output" in self.settings.dedup_on:
            return verdict
        key = self.key(instruction, input_text, "")
        if key in self.seen:
            return DUPLICATE
        self.seen.add(key)
        return verdict

    def restore(self, row: Row) -> None:
        """Take in a row that was judged before, so that a resumed run goes on as if it had not stopped."""
        rule = row.rule
        if rule == QUOTA:
            return
        if rule != "duplicate" and not (row.aborted and "output" in self.settings.dedup_on):
            self.seen.add(self.key(row.instruction, row.input, row.output))
        draft = self.shown(row)
        if draft is not None:
            # A rule that remembers rows is shown those that reached it; its verdict is known.
            self.optional.finish(draft)
        if not rule:
            self.caps[self.cap_key(row.instruction, row.template)] += 1
            self.kept += 1
            self._count(row.template)

    def shown(self, row: Row) -> Draft | None:
        """Return a row that was judged before as the optional rules saw it, or None where they did not."""
        if not self.optional or row.rule in (*RULES[:3], QUOTA) or row.aborted:
            return None
        return Draft(row.instruction, row.output, row.input, row.template, row.finish_reason, row.id)


class Content:
    """The rules that look at the output alone; they need no state, so they may answer on a partial text.

    `judge` asks length and phrases; `watch` also asks what the optional rules know of an unfinished output.
    """

    def __init__(self, settings: configuration.Filter) -> None:
        self._min_chars = settings.min_chars
        self._max_chars = settings.max_chars
        if self._min_chars > self._max_chars:
            raise ConfigError("filter.min_chars is above filter.max_chars, so no row can be kept; lower it")
        if not settings.dedup_on:
            raise ConfigError(
                "filter.dedup_on is empty, so that every row would be a duplicate of the first; all three fields "
                "(instruction, input, output) tell apart the most"
            )
        self.guard = PhraseGuard(settings)
        self.optional = OptionalRules(settings.rules, max_chars=settings.max_chars)
        # The key of an unfinished output is not known where it looks at the output. So whatever is decided early must
        # hold for every output with the same key: for other space around it, and that only.
        keyed = "output" in settings.dedup_on
        self.watches = not (keyed and settings.dedup_ignore)
        self._strip = keyed
        self._early_phrases = not (keyed and settings.phrase_chars)

    def judge(self, output: str) -> Verdict | None:
        """Return why a finished output is rejected, or None."""
        if not self._min_chars <= len(output) <= self._max_chars:
            return Verdict("length", self.length_reason(len(output)))
        return self._phrase(self.guard.find(output))

    def watch(self, partial: str) -> Verdict | None:
        """Return the rejection that an unfinished output is certain to get, or None."""
        if not self.watches:
            return None
        text = partial.strip() if self._strip else partial
        if len(text) > self._max_chars:
            return Verdict("length", f"more than {self._max_chars} characters")
        number = self.guard.watch(text) if self._early_phrases else None
        return self.optional.feed(partial) if number is None and self.optional else self._phrase(number)

    def length_reason(self, chars: int) -> str:
        """Return the sentence that a row of the wrong length carries."""
        return f"{chars} characters, not {self._min_chars} to {self._max_chars}"

    def _phrase(self, number: int | None) -> Verdict | None:
        return None if number is None else Verdict("phrase", self.guard.reason(number))


def _normalised(text: str, ignore: tuple[str, ...]) -> str:
    """Return a stripped text without the differences that do not count."""
    if "form" in ignore:
        text = unicodedata.normalize("NFKC", text)
    if "case" in ignore:
        text = text.casefold()
    return " ".join(text.split()) if "space" in ignore else text.strip()


def text_key(parts: list[str]) -> bytes:
    """Return the 128-bit key of stripped texts; texts with other boundaries get other keys."""
    text = SEPARATOR.join(parts)
    if any(SEPARATOR in part for part in parts[:-1]):
        # No stripped text begins with the separator (it counts as white space), so this form is nobody else's.
        text = ",".join(str(len(part)) for part in parts) + SEPARATOR * len(parts) + text
    return xxhash.xxh3_128_digest(text.encode("utf-8", "surrogatepass"))
