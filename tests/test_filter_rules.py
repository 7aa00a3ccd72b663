"""The optional rules: text -> verdict and reason, in tables."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import config as configuration
from engine import rule_settings as settings
from engine.config import Config, load
from engine.errors import ConfigError, MissingError
from engine.filter import Filter
from engine.filter_batch import draft_of
from engine.filter_run import filter_rows
from engine.rules import Draft, make_rule

LOOP = "I am sure that this is right. " * 12
STORY = (
    "The harbour was quiet when the first boats came home, and the old keeper counted them one by one from his window "
    "above the customs house, writing every name in pencil beside the hour and the weather of that grey morning."
)


def reason(rule: settings.Rule, output: str, **fields: str) -> str | None:
    return make_rule(rule).finish(Draft(fields.pop("instruction", "Say it"), output, **fields))


@pytest.mark.parametrize(
    ("rule", "output", "fields", "expected"),
    [
        (settings.Blank(), "", {}, "empty"),
        (settings.Blank(), " \n\u200b\u00a0", {}, "nothing but white space"),
        (settings.Blank(), "\u200b.", {}, None),
        (settings.Truncated(), "It was", {"finish_reason": "length"}, "ended for its length"),
        (settings.Truncated(), "It was", {"finish_reason": "stop"}, None),
        (settings.Truncated(), "It was", {}, None),
        (settings.Truncated(sentence=True), "It was", {}, "ends in 's'"),
        (settings.Truncated(sentence=True), "It was.\n", {}, None),
        (settings.Truncated(sentence=True), "\u7b54\u3048\u3002", {}, None),
        (settings.Truncated(sentence=True), "It was", {"finish_reason": "stop"}, None),
        (
            settings.Echo(),
            STORY,
            {"instruction": f"Summarise: {STORY}"},
            f"{len(STORY.split())} of its {len(STORY.split())} words",
        ),
        (
            settings.Echo(),
            STORY.upper() + " So it is.",
            {"input": STORY},
            f"{len(STORY.split())} of its {len(STORY.split()) + 3} words",
        ),
        (settings.Echo(), "Boats came home to a quiet harbour under a grey sky.", {"input": STORY}, None),
        (settings.Echo(), "The harbour", {"input": STORY}, None),
        (settings.Repetition(), LOOP, {}, "of its words are in runs of 5"),
        (settings.Repetition(), "ha" * 400, {}, "it packs to"),
        (settings.Repetition(), STORY, {}, None),
        (settings.Repetition(), "", {}, None),
        (settings.Repetition(), "yes yes yes yes", {}, None),
        (settings.Format(json=True), '{"a": [1]}', {}, None),
        (settings.Format(json=True), '```json\n{"a": 1}\n```', {}, None),
        (settings.Format(json=True, fence=False), '```json\n{"a": 1}\n```', {}, "is not JSON"),
        (settings.Format(json=True), '{"a": 1', {}, "is not JSON"),
        (settings.Format(json=True), "[" * 5000, {}, "is not JSON"),
        (settings.Format(json=True, templates=("form",)), "no", {"template": "prose"}, None),
        (settings.Format(json=True, templates=("form",)), "no", {"template": "form"}, "is not JSON"),
        (settings.Format(regex=r"-?\d+"), "-12", {}, None),
        (settings.Format(regex=r"-?\d+"), "-12 apples", {}, "does not match"),
    ],
)
def test_one_row(rule: settings.Rule, output: str, fields: dict[str, str], expected: str | None) -> None:
    found = reason(rule, output, **fields)
    assert (found is None) if expected is None else (found is not None and expected in found)


def test_schema(tmp_path: Path) -> None:
    pytest.importorskip("jsonschema")
    path = tmp_path / "schema.json"
    path.write_text(json.dumps({"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}))
    rule = settings.Format(schema=str(path))
    assert reason(rule, '{"age": 4}') is None
    assert reason(rule, '{"age": "four"}') == "breaks the schema at $.age: 'four' is not of type 'integer'"
    path.write_text('{"type": "nothing"}')
    with pytest.raises(ConfigError, match="is no JSON schema"):
        make_rule(rule)


def test_near_duplicates_name_what_they_are_near() -> None:
    pytest.importorskip("rensa")
    rule = make_rule(settings.NearDuplicate())
    drafts = [
        Draft("Tell a story", STORY, id="first"),
        Draft("Tell a story", STORY.replace("grey", "cold"), id="second"),
        Draft("Tell a story", "Quite another one, about a fox that learned to read the signs of the road.", id="third"),
        Draft("Tell a story", STORY + " The end.", id="fourth"),
        Draft("", "", id="empty"),
    ]
    found = [rule.finish(draft) for draft in drafts]
    assert found[0] is found[2] is found[4] is None
    assert found[1] is not None
    assert found[1].endswith(" of first")
    assert found[3] is not None
    assert found[3].endswith(" of first")


def test_leaks(tmp_path: Path) -> None:
    held = tmp_path / "items.jsonl"
    items: list[dict[str, Any]] = [
        {"instruction": "Convert 30 degrees Celsius to Fahrenheit", "reference": "86"},
        {"messages": [{"role": "user", "content": f"Summarise this text. {STORY}"}]},
        {"prompt": "Name the capital", "input": "France"},
    ]
    held.write_text("".join(json.dumps(item) + "\n" for item in items) + "\n")
    rule = make_rule(settings.Leak(files=(str(held),)))

    def leak(instruction: str, input_text: str = "") -> str | None:
        return rule.finish(Draft(instruction, "anything", input_text))

    assert leak("convert 30 degrees celsius  to Fahrenheit!") == "asks what is held out at items.jsonl:1"
    assert leak("Convert 41.5 degrees Celsius to Kelvin") is None
    assert leak("Name the capital", "France") == "asks what is held out at items.jsonl:3"
    assert leak("Name the capital", "Norway") is None
    assert leak("Translate", STORY[30:150]) == "shares 13 words in a row with items.jsonl:2"
    assert leak("How do I bake bread at home without an oven?") is None
    rule = make_rule(settings.Leak(files=(str(held),), slots=True))
    assert leak("Convert 41.5 degrees Celsius to Kelvin") == (
        "asks what is held out at items.jsonl:1, but for numbers and names"
    )
    assert leak("Name the capital of", "Norway") is None
    with pytest.raises(MissingError, match="held-out items"):
        make_rule(settings.Leak(files=(str(tmp_path / "absent.jsonl"),)))


def test_tokens(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    rule = settings.Tokens(tokenizer=str(tmp_path), min_tokens=2, max_tokens=4)
    assert reason(rule, "a b c") is None
    assert reason(rule, "a") == "1 tokens, not 2 to 4"
    assert reason(rule, "a b c d e") == "5 tokens, not 2 to 4"
    with pytest.raises(MissingError, match="give the student's folder"):
        make_rule(settings.Tokens(tokenizer=str(tmp_path / "absent")))


class NoQuestion:
    """Rejects an answer that asks back; the example of the docs."""

    def __init__(self, mark: str = "?") -> None:
        self.mark = mark

    def feed(self, partial: str) -> str | None:
        return "asks twice" if partial.count(self.mark) > 1 else None

    def finish(self, draft: Draft) -> str | None:
        return "ends with a question" if draft.output.rstrip().endswith(self.mark) else self.feed(draft.output)


def test_your_own_rule_in_a_whole_run(tmp_path: Path) -> None:
    rows = [
        {"instruction": f"Write about {number}", "output": output, "id": number}
        for number, output in enumerate(["A fine answer.", "Shall I?", LOOP, "what? why? So it is."])
    ]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = (
        settings.Repetition(),
        settings.Own(path=f"{__name__}:NoQuestion", name="question", options={"mark": "?"}),
    )
    config = Config(filter=configuration.Filter(rules=chosen))
    summary = filter_rows([str(source)], tmp_path / "out", config)
    assert summary["kept"] == 1
    assert summary["rejected"] == {"duplicate": 0, "length": 0, "phrase": 0, "cap": 0, "question": 2, "repetition": 1}
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected-00000.jsonl").read_bytes().splitlines()]
    assert [(row["id"], row["rule"]) for row in rejected] == [(1, "question"), (2, "repetition"), (3, "question")]
    assert Filter(config.filter).content.watch("what? why?") is not None


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing", "write it as module:Class"),
        ("absent.module:Rule", "cannot be imported"),
        ("collections:OrderedDict", "has no feed"),
        (f"{__name__}:Absent", "cannot be imported"),
    ],
)
def test_an_own_rule_that_is_none(path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_rule(settings.Own(path=path))


def test_rules_are_chosen_in_the_configuration() -> None:
    config = load(None, ['filter.rules=[{use="truncated"}, {use="repetition", max_share=0.5}]'])
    assert config.filter.rules == (settings.Truncated(), settings.Repetition(max_share=0.5))
    with pytest.raises(ConfigError, match=r"filter\.rules"):
        load(None, ['filter.rules=[{use="telepathy"}]'])
    with pytest.raises(ConfigError, match=r"max_shares?"):
        load(None, ['filter.rules=[{use="repetition", max_shares=0.5}]'])
    assert msgspec.json.decode(msgspec.json.encode(config), type=Config) == config


def test_duplicates_that_differ_in_what_does_not_count() -> None:
    rules = Filter(configuration.Filter(dedup_ignore=("case", "space", "form")))
    assert rules.judge("Say\u00a0it", "", "Caf\u00e9  au lait", "").kept
    assert rules.judge("SAY it ", "", "cafe\u0301 AU\nlait", "").rule == "duplicate"
    assert Filter(configuration.Filter()).judge("Say it", "", "cafe\u0301 AU\nlait", "").kept


def test_a_template_may_not_have_more_than_its_share() -> None:
    rules = Filter(configuration.Filter(cap_per_template=0, cap_share=0.5, cap_key="template"))
    verdicts = [rules.judge("Say it", "", f"answer {number}", "much").kept for number in range(120)]
    assert verdicts == [True] * 100 + [False] * 20
    assert all(rules.judge("Say it", "", f"other {number}", f"t{number}").kept for number in range(101))
    assert rules.judge("Say it", "", "one more", "much").kept
    assert "more than 50%" in rules.judge("Say it", "", "and more", "much").reason


@given(st.text(max_size=200), st.lists(st.integers(0, 200), max_size=5))
def test_no_rule_says_early_what_it_does_not_say_in_the_end(text: str, cuts: list[int]) -> None:
    chosen = (
        settings.Blank(),
        settings.Truncated(),
        settings.Echo(),
        settings.Repetition(),
        settings.Format(json=True),
    )
    rules = [make_rule(rule) for rule in chosen]
    for cut in cuts:
        for rule in rules:
            if rule.feed(text[:cut]) is not None:
                assert rule.finish(Draft("Say it", text)) is not None


def test_a_watch_goes_to_another_process_without_the_rows_that_rules_remember() -> None:
    chosen = (settings.Repetition(), settings.NearDuplicate(), settings.Repetition(words=2))
    rules = Filter(configuration.Filter(rules=chosen))
    watch = rules.content.watch
    size = len(pickle.dumps(watch))
    for number in range(50):
        rules.judge("say", "", f"answer {number} of {number * number} and {number + 7}", "t")
    data = pickle.dumps(watch)
    assert len(data) == size
    loop = "and so on " * 60
    assert pickle.loads(data)(loop) == watch(loop) is not None
    assert pickle.loads(data)("fine so far") is None


def test_a_row_of_id_0_has_an_id() -> None:
    row = SimpleNamespace(instruction="i", output="o", input=None, template=None, finish_reason=None, id=0)
    assert draft_of(row).id == "0"
    assert draft_of(SimpleNamespace(**{**vars(row), "id": None})).id == ""
