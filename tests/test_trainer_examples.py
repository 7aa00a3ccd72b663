from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from students import make_rows, write_run

from engine.errors import DataError
from engine.shards import read_manifest
from trainer.examples import Example, example_of, normalised, read_examples, split

examples = st.lists(
    st.builds(
        Example, st.uuids().map(str), st.just("t"), st.sampled_from([f"g{n}" for n in range(40)]), st.text(), st.text()
    ),
    max_size=60,
)


@given(examples, st.floats(0, 1), st.integers(0, 3))
def test_split_keeps_groups_together_and_loses_nothing(rows: list[Example], fraction: float, seed: int) -> None:
    train, validation = split(rows, val_fraction=fraction, seed=seed)
    assert {row.group for row in train}.isdisjoint(row.group for row in validation)
    assert sorted(row.id for row in train + validation) == sorted(row.id for row in rows)


@given(examples, st.integers(0, 3), st.randoms(use_true_random=False))
def test_split_does_not_depend_on_order_or_on_other_rows(rows: list[Example], seed: int, draw: object) -> None:
    shuffled = sorted(rows, key=lambda row: row.id)[::2]
    held_out = {row.id for row in split(rows, val_fraction=0.5, seed=seed)[1]}
    assert {row.id for row in split(shuffled, val_fraction=0.5, seed=seed)[1]} == held_out & {
        row.id for row in shuffled
    }


def test_split_holds_out_about_the_fraction_and_another_one_for_another_seed() -> None:
    rows = [Example(str(n), "t", f"group {n}", "", "") for n in range(4000)]
    first, second = ({row.id for row in split(rows, val_fraction=0.05, seed=seed)[1]} for seed in (1, 2))
    assert 150 < len(first) < 250
    assert len(first & second) < 30
    assert split(rows, val_fraction=0.0, seed=1)[1] == []


def test_the_same_question_in_other_letters_is_one_group() -> None:
    assert normalised("  What is\n\n1°C? ") == normalised("what IS 1°c?")
    assert normalised("1 C") != normalised("10 C")


def test_a_conversation_is_trl_s_prompt_and_completion() -> None:
    row = make_rows(2)[1]
    conversation = example_of(row).conversation({"enable_thinking": False})
    assert conversation == {
        "prompt": [{"role": "user", "content": f"{row.instruction}\n\n{row.input}"}],
        "completion": [{"role": "assistant", "content": row.output}],
        "chat_template_kwargs": {"enable_thinking": False},
    }


def test_cut_off_answers_are_dropped_and_counted(tmp_path: Path) -> None:
    run = write_run(tmp_path, make_rows(5) + make_rows(3, finish_reason="length"))
    kept, dropped = read_examples(run, read_manifest(run))
    assert [example.id for example in kept] == [f"row{n}" for n in range(5)]
    assert dropped == {"unfinished": 3}


def test_a_changed_shard_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path, make_rows(4))
    shard = run / "kept-00000.jsonl"
    shard.write_bytes(shard.read_bytes().replace(b"row1", b"row9"))
    with pytest.raises(DataError, match=r"kept-00000\.jsonl: the shard is not the one that was published"):
        read_examples(run, read_manifest(run))
