"""Metrics: tables of reference, output and score, and promises that hold for any text."""

from typing import get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import Eval
from evals.metrics import METRICS, chrf, exact, json_scores, normalised, numeric, reference_fault, rouge_l, scores


@pytest.mark.parametrize(
    ("reference", "output", "match", "normal_match"),
    [
        ("Paris", "  paris\n", 1, 1),
        ("Paris", "Paris.", 0, 1),
        ("Paris", "<think>\n\n</think>\n\nParis", 0, 1),
        ("Paris", "```\nParis\n```", 0, 1),
        ("Paris", "```text\nParis\n```\n", 0, 1),
        ("a b", "a \n  b", 0, 1),
        ("fi", "ﬁ", 0, 1),
        ("straße", "STRASSE", 0, 1),
        ("Paris", "It is Paris", 0, 0),
        ("Paris", "<think>hm</think>Paris", 0, 0),
        ("Paris", "", 0, 0),
    ],
)
def test_exact_and_normalised_match(reference: str, output: str, match: float, normal_match: float) -> None:
    assert exact(reference, output) == match
    assert normalised(reference, output) == normal_match


@pytest.mark.parametrize(
    ("reference", "output", "equal", "parses", "fields"),
    [
        ('{"a": 1, "b": "x"}', '{"b":"x","a":1.0}', 1, 1, 1),
        ('{"a": 1}', '```json\n{"a": 1}\n```', 1, 1, 1),
        ('{"a": 1}', '{"a": "1"}', 0, 1, 0),
        ('{"a": 1}', '{"a": true}', 0, 1, 0),
        ('{"a": 1, "b": 2}', '{"a": 1}', 0, 1, 2 / 3),
        ('{"a": 1, "b": 2}', '{"a": 1, "b": 3}', 0, 1, 0.5),
        ('{"a": [1, 2]}', '{"a": [2, 1]}', 0, 1, 0),
        ('{"a": {"b": 1}}', '{"a.b": 1}', 0, 1, 0),
        ('{"a": 0.1}', '{"a": 0.1000000000000000000001}', 0, 1, 0),
        ('{"a": []}', '{"a": {}}', 0, 1, 0),
        ('{"a": 1}', '{"a": 1, "a": 1}', 0, 0, 0),
        ('{"a": 1}', '{"a": NaN}', 0, 0, 0),
        ('{"a": 1}', '{"a": 1} done', 0, 0, 0),
        ('{"a": 1}', "{'a': 1}", 0, 0, 0),
        ('{"a": 1}', "", 0, 0, 0),
        ('{"a": 1}', "[" * 100_000, 0, 0, 0),
        ('{"a": 1}', "9" * 5000, 0, 0, 0),
        ('{"a": 1}', '{"a": 1e99999999999999999999}', 0, 0, 0),
    ],
)
def test_json_equality(reference: str, output: str, equal: float, parses: float, fields: float) -> None:
    found = json_scores(reference, output)
    assert (found["json"], found["json_parses"]) == (equal, parses)
    assert found["json_fields"] == pytest.approx(fields)


@pytest.mark.parametrize(
    ("reference", "output", "right"),
    [
        ("-16.1 C", "-16.1 C", 1),
        ("-16.1 C", "-16.1 °C.", 1),
        ("-16.1 C", "-16.1 degrees Celsius", 1),
        ("-16.1 C", "3 F is \u221216.1℃", 1),
        ("-16.1 C", "-16.15 C", 1),
        ("-16.1 C", "-16.16 C", 0),
        ("-16.1 C", "16.1 C", 0),
        ("-16.1 C", "-16.1 F", 0),
        ("-16.1 C", "-16.1", 0),
        ("22.2 C", "First 20 C, no: 22.2 C", 1),
        ("22.2 C", "22.2 C, or 295.4 K", 1),
        ("22 C", "22.4 C", 1),
        ("22 C", "22.6 C", 0),
        ("1,234 km", "1234 km", 1),
        ("1234", "about 1,234 people", 1),
        ("0.5", ".5", 1),
        ("0.5", "5e-1", 1),
        ("7", "pages 5-7", 1),
        ("7", "version a7", 0),
        ("7", "1e99999999999", 0),
        ("7", "none", 0),
    ],
)
def test_numeric_tolerance_is_half_the_last_printed_digit(reference: str, output: str, right: float) -> None:
    assert numeric(reference, output) == right


def test_chrf_and_rouge_l_by_hand() -> None:
    # "abcd" and "abce" share 3 of 4 unigrams, 2 of 3 bigrams, 1 of 2 trigrams and 0 of 1 four-grams.
    assert chrf("abcd", "abce") == pytest.approx((3 / 4 + 2 / 3 + 1 / 2) / 4)
    assert rouge_l("the cat sat on the mat", "the cat on a mat") == pytest.approx(2 * 4 / (6 + 5))


@given(text=st.text(min_size=1).filter(lambda text: text.strip()))
def test_a_text_matches_itself(text: str) -> None:
    assert exact(text, text) == normalised(text, text) == 1


@given(
    metric=st.sampled_from(METRICS),
    output=st.text() | st.text(alphabet='{}[]":,0123456789.eE+-Ctruefalsn `'),
)
def test_any_output_scores_between_0_and_1(metric: str, output: str) -> None:
    reference = '{"size": 616, "tags": ["a", null]}'
    found = scores(metric, reference, output)
    assert metric in found
    assert all(0 <= value <= 1 for value in found.values())


def test_a_reference_that_cannot_be_scored_is_named() -> None:
    assert "not JSON" in reference_fault("json", "name=zip")
    assert "no number" in reference_fault("numeric", "warm")
    assert reference_fault("json", "{}") == reference_fault("numeric", "3 C") == reference_fault("exact", "") == ""


def test_the_configuration_offers_exactly_these_metrics() -> None:
    hints = get_type_hints(Eval)
    assert set(get_args(hints["default_metric"])) == set(METRICS)
    assert set(get_args(get_args(hints["metrics"])[1])) == set(METRICS)
