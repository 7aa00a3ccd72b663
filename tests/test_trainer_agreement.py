from __future__ import annotations

import pytest

from engine.errors import ExportError
from engine.rows import Completion, Prompt
from trainer.agreement import SHOWN, compare

PROMPTS = [Prompt(index=number, id=str(number), template="", instruction=f"q{number}") for number in range(100)]


def answers(wrong: int = 0) -> list[Completion]:
    return [
        Completion(id=str(number), text="other" if number < wrong else f"a{number % 50}", finish_reason="stop")
        for number in range(100)
    ]


def failed(number: int) -> Completion:
    return Completion(id=str(number), text="", finish_reason="error", error="too long")


@pytest.mark.parametrize(("wrong", "good"), [(0, True), (2, True), (3, False), (100, False)])
def test_98_of_a_hundred_are_enough(wrong: int, good: bool) -> None:
    found = compare(PROMPTS, answers(), answers(wrong=wrong))
    assert (found.same, found.items, found.good) == (100 - wrong, 100, good)
    assert found.distinct == 50
    assert len(found.different) == min(wrong, SHOWN)


def test_a_difference_in_one_space_counts() -> None:
    student = answers()
    copy = [Completion(id=one.id, text=f"{one.text} ", finish_reason="stop") for one in student]
    found = compare(PROMPTS, student, copy)
    assert found.same == 0
    assert (found.different[0].question, found.different[0].student, found.different[0].copy) == ("q0", "a0", "a0 ")


def test_a_question_that_only_the_copy_fails_is_a_difference() -> None:
    student, copy = answers(), answers()
    student[0] = copy[0] = failed(0)
    copy[1] = failed(1)
    found = compare(PROMPTS, student, copy)
    assert (found.items, found.same) == (99, 98)
    assert found.different[0].copy == "too long"


def test_no_answer_at_all_is_no_agreement() -> None:
    nothing = [failed(number) for number in range(100)]
    with pytest.raises(ExportError, match=r"answers none of the held-out questions .too long"):
        compare(PROMPTS, nothing, nothing)
