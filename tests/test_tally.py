"""What early decisions saved, by the mean answer of each template."""

import random
import threading
import time

import msgspec
import pytest

from engine import tally as module
from engine.rows import Outcome, Row
from engine.tally import SHOWN, Tally


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


def some_rows(rng: random.Random, *, templates: int, rows: int) -> list[tuple[Outcome, Row]]:
    """Return rows of templates of any size; some have no whole answer, some were only skipped."""
    found: list[tuple[Outcome, Row]] = []
    whole = [rng.random() < 0.6 for _ in range(templates)]
    for _ in range(rows):
        number = min(int(rng.expovariate(3 / templates)), templates - 1)
        one = row(f"t{number * 7919 % templates}", rng.randrange(300))
        what = rng.choice(("kept", "rejected", "failed") if whole[number] else ("skipped", "held", "aborted"))
        if rng.random() < 0.3:
            what = rng.choice(("skipped", "held", "aborted"))
        if what == "aborted":
            found.append(("rejected", msgspec.structs.replace(one, rule="phrase", aborted=True)))
        elif what in ("skipped", "held"):
            found.append(("skipped", row(one.template, rule="cap", held=what == "held")))
        else:
            rule = {"kept": "", "failed": "error"}.get(what, "length")
            found.append((what, msgspec.structs.replace(one, rule=rule)))  # type: ignore[arg-type]
    return found


def walked(tally: Tally) -> list[float]:
    """Return the tokens saved by a walk through all templates."""
    templates = list(tally.templates.values())
    whole = sum(one.whole for one in templates)
    mean = sum(one.whole_tokens for one in templates) / whole if whole else 0.0
    return [sum(part) for part in zip(*(one.saved(mean) for one in templates), strict=True)]


@pytest.mark.parametrize("seed", range(40))
def test_sums_that_are_kept_up_are_those_of_a_walk(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(module, "CHANGED", rng.choice([1, 3, 50, 10_000]))
    rows = some_rows(rng, templates=rng.choice([1, 3, 30, 200]), rows=rng.choice([5, 200, 2000]))
    asked, fresh = Tally(), Tally()
    for outcome, one in rows:
        asked.add(outcome, one)
        if rng.random() < 0.1:
            saved = list(asked.tokens_saved.values())
            assert saved == pytest.approx(walked(asked), abs=0.5 + 1e-3)
            by_size = sorted(asked.templates.items(), key=lambda item: -item[1].results.total())
            assert asked.largest() == sorted(by_size[:SHOWN])
    for outcome, one in rows:
        fresh.add(outcome, one)
    assert asked.summary() == fresh.summary()
    asked.check()


def test_another_thread_may_ask_while_rows_are_added() -> None:
    rows = some_rows(random.Random(1), templates=2000, rows=30_000)
    asked, fresh, over = Tally(), Tally(), threading.Event()

    def ask() -> None:
        while not over.is_set():
            asked.summary()

    thread = threading.Thread(target=ask)
    thread.start()
    for outcome, one in rows:
        asked.add(outcome, one)
    over.set()
    thread.join()
    for outcome, one in rows:
        fresh.add(outcome, one)
    assert asked.summary() == fresh.summary()


def test_asking_is_cheap_with_a_hundred_thousand_templates() -> None:
    tally, taken_s = Tally(), []
    for number in range(100_000):
        tally.add("kept", row(f"t{number}", 10))
    for number in range(5):
        tally.add("skipped", row(f"t{number}", rule="cap"))
        start = time.perf_counter()
        assert tally.summary()["tokens_saved"]["skipped"] == 10 * (number + 1)
        taken_s.append(time.perf_counter() - start)
    assert min(taken_s) < 0.02, "a walk takes 0.3 s, once a second on the event loop"
