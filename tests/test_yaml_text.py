from __future__ import annotations

from typing import Any

import pytest
import yaml
from bundles import HOSTILE
from hypothesis import given
from hypothesis import strategies as st

from engine.yaml_text import to_yaml

LOOKALIKES = ["yes", "No", "ON", "null", "~", "1e5", "0x1f", "1_000", "1:30", "2020-01-01", ".inf", "=", "<<", "-", ""]
scalars = st.one_of(
    st.text(),
    st.text(alphabet="yesno01.e-+: #'\"\n\t~=<&*!%@`{}[],|>?"),
    st.sampled_from([*LOOKALIKES, *HOSTILE]),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.none(),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=4)),
    max_leaves=10,
)


@given(st.dictionaries(st.one_of(st.text(), st.sampled_from(LOOKALIKES)), values, min_size=1, max_size=4))
def test_a_reader_gets_the_same_values_back(settings: dict[str, Any]) -> None:
    assert yaml.safe_load(to_yaml(settings)) == settings


def test_small_floats_are_numbers_to_a_reader_of_yaml_1_1() -> None:
    assert to_yaml({"lr": 1e-5, "big": 1e22, "plain": 2.0}) == "lr: 1.0e-05\nbig: 1.0e+22\nplain: 2.0\n"


def test_plain_words_stay_plain() -> None:
    settings = {"model": "Qwen/Qwen3-1.7B", "modules": ("q_proj", "o_proj"), "rows": [{"split": "train", "of": [1]}]}
    assert to_yaml(settings).splitlines() == [
        "model: Qwen/Qwen3-1.7B",
        "modules:",
        "  - q_proj",
        "  - o_proj",
        "rows:",
        "  - split: train",
        "    of:",
        "      - 1",
    ]


def test_a_float_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        to_yaml({"loss": float("nan")})
