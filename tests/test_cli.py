"""The front door, as a person meets it: quick, one sentence per mistake, exit codes as promised."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {
    *("torch", "vllm", "transformers", "trl", "peft", "unsloth", "datasets", "accelerate", "pyarrow"),
    *("matplotlib", "jinja2", "aiohttp", "numpy", "prometheus_client"),
}


def potstill(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "potstill", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120, check=False)


def loaded_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(' '.join(sorted(m.partition('.')[0] for m in sys.modules)), file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(result.stderr.split())


@pytest.mark.parametrize(
    "code",
    [
        "import potstill",
        "import potstill\ntry: potstill.main(['--help'])\nexcept SystemExit: pass",
        "import potstill\ntry: potstill.main(['generate', '--help'])\nexcept SystemExit: pass",
        "import engine.generate, engine.verify, engine.cli, trainer.cli, evals.cli, bench.cli",
    ],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    assert not loaded_by(code) & HEAVY


def test_help_is_instant() -> None:
    best = min(_seconds("--help") for _ in range(3))
    assert best < 0.5


def _seconds(*arguments: str) -> float:
    start = time.perf_counter()
    assert potstill(*arguments).returncode == 0
    return time.perf_counter() - start


def test_every_room_resolves_to_this_checkout(tmp_path: Path) -> None:
    rooms = "engine, trainer, evals, bench, potstill"
    code = f"import {rooms}; print(*(room.__file__ for room in ({rooms})))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert all(Path(name).is_relative_to(ROOT) for name in result.stdout.split())
    for name in ("data", "tests"):
        code = f"import importlib.util; print(importlib.util.find_spec({name!r}))"
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
        assert str(ROOT) not in found.stdout, f"{name} is importable"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["generate", "none.toml", "--out", "x"], 2, "none.toml: no such configuration file"),
        (["generate", "data/echo.toml", "--out", "x", "--set", "filter.max_char=1"], 2, "did you mean max_chars?"),
        (["generate", "data/echo.toml", "--out", "x", "--set", "prompts.templates=none.toml"], 2, "is not there"),
        (["generate", "data/echo.toml", "--out", "/proc/none/x"], 1, "/proc/none"),
        (["generate", "data/echo.toml", "--out", "x", "--set", "teacher.backend=openai", "--set", "teacher.model=m"], 1,
         "127.0.0.1:8000"),
        (["verify", "data"], 2, "is not a run"),
        (["train", "data/echo.toml", "--data", "none"], 2, "none"),
        (["eval", "none.toml"], 2, "none.toml"),
        (["report", "none"], 2, "none"),
        (["filter", "none.jsonl", "--out", "x"], 2, "none.jsonl"),
        (["nonsense"], 2, "invalid choice"),
        ([], 2, "required"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(arguments: list[str], code: int, says: str, tmp_path: Path) -> None:
    arguments = [str(tmp_path / "x") if argument == "x" else argument for argument in arguments]
    result = potstill(*arguments)
    assert result.returncode == code, result.stderr
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_debug_shows_where_it_came_from() -> None:
    result = potstill("verify", "data", "--debug")
    assert "Traceback" in result.stderr


def test_a_model_folder_that_is_not_there(tmp_path: Path) -> None:
    arguments = ["generate", "data/quickstart.toml", "--out", str(tmp_path / "x"), "--set", "teacher.model=./none"]
    result = potstill(*arguments)
    assert result.returncode == 2
    assert "none is not a folder" in result.stderr


def test_a_library_that_is_not_installed_is_named(tmp_path: Path) -> None:
    arguments = ["train", "data/quickstart.toml", "--data", str(tmp_path)]
    potstill("generate", "data/echo.toml", "--out", str(tmp_path), "--set", "prompts.count=200")
    code = f"import sys; sys.modules['torch'] = None; import potstill; sys.exit(potstill.main({arguments!r}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 2
    assert "needs torch, which is not installed; pip install 'potstill[cpu]'" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("module", ["argparse", "engine.cli", "engine.shards"])
def test_ctrl_c_while_it_is_still_importing_is_quiet(module: str) -> None:
    code = f"""
import signal, sys
class Press:
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Press())
import potstill
sys.exit(potstill.main(["explain", "none"]))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 130
    assert result.stderr == "potstill explain: interrupted; run the same command again to go on\n"


def test_what_filter_wrote_can_be_verified_and_reported(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"q": "Say <b>", "a": "a fine answer"}\n{"q": "Say", "a": "no"}\n{bad\n')
    folder = str(tmp_path / "out")
    filtered = potstill("filter", str(tmp_path / "rows.jsonl"), "--out", folder, "--instruction", "q", "--output", "a")
    assert filtered.returncode == 0, filtered.stderr
    assert potstill("verify", folder).returncode == 0
    result = potstill("report", folder)
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "out" / "report.html").read_text()
    assert "a fine answer" in page
    assert "Say &lt;b&gt;" in page
