"""What early decisions saved, by the mean answer of each template."""

import msgspec

from engine.rows import Row
from engine.tally import Tally


def row(template: str, tokens: int = 0, *, rule: str = "", aborted: bool = False, held: bool = False) -> Row:
    return Row("i", "", "o", template, "id", 0, "stop", output_tokens=tokens, rule=rule, aborted=aborted, held=held)


def test_tokens_saved_are_told_by_template_and_kind() -> None:
    tally = Tally()
    for tokens in (10, 30):
        tally.add("kept", row("long", tokens))
    tally.add("kept", row("short", 2))
    tally.add("skipped", row("long", rule="cap"))
    tally.add("skipped", row("short", rule="duplicate"))
    tally.add("skipped", row("long", rule="cap", held=True))
    tally.add("skipped", row("new", rule="leak"))
    tally.add("rejected", row("long", 8, rule="phrase", aborted=True))
    tally.add("rejected", row("long", 200, rule="length", aborted=True))
    mean = (10 + 30 + 20 + 200) // 4  # the one that was ended at 8 tokens would have had 20, as whole ones have
    assert tally.tokens_saved == {"skipped": mean + 2 + 14, "held": mean, "aborted": 12}, "`new` has the mean of all"
    tally.check()
    assert tally.summary()["templates"]["long"] == {"kept": 2, "cap": 2, "phrase": 1, "length": 1}


def test_what_a_filled_quota_cost_is_no_candidate() -> None:
    tally = Tally()
    tally.add("kept", row("t", 1))
    tally.add("skipped", row("t", rule="quota"))
    tally.add("rejected", row("t", rule="quota"))
    assert (tally.asked, tally.candidates) == (3, 1)


def test_a_prompt_that_is_not_asked_saves_all_its_samples_and_what_failures_cost() -> None:
    tally = Tally()
    tally.add("kept", msgspec.structs.replace(row("t", 10), sampled_tokens=80))
    tally.add("failed", msgspec.structs.replace(row("t", 10, rule="error"), sampled_tokens=40))
    tally.add("failed", row("t", rule="error"))
    tally.add("skipped", row("t", rule="cap"))
    assert tally.tokens_saved["skipped"] == 60, "one of the failures cost no tokens: the teacher refused it"
    assert tally.output_tokens == 120
