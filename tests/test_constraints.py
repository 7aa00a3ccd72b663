"""The form of answers: what a template or a prompt says of it, and what becomes of that on each backend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest

from engine.config import Prompts, Sampling, Teacher, load
from engine.constraints import constraint_of
from engine.errors import ConfigError
from engine.generate import generate
from engine.openai_wire import Request
from engine.prompts import Source, open_source
from engine.rows import Constraint, Prompt
from engine.shards import read_lines, read_manifest
from engine.twins import _question

SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
TEMPLATE = """
[[template]]
id = "t"
text = "Which side, {n}?"
FORM
[template.slots.n]
range = [1, 40]
"""


def templates(folder: Path, form: str) -> Source:
    path = folder / "t.toml"
    path.write_text(TEMPLATE.replace("FORM", form))
    return open_source(Prompts(templates=str(path)), run_seed=1, greedy=True)


def first(source: Source) -> Prompt:
    return next(iter(source.prompts()))


def test_a_template_says_it_for_all_its_prompts(tmp_path: Path) -> None:
    assert first(templates(tmp_path, "")).constraint is None
    assert first(templates(tmp_path, "choice = ['left', 'right']")).constraint == Constraint(choice=("left", "right"))
    assert first(templates(tmp_path, "regex = '[0-9]+ C'")).constraint == Constraint(regex="[0-9]+ C")
    inline = first(templates(tmp_path, "json_schema = {type = 'object', properties = {a = {type = 'integer'}}}"))
    assert json.loads(inline.constraint.json_schema)["properties"] == {"a": {"type": "integer"}}  # type: ignore[union-attr]


def test_a_schema_may_have_a_file_of_its_own_and_counts_as_content(tmp_path: Path) -> None:
    (tmp_path / "person.json").write_text(json.dumps(SCHEMA))
    before = templates(tmp_path, "json_schema = 'person.json'")
    assert json.loads(first(before).constraint.json_schema) == SCHEMA  # type: ignore[union-attr]
    (tmp_path / "person.json").write_text(json.dumps({"type": "object"}))
    assert templates(tmp_path, "json_schema = 'person.json'").fingerprint != before.fingerprint


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("choice = []", "template t: choice must be a list of texts, none empty and none twice"),
        ("choice = ['a', 'a']", "none twice"),
        ("regex = '('", "template t: regex is no regular expression"),
        ("json_schema = 'nowhere.json'", r"template t: json_schema: .*nowhere\.json is not there"),
        ("json_schema = {type = 'objekt'}", "template t: json_schema is no JSON schema: 'objekt'"),
        ("regex = 'a'\nchoice = ['a']", "template t: regex and choice exclude each other"),
    ],
)
def test_a_bad_form_is_refused_before_any_work(tmp_path: Path, form: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        templates(tmp_path, form)


@pytest.mark.parametrize("value", ["a", [1], {"a": 1}])
def test_a_choice_is_a_list_of_texts(value: Any) -> None:
    with pytest.raises(ConfigError, match="w: choice must be"):
        constraint_of({"choice": value}, where="w", folder=Path())


def test_a_prompt_of_a_file_says_it_for_itself(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    lines: list[dict[str, Any]] = [{"prompt": "a", "choice": ["x", "y"]}, {"prompt": "b"}, {"prompt": "c"}]
    lines[2]["json_schema"] = SCHEMA
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    a, b, c = open_source(Prompts(file=str(path)), run_seed=1, greedy=True).prompts()
    assert a.constraint == Constraint(choice=("x", "y"))
    assert b.constraint is None
    assert json.loads(c.constraint.json_schema) == SCHEMA  # type: ignore[union-attr]
    path.write_text('{"prompt": "a"}\n{"prompt": "b", "regex": 3}\n')
    with pytest.raises(ConfigError, match=r"p\.jsonl:2: regex must be"):
        open_source(Prompts(file=str(path)), run_seed=1, greedy=True)


def test_the_same_text_under_another_form_is_another_question() -> None:
    prompt = Prompt(index=0, id="a", template="t", instruction="Which?")
    held = Prompt(index=1, id="b", template="t", instruction="Which?", constraint=Constraint(choice=("x",)))
    assert _question(prompt) != _question(held)


def body(constraint: Constraint) -> dict[str, Any]:
    prompt = Prompt(index=0, id="a", template="t", instruction="i", constraint=constraint)
    sent: dict[str, Any] = orjson.loads(Request(Teacher(model="m"), Sampling(), stream=False).body(prompt))
    return sent


def test_an_endpoint_is_told() -> None:
    asked = body(Constraint(json_schema=json.dumps(SCHEMA)))["response_format"]
    assert asked == {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    assert body(Constraint(regex="a+"))["structured_outputs"] == {"regex": "a+"}
    assert body(Constraint(choice=("a", "b")))["structured_outputs"] == {"choice": ["a", "b"]}


def test_echo_keeps_to_a_choice_through_a_replica(tmp_path: Path) -> None:
    templates(tmp_path, "choice = ['to the left', 'to the right']")
    overrides = ["teacher.backend=echo", "teacher.replicas=2", f"prompts.templates={tmp_path / 't.toml'}"]
    generate(load(None, [*overrides, "prompts.count=30"]), tmp_path / "run")
    manifest = read_manifest(tmp_path / "run")
    kept = [orjson.loads(line) for shard in manifest.of("kept") for line in read_lines(tmp_path / "run", shard)]
    assert {row["output"] for row in kept} == {"to the left", "to the right"}


@pytest.mark.model
def test_vllm_is_told_in_an_object_of_each_rows_own() -> None:
    from engine.vllm_settings import sampling_params

    prompt = Prompt(index=0, id="a", template="t", instruction="i", constraint=Constraint(choice=("a", "b")))
    one, other = (sampling_params(Sampling(), prompt, watched=False).structured_outputs for _ in range(2))
    assert one.choice == ["a", "b"]
    assert one is not other
    for constraint, field in ((Constraint(regex="a+"), "regex"), (Constraint(json_schema="{}"), "json")):
        held = Prompt(index=0, id="a", template="t", instruction="i", constraint=constraint)
        assert getattr(sampling_params(Sampling(), held, watched=False).structured_outputs, field)
