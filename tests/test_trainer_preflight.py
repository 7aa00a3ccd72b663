from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from students import make_rows, smollm2

from engine.errors import TrainError
from engine.rows import Row
from trainer.examples import example_of
from trainer.preflight import check
from trainer.render import Chat, Rendered, load_chat, render

pytestmark = pytest.mark.model

SAY = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@pytest.fixture(scope="module")
def chat() -> Chat:
    return load_chat(smollm2(), {})


def rendered(chat: Chat, rows: list[Row]) -> list[Rendered]:
    return list(render(chat, [example_of(row) for row in rows]))


def with_template(chat: Chat, template: str, **kwargs: Any) -> Chat:
    tokenizer = copy.deepcopy(chat.tokenizer)
    tokenizer.chat_template = template
    return Chat(tokenizer, kwargs, chat.stop_ids)


def test_only_the_answer_and_its_end_are_trained(chat: Chat) -> None:
    rows = make_rows(40)
    for row, source in zip(rendered(chat, rows), rows, strict=True):
        trained = chat.tokenizer.decode(list(row.input_ids[row.prompt_tokens :]))
        assert trained == source.output + "<|im_end|>"
        prompt = chat.tokenizer.decode(list(row.input_ids[: row.prompt_tokens]))
        assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_the_prompt_is_the_one_that_is_served(chat: Chat) -> None:
    row = make_rows(2)[1]
    example = example_of(row)
    served = chat.tokenizer.apply_chat_template(
        [{"role": "user", "content": example.question}], add_generation_prompt=True, return_dict=False
    )
    one = rendered(chat, [row])[0]
    assert list(one.input_ids[: one.prompt_tokens]) == served


ODD = ["ﬁne ½", "  spaces around  ", "\n\nlines\nbreak\n", " {}", "日本語", "e\u0301", "\t"]
"""Answers whose ends a tokenizer may melt into the template, or whose letters it may normalise."""


def test_sound_rows_pass(chat: Chat) -> None:
    rows = [row for text in ODD[:-1] for row in make_rows(1, output=text)]
    check(chat, rendered(chat, rows + make_rows(20)))


@given(st.sampled_from(ODD) | st.text(min_size=1))
@settings(max_examples=50, deadline=None)
def test_no_answer_changes_its_prompt(chat: Chat, answer: str) -> None:
    row = rendered(chat, make_rows(1, output=answer))[0]
    assert row.prompt_fits
    assert row.input_ids[: row.prompt_tokens] == rendered(chat, make_rows(1))[0].input_ids[: row.prompt_tokens]


@pytest.mark.parametrize(
    ("template", "output", "says"),
    [
        (SAY + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}", "x", "not the beginning"),
        (SAY + ASK, "", "no token to train on"),
        (SAY.replace("<|im_end|>", "") + ASK, "plain", "does not end with a token at which a server stops"),
        (SAY + ASK, "one<|im_end|>two", "holds a stop token before its end"),
        ("<|im_start|>" + SAY + ASK, "doubled", "starts with two start tokens"),
        (
            SAY.replace("{{ m.content }}", "{{ '<think>' if m.role == 'assistant' }}{{ m.content }}") + ASK,
            "x",
            "do not read as the teacher's answer",
        ),
        (SAY.replace("{{ m.content }}", "{{ m.content | upper }}") + ASK, "shout", "do not read as the teacher's"),
    ],
)
def test_each_fault_is_one_sentence(chat: Chat, template: str, output: str, says: str) -> None:
    broken = with_template(chat, template)
    rows = make_rows(3)[:1] + make_rows(1, output=output, id="bad")
    with pytest.raises(TrainError, match=says) as caught:
        check(broken, rendered(broken, rows))
    assert "\n" not in str(caught.value)
    assert "of 2 rows (first: row" in str(caught.value)


def test_template_kwargs_reach_the_template(chat: Chat) -> None:
    template = SAY + "{% if add_generation_prompt %}<|im_start|>assistant\n{{ extra }}{% endif %}"
    row = rendered(with_template(chat, template, extra="HERE"), make_rows(1))[0]
    assert not row.prompt_fits
    assert rendered(with_template(chat, template, extra=""), make_rows(1))[0].prompt_fits


def test_a_template_that_refuses_is_a_sentence(chat: Chat) -> None:
    refusing = with_template(chat, "{{ raise_exception('only images here') }}")
    with pytest.raises(TrainError, match=r"refuses a conversation \(only images here\)"):
        rendered(refusing, make_rows(1))


def test_a_base_model_without_a_template_is_a_sentence(chat: Chat, tmp_path: Any) -> None:
    tokenizer = copy.deepcopy(chat.tokenizer)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(TrainError, match="no chat template; take the instruct model"):
        load_chat(str(tmp_path), {})
