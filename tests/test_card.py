"""The card of a bundle: what it tells, and what it never does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bundles import ROWS, export_run, front_matter, whole_bundle, write_run


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return whole_bundle(tmp_path_factory.mktemp("card"))


@pytest.fixture
def bundle(folders: tuple[Path, Path]) -> Path:
    return folders[1]


def test_the_card_tells_who_wrote_the_rows_what_was_left_out_and_what_they_may_be_used_for(bundle: Path) -> None:
    head, body = front_matter(bundle)
    assert head["size_categories"] == ["n<1K"]
    rows = {split["name"]: split["num_examples"] for split in head["dataset_info"]["splits"]}
    assert sum(rows.values()) == len(ROWS)
    for said in (
        "`teacher-4b`",
        "sampling.temperature = 0.7",
        "filter.max_chars = 800",
        '"/think"',
        "rejected.duplicate = 4",
        "raw 408 -> dedup 404",
        "trl sft --config trl/sft.yaml",
        "## Licence",
        "chat template",
    ):
        assert said in body
    for file in json.loads((bundle / "manifest.json").read_text())["files"]:
        assert file["path"] == "README.md" or file["sha256"] in body


def test_what_a_user_typed_cannot_break_out_of_the_card(bundle: Path) -> None:
    _, body = front_matter(bundle)
    lines = [line for line in body.splitlines() if "<script>" in line or "a cell" in line]
    assert lines
    assert all(line.startswith("    ") for line in lines)
    assert "\n# no title" not in body


def test_nothing_tells_of_this_machine(folders: tuple[Path, Path]) -> None:
    run, bundle = folders
    for path in bundle.rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert "/home/somebody" not in text, path
            assert "inside:8000" not in text, path
            assert str(run) not in text, path


def test_the_teacher_s_score_is_told_where_the_run_was_evaluated(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ROWS[:20])
    (run / "eval").mkdir()
    (run / "eval/summary.json").write_text('{"eval": {"teacher": 0.9, "student": 0.7, "items": 240}}')
    out, _ = export_run(run, "openai")
    assert "On 240 held-out items with known answers, the teacher scored 90.0%." in (out / "README.md").read_text()


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ROWS[:20])
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"finished": False, "summary": {}}))
    out, _ = export_run(run, "openai")
    assert "finished = false\n    kept = 20" in (out / "README.md").read_text()
