"""`potstill export`: what leaves, what is refused, and that nothing is lost or left half-made."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import xxhash
import yaml
from bundles import ALL, ROWS, STUDENT, export_run, make_rows, read_both, read_jsonl, whole_bundle, write_run
from test_cli import HEAVY, loaded_by

from engine.columns import Columns
from engine.config import dump, from_mapping
from engine.errors import ConfigError, DataError, MissingError, UsageError
from engine.filter_run import filter_rows
from engine.rows import user_turn
from engine.shards import read_manifest, write_manifest
from engine.split import group_of, held_out

QUESTIONS = {row.id: user_turn(row.instruction, row.input) for row in ROWS}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return whole_bundle(tmp_path_factory.mktemp("export"))


@pytest.fixture
def run(folders: tuple[Path, Path]) -> Path:
    return folders[0]


def test_the_manifest_s_checksums_and_rows_are_those_of_the_files(folders: tuple[Path, Path]) -> None:
    _, bundle = folders
    told = json.loads((bundle / "manifest.json").read_text())
    files = {file["path"]: file for file in told["files"]}
    there = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert there == files.keys() | {"manifest.json"}
    for path, file in files.items():
        data = (bundle / path).read_bytes()
        assert file["sha256"] == hashlib.sha256(data).hexdigest()
        assert file["xxh3"] == xxhash.xxh3_128_hexdigest(data)
        assert file["bytes"] == len(data)
        assert file["rows"] == (data.count(b"\n") if path.endswith(".jsonl") else None)
    assert sum(file["rows"] for path, file in files.items() if path.startswith("data/")) == len(ROWS)
    assert told["split"]["val_fraction"] == 0.2
    assert told["versions"]["potstill"]
    assert [shard["rows"] for shard in told["run"]["shards"]] == [40] * 10


def test_truncated_rows_are_refused_and_counted_unless_they_are_asked_for(tmp_path: Path) -> None:
    cut = make_rows(30, finish_reason="length", first=1000)
    run = write_run(tmp_path / "run", [*ROWS[:50], *cut])
    out, summary = export_run(run, "openai", out=tmp_path / "without")
    assert summary["refused"] == {"truncated": 30}
    assert sum(summary["rows"].values()) == 50
    assert "30 were left out" in (out / "README.md").read_text()
    assert json.loads((out / "manifest.json").read_text())["refused"] == {"truncated": 30}
    out, summary = export_run(run, "openai", out=tmp_path / "with", include_truncated=True)
    assert summary["refused"] == {"truncated": 0}
    assert sum(summary["rows"].values()) == 80
    assert sum(row["finish_reason"] == "length" for row in read_jsonl((out / "data").iterdir())) == 30


def test_the_run_s_own_settings_count_and_its_config_names_the_student(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ROWS)
    keys = {"student": {"model": "owner/small"}, "train": {"val_fraction": 0.5, "seed": 7}}
    (run / "config.toml").write_bytes(dump(from_mapping(keys, where="test")))
    out, summary = export_run(run, "trl", overrides=[])
    assert out == run / "export" / "run"
    assert yaml.safe_load((out / "trl/sft.yaml").read_text())["model_name_or_path"] == "owner/small"
    wanted = sum(held_out(group_of(QUESTIONS[row.id]), val_fraction=0.5, seed=7) for row in ROWS)
    assert summary["rows"]["validation"] == wanted > 100


def test_the_same_request_gives_the_same_bytes(run: Path, tmp_path: Path) -> None:
    first, _ = export_run(run, *ALL, out=tmp_path / "a", name="same")
    second, _ = export_run(run, *ALL, out=tmp_path / "b", name="same")
    paths = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert len(paths) > 15
    assert all((first / path).read_bytes() == (second / path).read_bytes() for path in paths)


def test_rows_of_the_filter_under_their_own_column_names(tmp_path: Path) -> None:
    lines = [{"q": f"What is {n}?", "a": f"It is {n}.", "ctx": None, "more": [n]} for n in range(30)]
    source = tmp_path / "mine.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = from_mapping({"filter": {"cap_per_template": 0}}, where="test")
    filter_rows([str(source)], tmp_path / "run", settings, columns=Columns(instruction="q", output="a", input="ctx"))
    out, summary = export_run(tmp_path / "run", "alpaca", "hf", val_fraction=0.3)
    assert sum(summary["rows"].values()) == 30
    rows = [row for part in read_both(out / "formats/alpaca") for row in part]
    assert sorted(row["output"] for row in rows) == sorted(line["a"] for line in lines)
    assert all(row["input"] == "" for row in rows)
    assert str(tmp_path) not in (out / "manifest.json").read_text()


def test_chats_of_the_filter_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ROWS[:4], fingerprint={"columns.messages": "chat"})
    with pytest.raises(UsageError, match="holds chats"):
        export_run(run, "openai")


@pytest.mark.parametrize(
    ("to", "request_", "error", "message"),
    [
        (["nemo"], {}, UsageError, "--to nemo: no such format; there are alpaca, axolotl, "),
        (["trl"], {"overrides": []}, MissingError, "names no student"),
        (["openai"], {"name": "a b"}, UsageError, "--name a b: a plain word is needed"),
        ([], {}, UsageError, "--to names no format"),
        (["openai"], {"val_fraction": 1.0}, UsageError, "--val-fraction 1.0: a share from 0 to below 1"),
        (["openai"], {"overrides": ["train.val_fraction=1.0"]}, DataError, r"no row to train on \(400 held out, 0 ref"),
        (["openai"], {"overrides": ["train.val_fractoin=1.0"]}, ConfigError, "did you mean val_fraction"),
        (["openai"], {"push_to": "owner/name"}, UsageError, "needs a format that can be sent; add hf"),
        (["trl"], {"overrides": ["student.init=prune", STUDENT]}, MissingError, "train first"),
        (["trl", "hf"], {"push_to": "o/n", "overrides": ["student.model={here}"]}, UsageError, "a folder of this"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_leaves_nothing(
    run: Path, tmp_path: Path, to: list[str], request_: dict[str, Any], error: type[Exception], message: str
) -> None:
    (tmp_path / "config.json").write_text("{}")
    overrides = [value.format(here=tmp_path) for value in request_.get("overrides", [STUDENT])]
    with pytest.raises(error, match=message):
        export_run(run, *to, out=tmp_path / "b", **{**request_, "overrides": overrides})
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_changed_shard_ends_it_and_leaves_nothing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ROWS)
    shard = run / "kept-00007.jsonl"
    shard.write_bytes(shard.read_bytes().replace(b"Say", b"Tay", 1))
    with pytest.raises(DataError, match=r"kept-00007\.jsonl: the shard is not the one"):
        export_run(run, *ALL)
    assert list((run / "export").iterdir()) == []


def test_a_student_s_own_template_travels_along(run: Path, tmp_path: Path) -> None:
    student = tmp_path / "student"
    student.mkdir()
    (student / "config.json").write_text("{}")
    (student / "tokenizer.json").write_bytes(b"{}")
    (student / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    out, _ = export_run(run, "trl", out=tmp_path / "b", overrides=[f"student.model={student}"])
    assert (out / "chat_template.jinja").read_text() == "{{ messages }}"
    told = json.loads((out / "manifest.json").read_text())["student"]
    assert told["model"] == "student"
    assert told["chat_template_sha256"] == hashlib.sha256(b"{{ messages }}").hexdigest()
    assert told["tokenizer_sha256"] == hashlib.sha256(b"{}").hexdigest()
    several = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    (student / "tokenizer_config.json").write_text(json.dumps({"chat_template": several, "eos_token": {}}))
    out, _ = export_run(run, "trl", out=tmp_path / "several", overrides=[f"student.model={student}"])
    assert (out / "chat_template.jinja").read_text() == "yes"
    (student / "chat_template.jinja").write_text("newer")
    out, _ = export_run(run, "trl", out=tmp_path / "c", overrides=[f"student.model={student}"])
    assert (out / "chat_template.jinja").read_text() == "newer"


MEMORY = """
import sys
from pathlib import Path
from bundles import export_run
export_run(Path(sys.argv[1]), "trl", "openai", "alpaca", "sharegpt", out=Path(sys.argv[2]))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    peaks_kib = []
    for count in (500, 40_000):
        run = write_run(tmp_path / str(count), make_rows(count), shard_rows=2000)
        arguments = [sys.executable, "-c", MEMORY, str(run), str(tmp_path / f"out{count}")]
        result = subprocess.run(arguments, capture_output=True, text=True, cwd=Path(__file__).parent, check=True)
        peaks_kib.append(int(result.stdout.split()[-1]))
    # Held at once, 40,000 samples take more than 30 MiB.
    assert peaks_kib[1] - peaks_kib[0] < 12 * 1024


def test_nothing_heavy_is_imported_for_jsonl() -> None:
    code = "import engine.export, engine.exports; engine.exports.exporters()"
    assert not loaded_by(code) & {*HEAVY, "huggingface_hub", "yaml"}


def test_the_command_ends_with_its_counts_and_goes_without_the_network(run: Path, tmp_path: Path) -> None:
    arguments = ["export", str(run), "--to", "trl, openai", "--out", str(tmp_path / "b"), "--set", STUDENT]
    code = (
        "import socket, sys\n"
        "def refuse(*_, **__): raise AssertionError('the network was used')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "import potstill\nsys.exit(potstill.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=True)
    summary = json.loads(result.stdout.splitlines()[-1])
    assert sum(summary["rows"].values()) == len(ROWS)
    assert Path(summary["export"]) == tmp_path / "b"


def test_a_student_that_was_cut_out_of_another_is_named_by_its_folder(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ROWS[:40])
    (run / "untrained").mkdir()
    (run / "untrained/config.json").write_text("{}")
    out, _ = export_run(run, "axolotl", overrides=[STUDENT, "student.init=prune"])
    assert yaml.safe_load((out / "axolotl/config.yaml").read_text())["base_model"] == str(run / "untrained")
    assert str(run) not in (out / "README.md").read_text() + (out / "manifest.json").read_text()


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_that_has_not_ended_is_said_to_be_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], finished: bool
) -> None:
    run = write_run(tmp_path / "run", ROWS[:20])
    manifest = read_manifest(run)
    manifest.fingerprint, manifest.finished = {"teacher.model": "m"}, finished
    write_manifest(run, manifest)
    export_run(run, "openai", out=tmp_path / "bundle")
    assert ("has not ended; these are its rows so far" in capsys.readouterr().err) == (not finished)
