"""The law of the filter: the kept rows are the same with early decisions on and off, in any order of answers."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import Filter as FilterSettings
from engine.filter import Filter
from engine.rows import Completion, Prompt
from engine.steer import Committed, Steering

GOOD = [f"answer {number}" for number in range(6)]
OUTPUTS = [*GOOD, *GOOD, " answer 1 ", "x", "Sorry, I cannot", "far too long " * 4, "I don't know, fine", ""]
INSTRUCTIONS = ["Say a b c one", "Say a b c two", "Say a b d one", "Tell", "Tell me", "Tell me all of it now"]


def prompts_of(questions: list[int], templates: list[int]) -> list[Prompt]:
    return [
        Prompt(index=i, id=str(i), template=f"t{t}", instruction=INSTRUCTIONS[q])
        for i, (q, t) in enumerate(zip(questions, templates, strict=True))
    ]


def run(
    prompts: list[Prompt],
    answers: dict[str, Completion],
    rules: FilterSettings,
    *,
    rng: random.Random,
    greedy: bool,
    disjoint: bool,
    target: int | None,
) -> list[Committed]:
    """Drive a steering with random window sizes and answers in random order, some aborted where `watch` says so."""
    filter_ = Filter(rules)
    steering = Steering(filter_, greedy=greedy, disjoint=disjoint, target=target)
    committed: list[Committed] = []
    flying: list[Prompt] = []
    waiting = list(prompts)
    while (waiting or steering.uncommitted) and not steering.done:
        for _ in range(rng.randint(0, 4)):
            if waiting:
                steering.offer(waiting.pop(0))
        flying += steering.take(rng.randint(1, 4))
        if rng.random() < 0.05:
            steering.requeue()
            flying.clear()
        if flying and rng.random() < 0.8:
            prompt = flying.pop(rng.randrange(len(flying)))
            steering.finish(_answer(answers[prompt.id], filter_, early=rules.early, rng=rng))
        committed += steering.commit()
    steering.drop()
    return committed


def _answer(whole: Completion, filter_: Filter, *, early: bool, rng: random.Random) -> Completion:
    cut = rng.randint(0, len(whole.text))
    verdict = filter_.content.watch(whole.text[:cut]) if early and not whole.error else None
    if verdict is None:
        return whole
    return Completion(id=whole.id, text=whole.text[:cut], finish_reason="abort", verdict=verdict)


@settings(max_examples=400, deadline=None)
@given(
    size=st.integers(1, 60),
    cap=st.integers(0, 4),
    cap_key=st.sampled_from(["prefix", "template"]),
    dedup_on=st.sampled_from(
        [("instruction", "output"), ("instruction",), ("output",), ("instruction", "input", "output")]
    ),
    greedy=st.booleans(),
    one_template_each=st.booleans(),
    target=st.none() | st.integers(1, 5),
    failures=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_kept_rows_do_not_depend_on_early_decisions(
    size: int,
    cap: int,
    cap_key: str,
    dedup_on: tuple[str, ...],
    greedy: bool,
    one_template_each: bool,
    target: int | None,
    failures: bool,
    seed: int,
) -> None:
    rng = random.Random(seed)
    questions = [rng.randrange(len(INSTRUCTIONS)) for _ in range(size)]
    templates = [q if one_template_each else rng.randint(0, 1) for q in questions]
    prompts = prompts_of(questions, templates)
    by_question: dict[tuple[str, str], str] = {}
    answers: dict[str, Completion] = {}
    for prompt in prompts:
        text = rng.choice(OUTPUTS)
        if greedy:
            text = by_question.setdefault((prompt.template, prompt.instruction), text)
        error = "no answer" if failures and rng.random() < 0.2 else ""
        answers[prompt.id] = Completion(id=prompt.id, text="" if error else text, finish_reason="stop", error=error)

    def kept(early: bool) -> list[tuple[int, str]]:
        rules = FilterSettings(
            max_chars=40,
            cap_per_template=cap,
            cap_key=cap_key,  # type: ignore[arg-type]
            dedup_on=dedup_on,  # type: ignore[arg-type]
            early=early,
        )
        result = run(prompts, answers, rules, rng=rng, greedy=greedy, disjoint=one_template_each, target=target)
        assert [c.prompt.index for c in result] == list(range(len(result))), "committed in prompt order"
        return [(c.prompt.index, c.completion.text) for c in result if c.outcome == "kept"]

    assert kept(True) == kept(False)


def test_a_full_template_is_skipped_and_others_go_on() -> None:
    rules = FilterSettings(cap_per_template=2, cap_key="template", phrases=())
    steering = Steering(Filter(rules), greedy=False, disjoint=True)
    for prompt in prompts_of([0, 1, 2, 3, 4], [0, 0, 0, 0, 1]):
        steering.offer(prompt)
    assert [p.id for p in steering.take(9)] == ["0", "1", "4"], "two places of t0, and t1"
    for name in ("4", "1", "0"):
        steering.finish(Completion(id=name, text="fine, " + name, finish_reason="stop"))
    outcomes = [(c.prompt.id, c.outcome) for c in steering.commit()]
    assert outcomes == [("0", "kept"), ("1", "kept"), ("2", "skipped"), ("3", "skipped"), ("4", "kept")]


def test_a_rejected_row_frees_its_place_before_it_is_committed() -> None:
    rules = FilterSettings(cap_per_template=1, cap_key="template", phrases=("no",))
    steering = Steering(Filter(rules), greedy=False, disjoint=True)
    for prompt in prompts_of([3, 4, 5], [1, 0, 0]):
        steering.offer(prompt)
    assert [p.id for p in steering.take(9)] == ["0", "1"]
    steering.finish(Completion(id="1", text="no, no", finish_reason="stop"))
    assert not list(steering.commit()), "0 is still out"
    assert [p.id for p in steering.take(9)] == ["2"]


def test_a_failed_question_is_asked_again_by_its_twin() -> None:
    steering = Steering(Filter(FilterSettings()), greedy=True, disjoint=True)
    for prompt in prompts_of([0, 0, 0], [0, 0, 0]):
        steering.offer(prompt)
    assert [p.id for p in steering.take(9)] == ["0"]
    steering.finish(Completion(id="0", text="", finish_reason="error", error="lost"))
    assert [c.outcome for c in steering.commit()] == ["failed"]
    assert [p.id for p in steering.take(9)] == ["1"]
    steering.finish(Completion(id="1", text="fine", finish_reason="stop"))
    steered = list(steering.commit())
    assert [c.outcome for c in steered] == ["rejected" if len("fine") < 5 else "kept", "skipped"]
