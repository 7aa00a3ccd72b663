"""The wheel: everything that is read at run time is inside, and nothing else is needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("engine", "trainer", "evals", "bench", "data", "potstill.py", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources and unpacked as an installation would."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"), symlinks=True)
        else:
            shutil.copy(ROOT / name, source / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(out),
        ".",
    ]
    made = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    with zipfile.ZipFile(next(out.glob("potstill-*.whl"))) as wheel:
        wheel.extractall(out / "site")
    return out / "site"


def test_what_is_read_at_run_time_is_inside(unpacked: Path) -> None:
    wanted = [
        path for room in ("engine", "evals") for path in (ROOT / room).rglob("*") if path.suffix in (".txt", ".j2")
    ]
    assert len(wanted) >= 3
    for path in wanted:
        assert (unpacked / path.relative_to(ROOT)).read_bytes() == path.read_bytes()
    modules = [path for room in ("engine", "trainer", "evals", "bench") for path in (ROOT / room).rglob("*.py")]
    assert all((unpacked / path.relative_to(ROOT)).is_file() for path in modules)
    assert not (unpacked / "data").exists()


def test_a_shipped_list_filters_without_the_checkout(unpacked: Path, tmp_path: Path) -> None:
    rows = [{"instruction": f"Ask {n}", "output": text} for n, text in enumerate(["I'm unable to say.", "It is so."])]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "potstill", "filter", "rows.jsonl", "--out", "out", "--set"]
    result = subprocess.run(
        [*command, 'filter.phrase_files=["phrases:refusals-en"]'],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout.splitlines()[-1])
    assert (summary["kept"], summary["rejected"]["phrase"]) == (1, 1)


def test_the_lists_are_seen_beside_the_other_data() -> None:
    assert (ROOT / "data" / "phrases").resolve() == ROOT / "engine" / "phrase_lists"
