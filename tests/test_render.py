"""Rendering with a real tokenizer: the template's own text and nothing added, and a bad prompt costs only itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.errors import MissingError
from engine.render import Renderer, chat_template
from engine.rows import Message, Prompt

pytestmark = pytest.mark.model

STRICT = (
    "{% for turn in messages %}{% if 'forbidden' in turn.content %}{{ raise_exception('no such word') }}{% endif %}"
    "<{{ turn.role }}>{{ turn.content }}{% endfor %}"
    "{% if shout %}!{% endif %}{% if add_generation_prompt %}<go>{% endif %}"
)


def prompt(text: str, **more: Any) -> Prompt:
    return Prompt(index=0, id=text, template="t", instruction=text, **more)


@pytest.fixture(scope="module")
def tokenizer(teacher_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(teacher_folder))


def test_ids_are_those_of_the_tokenizers_own_rendering(tokenizer: Any) -> None:
    asked = prompt("Double 4.", input="quickly", prefix=(Message("system", "Be brief."),))
    (rendered,) = Renderer(tokenizer, tokenizer.chat_template, {}).render([asked])
    whole = tokenizer.apply_chat_template(asked.messages(), add_generation_prompt=True, return_dict=False)
    assert rendered.ids == whole
    assert "Double 4.\n\nquickly" in tokenizer.decode(rendered.ids)


def test_nothing_is_added_to_the_template(tokenizer: Any) -> None:
    (rendered,) = Renderer(tokenizer, STRICT, {"shout": True}).render([prompt("hello")])
    assert tokenizer.decode(rendered.ids) == "<user>hello!<go>"
    assert Renderer(tokenizer, STRICT, {"shout": True}).form == "<user>{question}!<go>"
    assert Renderer(tokenizer, STRICT.replace("forbidden", "{question}"), {}).form == "", "it refuses that"


def test_a_prompt_that_cannot_be_rendered_costs_only_itself(tokenizer: Any) -> None:
    asked = [prompt("one"), prompt("forbidden"), prompt("\ud800"), prompt("two")]
    rendered = Renderer(tokenizer, STRICT, {}).render(asked)
    assert [one.prompt for one in rendered] == asked
    assert [tokenizer.decode(one.ids) for one in rendered] == ["<user>one<go>", "", "", "<user>two<go>"]
    assert [bool(one.error) for one in rendered] == [False, True, True, False]
    assert rendered[1].error == "the chat template refuses this prompt: no such word"
    assert Renderer(tokenizer, STRICT, {}).render(asked[1:2])[0].error == rendered[1].error


def test_the_adapters_template_comes_first(tokenizer: Any, tmp_path: Path) -> None:
    assert chat_template(tokenizer, "m", "") == tokenizer.chat_template
    assert chat_template(tokenizer, "m", str(tmp_path)) == tokenizer.chat_template
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "from the settings"}')
    assert chat_template(tokenizer, "m", str(tmp_path)) == "from the settings"
    (tmp_path / "chat_template.jinja").write_text("from the file")
    assert chat_template(tokenizer, "m", str(tmp_path)) == "from the file"


def test_no_template_is_said_before_any_work(teacher_folder: Path) -> None:
    from transformers import AutoTokenizer

    bare = AutoTokenizer.from_pretrained(str(teacher_folder))
    bare.chat_template = None
    with pytest.raises(MissingError, match=r"some/base has no chat template.*instruct model"):
        chat_template(bare, "some/base", "")
