"""The phrase guard: what it must see through, what it must leave alone, and what ships with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import config as configuration
from engine.canon import canon
from engine.config import RECIPE_PHRASES
from engine.errors import ConfigError, MissingError
from engine.filter import Content
from engine.phrases import PhraseGuard, read_phrases

MANY = (*RECIPE_PHRASES, *(f"phrase number {number}" for number in range(20)))


def guard(*phrases: str, **changes: Any) -> PhraseGuard:
    return PhraseGuard(configuration.Filter(phrases=phrases, **changes))


@pytest.mark.parametrize(
    "text",
    [
        "I don't know.",
        "I DON\u2019T KNOW",
        "i don\u02bct know",
        "I dont know",
        "I  don't\tknow",
        "I don't\nknow",
        "I don't\u00a0know",
        "I **don't** know",
        "_I don't know_",
        "I do\u200bn't know",
        "I do\u00adn't know",
        "\uff29 \uff44\uff4f\uff4e\uff07\uff54 \uff4b\uff4e\uff4f\uff57",
        "I d\u043en't kn\u043ew",
        "\u0130 don't know",
        "I do\u0301n't know",
        "Well-I don't know-really",
        "\u201cI don't know\u201d",
        "I don't know\u2026",
        "\u3053\u308c\u306fI don't know\u3067\u3059",
    ],
)
def test_robust_sees_through_spelling(text: str) -> None:
    found = guard("i don't know", phrase_match="robust")
    assert found.find(text) == 0
    assert found.reason(0) == 'holds "i don\'t know"'


@pytest.mark.parametrize(
    ("phrase", "text"),
    [
        ("i cannot", "Hawaii cannot be seen from here"),
        ("as an ai", "gas an airline buys"),
        ("as an ai", "bias an AIRPORT has"),
        ("i can't", "Ravi can't come"),
        ("i don't know", "I don't knowingly lie"),
        ("[redacted]", "The redacted file"),
        ("\u6211\u4e0d\u77e5\u9053", "\u6211\u77e5\u9053"),
    ],
)
def test_robust_leaves_other_words_alone(phrase: str, text: str) -> None:
    assert guard(phrase, phrase_match="robust").find(text) is None


@pytest.mark.parametrize(
    ("phrase", "text"),
    [
        ("\u6211\u4e0d\u77e5\u9053", "\u5bf9\u4e0d\u8d77\uff0c\u6211\u4e0d\u77e5\u9053\u7b54\u6848\u3002"),
        ("\u044f \u043d\u0435 \u0437\u043d\u0430\u044e", "\u042f  \u043d\u0435 \u0417\u041d\u0410\u042e!"),
        ("stra\u00dfe", "die STRASSE"),
        ("[redacted]", "It was **[REDACTED]**."),
        ("[redacted]", "name=[redacted]&age"),
        ("caf\u00e9", "cafe\u0301"),
    ],
)
def test_robust_in_other_scripts(phrase: str, text: str) -> None:
    assert guard(phrase, phrase_match="robust").find(text) == 0


def test_substring_is_the_recipe() -> None:
    found = guard(*RECIPE_PHRASES)
    assert found.find("Hawaii CANNOT") == RECIPE_PHRASES.index("i cannot")
    assert found.find("I don\u2019t know") is None
    assert found.find("so SORRY, \u0130 did") == RECIPE_PHRASES.index("sorry, i")


@given(
    text=st.text(
        st.sampled_from("aiI cnotdk'\u2019\u0130\u03a3\u03c3\u00df\u200b\u00a0[].,*\u6211\uff49"), max_size=40
    ),
    phrases=st.lists(
        st.sampled_from(["i cannot", "as an ai", "i don't", "\u03c3\u03c2", "\u6211", "[a]", "ss"]), min_size=1
    ),
    cuts=st.lists(st.integers(0, 40), max_size=4),
    match=st.sampled_from(["substring", "robust"]),
    chars=st.integers(0, 30),
)
@settings(max_examples=400, deadline=None)
def test_what_is_said_early_is_said_in_the_end(
    text: str, phrases: list[str], cuts: list[int], match: Any, chars: int
) -> None:
    content = Content(configuration.Filter(phrases=tuple(phrases), phrase_match=match, phrase_chars=chars, min_chars=0))
    whole = content.judge(text)
    for cut in cuts:
        early = content.watch(text[:cut])
        if early is not None:
            assert whole is not None
            assert early.rule == whole.rule
    assert [content.judge(text) for _ in range(2)] == [whole, whole]


@given(text=st.text(max_size=60), more=st.text(max_size=60))
def test_the_folded_form_may_be_made_in_pieces(text: str, more: str) -> None:
    assert canon(f"{text} {more}") == canon(text)[:-1] + canon(more)
    assert canon(canon(text).decode("utf-8", "surrogatepass")) == canon(text)


def test_many_phrases_and_few_name_the_same_one() -> None:
    few, many = guard(*RECIPE_PHRASES), guard(*MANY)
    for text in (
        "Let me think. I cannot.",
        "As an AI language model I don't know",
        "nothing at all",
        "phrase number 19",
    ):
        if "phrase" not in text:
            assert few.find(text) == many.find(text)
    assert many.find("phrase number 19") == MANY.index("phrase number 1")


def test_only_the_beginning() -> None:
    assert guard("i cannot", phrase_chars=20).find("x" * 12 + "I cannot") == 0
    assert guard("i cannot", phrase_chars=19).find("x" * 12 + "I cannot") is None


def test_lists_from_files(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("# comment\n\n  No Way  \nno way\nj\u00e4j\u00e4\u2028x\n", encoding="utf-8")
    assert read_phrases(str(path)) == ["No Way", "no way", "j\u00e4j\u00e4\u2028x"]
    found = PhraseGuard(configuration.Filter(phrases=("i cannot",), phrase_files=(str(path),)))
    assert found.find("There is NO WAY.") == 1
    path.write_text("# nothing\n")
    with pytest.raises(ConfigError, match="holds no phrase"):
        read_phrases(str(path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_phrases(str(path))
    with pytest.raises(MissingError, match="phrases:refusals-en"):
        read_phrases("phrases:refusals-eo")
    with pytest.raises(ConfigError, match="empty phrase"):
        guard("")
    with pytest.raises(ConfigError, match="only punctuation"):
        guard("...", phrase_match="robust")


def test_shipped_lists() -> None:
    english, many = read_phrases("phrases:refusals-en"), read_phrases("phrases:refusals-many")
    assert set(RECIPE_PHRASES) - set(english) == {"as an ai language model"}
    assert len(english) > 50
    assert len(many) > 100
    files = ("phrases:refusals-en", "phrases:refusals-many")
    found = PhraseGuard(configuration.Filter(phrases=(), phrase_files=files, phrase_match="robust"))
    for text in (
        "As an AI language model, I have no opinion.",
        "Es tut mir Leid, aber das geht nicht.",
        "D\u00e9sol\u00e9, je n\u2019en sais rien.",
        "\u0418\u0437\u0432\u0438\u043d\u0438\u0442\u0435, \u043d\u043e \u044d\u0442\u043e",
        "\u5bf9\u4e0d\u8d77\uff0c\u6211\u65e0\u6cd5\u56de\u7b54\u3002",
        "\u7533\u3057\u8a33\u3042\u308a\u307e\u305b\u3093\u304c\u3001\u7b54\u3048\u306f\u3042\u308a\u307e\u305b\u3093\u3002",
    ):
        assert found.find(text) is not None, text
    assert found.find("The capital of France is Paris, on the Seine.") is None
