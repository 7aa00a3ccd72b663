"""The optional rules. A rule is a plain object:

    class NoQuestion:
        \"\"\"Rejects an answer that asks back.\"\"\"

        def feed(self, partial: str) -> str | None:
            return None  # it cannot be sure before the end

        def finish(self, draft: Draft) -> str | None:
            return "ends with a question" if draft.output.rstrip().endswith("?") else None

`finish` gives the reason why a finished row is rejected, or None. `feed` gives one for an unfinished output, only
where the finished row is certain to be rejected, whatever comes. A rule that remembers rows does so in `finish`,
which is called once for each row that the rules before it let pass, in order, and again when a run is resumed.

Three things are optional. A rule of your own with `remembers = False` on its class says that it remembers no rows.
Behind a rule that may remember nothing is decided early, neither by `feed` nor by the cap: a row that is not finished
would never be remembered, and a later row could be kept for it. `refuse(instruction, input)` gives a reason that the
prompt alone decides, so that it is never asked. Neither `feed` nor `refuse` may depend on white space around a text.

`prepare(drafts)` does what is costly about some rows before their `finish`, where it depends on each row alone: up to
some thousands at once, in any order, in another thread than the one that calls `finish`, though never while it does. A
row may be prepared and never finished, or finished without having been prepared, and `finish` must answer the same. So
`prepare` only saves time, and what it keeps must be bounded.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import msgspec

from engine import rule_settings as settings
from engine.errors import ConfigError
from engine.rows import Verdict


class Draft(msgspec.Struct, gc=False):
    """A finished row that has no verdict yet."""

    instruction: str
    output: str
    input: str = ""
    template: str = ""
    finish_reason: str = ""
    id: str = ""


@runtime_checkable
class RowRule(Protocol):
    """What every rule offers."""

    def feed(self, partial: str) -> str | None: ...

    def finish(self, draft: Draft) -> str | None: ...


REMEMBERING = (settings.NearDuplicate, settings.Semantic, settings.Own)
"""Rules whose verdict may depend on the rows that they were shown; of your own rule it is not known.

One of your own may say that it does not: `remembers = False`."""


QUIET = (settings.NearDuplicate, settings.Semantic, settings.Leak)
"""Rules that know nothing of an unfinished output, and hold much."""


AT_ONCE = 64
"""Rows that a run prepares in one go: a second signal, which stops it at once, waits for no more."""


@runtime_checkable
class Refusing(Protocol):
    """A rule that may know from the prompt alone."""

    def refuse(self, instruction: str, input_text: str) -> str | None: ...


@runtime_checkable
class Bounded(Protocol):
    """A rule that decides earlier where it knows how long a kept output can get."""

    max_chars: int | None


@runtime_checkable
class Preparing(Protocol):
    """A rule that can do what is costly about rows before they are finished."""

    def prepare(self, drafts: Sequence[Draft]) -> None: ...


class OptionalRules:
    """The optional rules of a run, in order."""

    def __init__(self, chosen: Sequence[settings.Rule], *, max_chars: int | None = None) -> None:
        """Build the rules; an output of more than `max_chars` characters is rejected before they see it."""
        self._rules = [(_name(rule), make_rule(rule)) for rule in chosen]
        remembering = [
            isinstance(one, REMEMBERING) and getattr(rule, "remembers", True)
            for one, (_, rule) in zip(chosen, self._rules, strict=True)
        ]
        self.remembers = any(remembering)
        self._early = self._rules[: remembering.index(True) + 1] if self.remembers else self._rules
        self._refusing = [(name, rule) for name, rule in self._early if isinstance(rule, Refusing)]
        self._preparing = self._sieved(chosen)
        for _, rule in self._rules:
            if isinstance(rule, Bounded):
                rule.max_chars = max_chars

        quiet = [rule for one, (_, rule) in zip(chosen, self._rules, strict=True) if isinstance(one, QUIET)]
        self._speaking = [(name, rule) for name, rule in self._early if rule not in quiet]

    def __getstate__(self) -> dict[str, Any]:
        """Send to a teacher's process only what `feed` needs there, and no memory of a million rows."""
        speaking = self._speaking
        return {**self.__dict__, "_rules": speaking, "_early": speaking, "_refusing": [], "_preparing": []}

    def __bool__(self) -> bool:
        return bool(self._rules)

    def finish(self, draft: Draft) -> Verdict | None:
        """Return the first rejection of a finished row, or None."""
        for name, rule in self._rules:
            reason = rule.finish(draft)
            if reason is not None:
                return Verdict(name, reason)
        return None

    def feed(self, partial: str) -> Verdict | None:
        """Return a rejection that an unfinished output is certain to get, or None."""
        for name, rule in self._early:
            reason = rule.feed(partial)
            if reason is not None:
                return Verdict(name, reason)
        return None

    def refuse(self, instruction: str, input_text: str) -> Verdict | None:
        """Return a rejection that the prompt alone makes certain, or None."""
        for name, rule in self._refusing:
            reason = rule.refuse(instruction, input_text)
            if reason is not None:
                return Verdict(name, reason)
        return None

    @property
    def prepares(self) -> bool:
        """Say whether there is anything to prepare."""
        return bool(self._preparing)

    def prepare(self, drafts: Sequence[Draft]) -> None:
        """Let the rules do what is costly about rows that are about to be finished."""
        for rule, before in self._preparing:
            rule.prepare([draft for draft in drafts if all(other.finish(draft) is None for other in before)])

    def _sieved(self, chosen: Sequence[settings.Rule]) -> list[tuple[Preparing, list[RowRule]]]:
        """Return the rules that prepare, each with those before it whose verdict depends on the row alone."""
        found: list[tuple[Preparing, list[RowRule]]] = []
        before: list[RowRule] = []
        for one, (_, rule) in zip(chosen, self._rules, strict=True):
            if isinstance(rule, Preparing):
                found.append((rule, list(before)))
            elif not isinstance(one, REMEMBERING):
                before.append(rule)
        return found

    def names(self) -> list[str]:
        """Return what rejected rows are filed under."""
        return [name for name, _ in self._rules]


def make_rule(chosen: settings.Rule) -> RowRule:
    """Build one rule from its settings.

    Raises: ConfigError or MissingError where it cannot be built.
    """
    if isinstance(chosen, settings.Own):
        return _own(chosen)
    module, name = _BUILDERS[type(chosen)]
    build: Callable[[Any], RowRule] = getattr(importlib.import_module(f"engine.rules.{module}"), name)
    return build(chosen)


_BUILDERS: dict[type, tuple[str, str]] = {
    settings.Blank: ("text", "BlankRule"),
    settings.Truncated: ("text", "TruncatedRule"),
    settings.Echo: ("text", "EchoRule"),
    settings.Repetition: ("repetition", "RepetitionRule"),
    settings.NearDuplicate: ("near", "NearDuplicateRule"),
    settings.Semantic: ("semantic", "SemanticRule"),
    settings.Leak: ("leak", "LeakRule"),
    settings.Format: ("form", "FormatRule"),
    settings.Tokens: ("tokens", "TokensRule"),
}


def _name(chosen: settings.Rule) -> str:
    return chosen.name if isinstance(chosen, settings.Own) else str(chosen.__struct_config__.tag)


def _own(chosen: settings.Own) -> RowRule:
    where = f"filter.rules: own rule {chosen.path!r}"
    module, _, name = chosen.path.partition(":")
    if not name:
        raise ConfigError(f"{where}: write it as module:Class")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{where} cannot be imported ({error}); is its folder on PYTHONPATH?") from error
    try:
        rule = kind(**chosen.options)
    except TypeError as error:
        raise ConfigError(f"{where} does not take its options ({error})") from error
    if not isinstance(rule, RowRule):
        raise ConfigError(f"{where} has no feed(partial) and finish(draft); see engine/rules/__init__.py")
    return rule
