"""The report: every stage shown, nothing a model wrote believed, no network, the same page for the same run."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.config import from_mapping
from engine.errors import DataError, MissingError
from engine.rows import Outcome
from engine.shards import Manifest, ShardWriter
from evals.answers import Answer
from evals.cli import COMMANDS
from evals.evaluate import evaluate
from evals.report import write_report
from evals.story import read_story

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"
KINDS: list[tuple[Outcome, str, str]] = [
    ("kept", "", ""),
    ("rejected", "duplicate", "same text as an earlier row"),
    ("kept", "", ""),
    ("rejected", "length", "0 characters, not 5 to 800"),
    ("rejected", "phrase", f"holds {HOSTILE}"),
    ("skipped", "cap", "50 rows are kept already"),
    ("rejected", "cap", "50 rows are kept already"),
    ("kept", "", ""),
    ("failed", "failed", "timed out"),
    ("rejected", "language", "not English"),
]


def write_run(folder: Path, rows: int = 200, templates: int = 3) -> Path:
    """A run folder with every outcome, written like generate writes it."""
    manifest = Manifest(
        fingerprint={"filter.phrases": ["i cannot", HOSTILE], "sampling.temperature": 0.7},
        versions={"python": "3.12.1", "potstill": "0.1.0"},
        teacher={"backend": "echo", "model": "echo"},
    )
    writer = ShardWriter(folder, manifest, shard_bytes=1 << 14)
    for index in range(rows):
        outcome, rule, reason = KINDS[index % len(KINDS)]
        row = {
            "instruction": f"Say {index} {HOSTILE}",
            "input": "",
            "output": "" if outcome in ("skipped", "failed") else f"</pre>{HOSTILE} {index}\x00\x1b[31m",
            "template": f"template-{index % templates} {HOSTILE}",
            "id": f"{index:032x}",
            "index": index,
            "finish_reason": "stop",
            "output_tokens": 12,
            "rule": rule,
            "reason": reason,
        }
        writer.append(outcome, [msgspec.json.encode(row) + b"\n"])
        if writer.due:
            writer.publish()
    manifest.finished = True
    writer.publish()
    return folder


def write_curves(folder: Path, seconds: int = 400) -> None:
    (folder / "metrics.jsonl").write_text(
        "".join(
            json.dumps(
                {"seconds": t, "asked": 10 * t, "kept": 6 * t, "output_tokens": 900 * t, "tokens_saved": {"a": t}}
            )
            + "\n"
            for t in range(1, seconds)
        )
        + '{"seconds": 400, "as'
    )
    (folder / "train").mkdir(exist_ok=True)
    lines: list[dict[str, Any]] = [{"step": step, "loss": 3 / step, "learning_rate": 1e-4} for step in range(1, 60)]
    lines += [{"step": step, "eval_loss": 3.2 / step} for step in (20, 40)]
    (folder / "train/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "train/done.json").write_text(
        json.dumps({"untrained": "a", "student": "b", "adapter": "", "rows": 1204, "seconds": 93.1})
    )


def write_evaluation(folder: Path, items: int = 80) -> None:
    """Evaluate on echo, put answers in place of echo's so that the three differ, and score again."""
    held_out = folder.parent / "items.jsonl"
    names = [f"Name the number {number} {HOSTILE}" for number in range(items)]
    held_out.write_text(
        "".join(
            json.dumps({"instruction": name, "reference": str(number), "template": "$x_1$" if number % 2 else HOSTILE})
            + "\n"
            for number, name in enumerate(names)
        )
    )
    config = from_mapping(
        {"teacher": {"backend": "echo"}, "eval": {"items": str(held_out), "bootstrap": 300}}, where="test"
    )
    evaluate(config, folder)
    right = {
        "teacher": lambda n: n % 10 > 0,
        "student": lambda n: n % 10 > 2 or n % 20 == 0,
        "untrained": lambda n: n % 10 > 8,
    }
    for who, is_right in right.items():
        path = folder / f"eval/answers-{who}.jsonl"
        answers = [msgspec.json.decode(line, type=Answer) for line in path.read_bytes().splitlines()]
        changed = [
            msgspec.structs.replace(answer, output=answer.reference if is_right(number) else f"{HOSTILE} no idea")
            for number, answer in enumerate(answers)
        ]
        path.write_bytes(b"".join(msgspec.json.encode(answer) + b"\n" for answer in changed))
    (folder / "eval/summary.json").unlink()
    evaluate(config, folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("report") / "run")
    write_curves(folder)
    write_evaluation(folder)
    return folder


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return write_report(run).read_text()


class Tags(HTMLParser):
    """Collects the tags, attributes and words of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(page)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_a_page_shows_every_stage(page: str) -> None:
    text = Tags(page).text
    for words in (
        "How much the student retained",
        "By template, worst first",
        "Teacher right, student wrong 16 items, 5 shown",
        "What was kept, and what was not",
        "60 rows kept of 200 prompts",
        "100 rejected, 20 skipped, 20 failed",
        "Rejected rows",
        "Phrases found: holds <script>alert(1)</script><img src=x onerror=alert(2)> (20).",
        "How fast",
        "Training",
        "Lines of metrics that could not be read and are left out: 1.",
        "Settings that decide the rows (2)",
        "xxh3-128",
    ):
        assert words in text, words


def test_nothing_that_a_model_or_a_user_wrote_becomes_markup(page: str) -> None:
    found = Tags(page)
    assert "script" not in found.tags
    assert "img" not in found.tags
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert HOSTILE in "".join(found.words), "it is shown, as text"
    assert "\x00" not in page
    assert "\x1b" not in page


def test_a_page_needs_no_network(page: str) -> None:
    found = Tags(page)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(found.tags)
    addresses = [value for name, value in found.attributes if name in ("src", "href", "xlink:href", "action")]
    assert all((value or "").startswith("#") for value in addresses)
    assert "http" not in re.sub(r"\s+", "", page)
    assert "@import" not in page
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))


def test_ids_of_drawings_do_not_clash(page: str) -> None:
    ids = re.findall(r' id="([^"]+)"', page)
    assert ids
    assert len(ids) == len(set(ids))


def test_the_same_run_gives_the_same_page(run: Path, page: str) -> None:
    assert write_report(run).read_text() == page


def test_the_funnel_adds_up_and_puts_other_rules_before_the_cap(run: Path) -> None:
    story = read_story(run)
    assert [(step.name, step.lost, step.left) for step in story.funnel] == [
        ("raw", 0, 180),
        ("dedup", 20, 160),
        ("length", 20, 140),
        ("phrases", 20, 120),
        ("language", 20, 100),
        ("cap", 40, 60),
    ]
    assert story.funnel[-1].left == story.outcomes["kept"]
    assert sum(line.kept for line in story.templates) == 60
    assert {cell.title: cell.count for cell in story.cells} == {
        "Teacher right, student wrong": 16,
        "Student right, teacher wrong": 4,
        "Both right": 56,
        "Both wrong": 4,
    }


def test_rows_that_are_shown_are_few_and_always_the_same(run: Path) -> None:
    story = read_story(run)
    assert len(story.kept) == 6
    assert {rule: len(rows) for rule, rows in story.rejected.items()} == dict.fromkeys(
        ("duplicate", "length", "phrase", "language", "cap"), 3
    )
    assert story.kept == read_story(run).kept


def test_a_run_that_was_only_generated_has_a_page(tmp_path: Path) -> None:
    page = write_report(write_run(tmp_path / "only")).read_text()
    assert "How much the student retained" not in page
    assert "Training" not in page
    assert "How fast" not in page
    assert "What was kept, and what was not" in page


def test_a_run_without_rows_has_a_page(tmp_path: Path) -> None:
    ShardWriter(tmp_path / "empty", Manifest(), shard_bytes=1 << 20).publish()
    page = write_report(tmp_path / "empty").read_text()
    assert "this run is not finished" in page
    assert "0 rows kept of 0 prompts" in Tags(page).text


def test_an_evaluation_without_a_result_has_a_page(tmp_path: Path) -> None:
    """A teacher that gets nothing right leaves the retained share open; the page says so."""
    folder = write_run(tmp_path / "zero")
    write_curves(folder, seconds=2)
    (tmp_path / "items.jsonl").write_text('{"instruction": "a", "reference": "nothing echo would say"}\n')
    config = from_mapping(
        {"teacher": {"backend": "echo"}, "eval": {"items": str(tmp_path / "items.jsonl"), "bootstrap": 10}}, where="t"
    )
    assert evaluate(config, folder)["eval"]["retained"] is None
    text = Tags(write_report(folder).read_text()).text
    assert "The retained share cannot be computed." in text
    assert "nan" not in text.lower().split()


def test_answers_to_different_items_are_a_sentence(run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    path = folder / "eval" / "answers-student.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))
    with pytest.raises(DataError, match="answers are not of the same items; run potstill eval again"):
        write_report(folder)
    (folder / "train/done.json").write_bytes(b"{")
    with pytest.raises(DataError, match=r"done\.json: cannot be read \(.*\); run potstill train again"):
        write_report(folder)


def test_the_command_names_the_page(run: Path) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    COMMANDS["report"].arguments(parser)
    assert COMMANDS["report"].run(parser.parse_args([str(run)])) == {"report": str(run / "report.html")}


def test_a_folder_that_is_no_run_and_a_changed_shard_are_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="is not a run"):
        write_report(tmp_path)
    folder = write_run(tmp_path / "changed")
    (folder / "kept-00000.jsonl").write_text("x\n")
    with pytest.raises(DataError, match="checksum differs"):
        write_report(folder)
    assert not (folder / "report.html").exists()
