"""The law of the filter: the kept rows are the same with early decisions on and off, in any order of answers."""

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steering import Replicas, drive

from engine import rule_settings
from engine.config import Filter as FilterSettings
from engine.config import Output
from engine.filter import Filter
from engine.goal import Goal
from engine.rows import Completion, Prompt
from engine.steer import Committed, Steering

GOOD = [f"answer {number}" for number in range(6)]
LOOP = "on and on and " * 12
FAMILIES = [
    GOOD,
    ["answer 1", " answer 1 ", "ANSWER 1", "answer  1", "answer 1: it is so, and it stays so"],
    ["x", "", "Sorry, I cannot", "I don't know, fine", "one answer, sorry, i will not"],
    ["so, sorry, i will", "so, sorry,  i will", "So, SORRY, i will"],
    ["sorry, i will", " \n" * 6 + "sorry, i will", "sorry, i will "],
    ["far too long " * 14, "y" * 160, "y" * 160 + " \n", "Y" * 160],
    [LOOP, LOOP[:90], "x " * 18 + "x"],
    ["a fine answer", "a fine answer!", "fine! answer", "a fine answer, of course"],
]
INSTRUCTIONS = [
    "Say a b c one",
    "Say a b c two",
    "Say a b d one",
    "Tell",
    "Tell me",
    "Tell me all of it now",
    "tell me",
]
INSTRUCTIONS += ["Tell\n\nthis", " Tell me"]
INPUTS = ["", "", "this", "that"]
HELD_OUT = '{"instruction": "Tell me"}\n{"instruction": "Say a b c two", "input": "this"}\n'
ALL_RULES = (
    rule_settings.Repetition(words=2),
    rule_settings.Own(path="steering:Remembering"),
    rule_settings.Own(path="steering:Shouting"),
    rule_settings.Blank(),
)
FIELDS = [("instruction", "output"), ("instruction",), ("output",), ("instruction", "input", "output")]
FIELDS += [("instruction", "input"), ("input",)]


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("steer") / "held-out.jsonl"
    path.write_text(HELD_OUT)
    return str(path)


def prompts_of(questions: list[int], templates: list[int], inputs: list[str] | None = None) -> list[Prompt]:
    return [
        Prompt(index=i, id=str(i), template=f"t{t}", instruction=INSTRUCTIONS[q], input=inputs[i] if inputs else "")
        for i, (q, t) in enumerate(zip(questions, templates, strict=True))
    ]


def answers_of(prompts: list[Prompt], *, greedy: bool, failures: bool, rng: random.Random) -> dict[str, Completion]:
    outputs = [text for family in rng.sample(FAMILIES, rng.randint(1, 4)) for text in family]
    by_question: dict[tuple[str, str], str] = {}
    answers: dict[str, Completion] = {}
    for prompt in prompts:
        text = rng.choice(outputs)
        if greedy:
            text = by_question.setdefault((prompt.template, prompt.question), text)
        error = "no answer" if failures and rng.random() < 0.2 else ""
        answers[prompt.id] = Completion(id=prompt.id, text="" if error else text, finish_reason="stop", error=error)
    return answers


def run(
    prompts: list[Prompt],
    answers: dict[str, Completion],
    rules: FilterSettings,
    output: Output,
    *,
    rng: random.Random,
    **known: bool,
) -> list[Committed]:
    filter_, goal = Filter(rules, output.quotas), Goal(output)
    steering = Steering(filter_, goal=goal, **known)
    return drive(steering, prompts, Replicas(rng.randint(1, 4), answers, filter_, rng), rng)


def test_the_law(held_out: str) -> None:
    chosen = st.lists(st.sampled_from([*ALL_RULES, rule_settings.Leak(files=(held_out,))]), unique_by=repr, max_size=4)

    @settings(max_examples=1500, deadline=None)
    @given(
        size=st.integers(1, 60),
        rules=st.builds(
            FilterSettings,
            max_chars=st.sampled_from([40, 160]),
            phrase_chars=st.sampled_from([0, 12]),
            phrase_match=st.sampled_from(["substring", "robust"]),
            cap_per_template=st.integers(0, 4),
            cap_key=st.sampled_from(["prefix", "template"]),
            cap_share=st.just(0.0),
            dedup_on=st.sampled_from(FIELDS),
            dedup_ignore=st.sampled_from([(), (), ("case",), ("space",), ("case", "space", "form")]),
            rules=chosen.map(tuple),
        ),
        output=st.builds(
            Output,
            accepted=st.none() | st.integers(1, 5),
            quotas=st.dictionaries(st.sampled_from(["t0", "t1"]), st.integers(1, 4)),
            candidates=st.none() | st.integers(1, 40),
        ),
        greedy=st.booleans(),
        one_template_each=st.booleans(),
        plain=st.booleans(),
        failures=st.booleans(),
        seed=st.integers(0, 10**6),
    )
    def law(
        size: int,
        rules: FilterSettings,
        output: Output,
        greedy: bool,
        one_template_each: bool,
        plain: bool,
        failures: bool,
        seed: int,
    ) -> None:
        rng = random.Random(seed)
        asked = rng.sample(range(len(INSTRUCTIONS)), rng.randint(1, len(INSTRUCTIONS)))
        questions = [rng.choice(asked) for _ in range(size)]
        own = {text: number for number, text in enumerate(map(str.strip, INSTRUCTIONS))}
        templates = [own[INSTRUCTIONS[q].strip()] if one_template_each else rng.randint(0, 1) for q in questions]
        prompts = prompts_of(questions, templates, [] if plain else [rng.choice(INPUTS) for _ in questions])
        answers = answers_of(prompts, greedy=greedy, failures=failures, rng=rng)
        known = {"greedy": greedy, "disjoint": one_template_each, "plain": plain}

        def ends(early: bool) -> tuple[list[tuple[int, str]], int]:
            changed = msgspec.structs.replace(rules, early=early)
            result = run(prompts, answers, changed, output, rng=rng, **known)
            assert [c.prompt.index for c in result] == list(range(len(result))), "committed in prompt order"
            kept = [(c.prompt.index, c.completion.text) for c in result if c.outcome == "kept"]
            return kept, len(result)

        assert ends(True) == ends(False)

    law()


def steering_of(rules: FilterSettings, output: Output | None = None, **known: Any) -> Steering:
    output = output or Output()
    known = {"greedy": False, "disjoint": True, "plain": True, **known}
    return Steering(Filter(rules, output.quotas), goal=Goal(output), **known)


def fine(name: str) -> Completion:
    return Completion(id=name, text="fine, " + name, finish_reason="stop")


def test_a_full_template_is_skipped_and_others_go_on() -> None:
    steering = steering_of(FilterSettings(cap_per_template=2, cap_key="template", phrases=()))
    for prompt in prompts_of([0, 1, 2, 3, 4], [0, 0, 0, 0, 1]):
        steering.offer(prompt)
    assert [p.id for p in steering.take(9)] == ["0", "1", "4"], "two places of t0, and t1"
    for name in ("4", "1", "0"):
        steering.finish(fine(name))
    committed = list(steering.commit())
    outcomes = [(c.prompt.id, c.outcome) for c in committed]
    assert outcomes == [("0", "kept"), ("1", "kept"), ("2", "skipped"), ("3", "skipped"), ("4", "kept")]
    assert [c.waited for c in committed] == [False, False, True, True, False]


def test_a_rejected_row_frees_its_place_before_it_is_committed() -> None:
    steering = steering_of(FilterSettings(cap_per_template=1, cap_key="template", phrases=("no",)))
    for prompt in prompts_of([3, 4, 5], [1, 0, 0]):
        steering.offer(prompt)
    assert [p.id for p in steering.take(9)] == ["0", "1"]
    steering.finish(Completion(id="1", text="no, no", finish_reason="stop"))
    assert not list(steering.commit()), "0 is still out"
    assert [p.id for p in steering.take(9)] == ["2"]


def test_answers_that_wait_are_counted_until_they_are_committed() -> None:
    steering = steering_of(FilterSettings(), greedy=False, disjoint=True, plain=True)
    prompts = [Prompt(index=i, id=str(i), template="t", instruction=f"Say {i}" if i != 2 else "") for i in range(4)]
    for prompt in prompts:
        steering.offer(prompt)
    assert [prompt.id for prompt in steering.take(9)] == ["0", "1", "3"]
    assert steering.waiting == 1, "the empty one has failed, and waits for its turn"
    steering.finish(fine("1"))
    assert list(steering.commit()) == []
    assert steering.waiting == 2
    held = steering.uncommitted_bytes
    steering.finish(fine("0"))
    assert steering.uncommitted_bytes > held > 0
    assert [committed.prompt.id for committed in steering.commit()] == ["0", "1", "2"]
    assert steering.waiting == 0
    assert 0 < steering.uncommitted_bytes < held / 2, "one of them is in flight"
    steering.finish(fine("3"))
    steering.drop()
    assert (steering.waiting, steering.uncommitted_bytes) == (0, 0)


def test_a_failed_question_is_asked_again_by_its_twin() -> None:
    steering = steering_of(FilterSettings(), greedy=True)
    for prompt in prompts_of([0, 0, 0], [0, 0, 0]):
        steering.offer(prompt)
    assert [p.id for p in steering.take(9)] == ["0"]
    steering.finish(Completion(id="0", text="", finish_reason="error", error="lost"))
    assert [c.outcome for c in steering.commit()] == ["failed"]
    assert [p.id for p in steering.take(9)] == ["1"]
    steering.finish(fine("1"))
    assert [c.outcome for c in steering.commit()] == ["kept", "skipped"]


def test_where_the_question_alone_makes_a_duplicate_it_is_asked_once() -> None:
    steering = steering_of(FilterSettings(dedup_on=("instruction",), dedup_ignore=("case",), cap_per_template=0))
    for prompt in prompts_of([4, 6, 4, 0], [0, 1, 0, 0]):
        steering.offer(prompt)
    assert [p.id for p in steering.take(9)] == ["0", "3"], "`Tell me` and `tell me` are the same here, in any template"
    steering.finish(fine("3"))
    steering.finish(Completion(id="0", text="", finish_reason="error", error="lost"))
    assert [c.outcome for c in steering.commit()] == ["failed"]
    assert [p.id for p in steering.take(9)] == ["1"], "the first had no answer"
    steering.finish(Completion(id="1", text="", finish_reason="stop"))
    ends = [(c.outcome, c.verdict.rule) for c in steering.commit()]
    assert ends == [("rejected", "length"), ("skipped", "duplicate"), ("kept", "kept")]
    last = prompts_of([6], [1])[0]
    steering.offer(msgspec.structs.replace(last, id="9", index=4))
    assert steering.take(9) == []
    assert [c.outcome for c in steering.commit()] == ["skipped"]


def test_a_twin_does_not_wait_for_a_place_that_waits_for_the_twin() -> None:
    steering = steering_of(FilterSettings(cap_per_template=1, cap_key="template"), greedy=True)
    for prompt in prompts_of([0, 0, 1], [0, 0, 0]):
        steering.offer(prompt)
    assert [p.id for p in steering.take(9)] == ["0"]
    steering.finish(Completion(id="0", text="", finish_reason="error", error="lost"))
    assert [c.outcome for c in steering.commit()] == ["failed"]
    asked = [p.id for p in steering.take(9)]
    while asked:
        steering.finish(fine(asked.pop()))
        outcomes = [c.outcome for c in steering.commit()]
        asked += [p.id for p in steering.take(9)]
    assert outcomes == ["kept", "rejected"], "both were asked, for else both would wait for ever"


def test_a_question_that_is_split_in_another_way_is_no_twin() -> None:
    """The teacher sees the same, but the rows are no duplicates of each other."""
    steering = steering_of(FilterSettings(cap_per_template=0), greedy=True, plain=False)
    for prompt in prompts_of([3, 7], [0, 0], ["this", ""]):
        steering.offer(prompt)
    assert len({prompt.question for prompt in steering.take(9)}) == 1
    assert steering.in_flight == 2


def test_an_input_that_leaks_is_never_asked(held_out: str) -> None:
    rules = FilterSettings(rules=(rule_settings.Leak(files=(held_out,)),))
    for early, asked in ((True, ["1"]), (False, ["0", "1"])):
        steering = steering_of(msgspec.structs.replace(rules, early=early))
        for prompt in prompts_of([4, 0], [0, 0]):
            steering.offer(prompt)
        assert [p.id for p in steering.take(9)] == asked
        for name in asked:
            steering.finish(fine(name))
        leaked, kept = steering.commit()
        assert (leaked.outcome, leaked.verdict.rule) == ("skipped" if early else "rejected", "leak")
        assert kept.outcome == "kept"


def test_a_leak_is_asked_where_its_answer_could_make_a_duplicate(held_out: str) -> None:
    rules = FilterSettings(rules=(rule_settings.Leak(files=(held_out,)),))
    steering = steering_of(rules, plain=False)
    for prompt in prompts_of([4], [0]):
        steering.offer(prompt)
    assert len(steering.take(9)) == 1


def test_a_filled_quota_is_not_asked_and_ends_the_run() -> None:
    steering = steering_of(FilterSettings(early=False), Output(quotas={"t0": 1, "t1": 1}))
    for prompt in prompts_of([0, 1, 2, 3, 4], [0, 0, 2, 1, 1]):
        steering.offer(prompt)
    assert [p.id for p in steering.take(9)] == ["0", "2", "3"], "a place each of t0 and t1; t2 has no quota"
    for name in ("0", "2", "3"):
        steering.finish(fine(name))
    assert [(c.outcome, c.verdict.rule) for c in steering.commit()] == [
        ("kept", "kept"),
        ("skipped", "quota"),
        ("kept", "kept"),
        ("kept", "kept"),
    ]
    assert steering.ending == "quotas"
    assert steering.candidates == 3, "the one that was not wanted is not counted"


def test_the_budget_of_candidates_is_never_overdrawn() -> None:
    steering = steering_of(FilterSettings(), Output(accepted=9, candidates=2))
    for prompt in prompts_of([0, 1, 2], [0, 0, 0]):
        if steering.open:
            steering.offer(prompt)
    assert [p.id for p in steering.take(9)] == ["0", "1"]
    for name in ("0", "1"):
        steering.finish(fine(name))
    assert len(list(steering.commit())) == 2
    assert steering.ending == "candidates"


def test_a_loop_is_ended_once_it_cannot_be_kept_any_more() -> None:
    content = Filter(FilterSettings(max_chars=800, rules=(rule_settings.Repetition(),))).content
    loop = "and so it goes on " * 60
    cut = next(n for n in range(0, 800, 8) if content.watch(loop[:n]))
    verdict = content.watch(loop[:cut])
    assert verdict is not None
    assert verdict.rule == "repetition"
    assert 300 < cut < 600
    fresh = " ".join(chr(0x4E00 + n) for n in range(400))
    whole = loop[: cut - 16] + fresh
    judged = Filter(FilterSettings(phrases=(), rules=(rule_settings.Repetition(),))).judge("i", "", whole[:800], "t")
    assert judged.kept, "a little earlier it was not certain yet"
