"""What early decisions saved, by the mean answer of each template."""

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
    assert tally.tokens_saved == {"skipped": 20 + 2 + 14, "held": 20, "aborted": 12}, "`new` has the mean of all"
    tally.check()
    assert tally.summary()["templates"]["long"] == {"kept": 2, "cap": 2, "phrase": 1, "length": 1}


def test_what_a_filled_quota_cost_is_no_candidate() -> None:
    tally = Tally()
    tally.add("kept", row("t", 1))
    tally.add("skipped", row("t", rule="quota"))
    tally.add("rejected", row("t", rule="quota"))
    assert (tally.asked, tally.candidates) == (3, 1)
