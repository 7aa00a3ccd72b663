"""`potstill run` and its stages as a person starts them: results, exit codes, interrupts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.errors import ConfigError
from evals.pipeline import StageError, run_all, run_stage

CONFIG = """
[teacher]
backend = "echo"
[teacher.echo]
tokens_per_s = {rate}
max_num_seqs = 4
[prompts]
templates = "templates.toml"
count = 300
[filter]
cap_per_template = 0
{more}
"""
TEMPLATES = """
[[template]]
id = "greet"
text = "Greet number {n}."
[template.slots.n]
range = [1, 1000]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "templates.toml").write_text(TEMPLATES)
    return tmp_path


def write_config(folder: Path, *, rate: float = 1e6, more: str = "") -> Path:
    path = folder / "greet.toml"
    path.write_text(CONFIG.format(rate=rate, more=more))
    return path


def potstill(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "potstill", *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_run_does_every_stage_and_ends_with_one_line(folder: Path) -> None:
    write_config(folder)
    process = potstill("run", "greet.toml", cwd=folder)
    out, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    (line,) = out.splitlines()
    result = json.loads(line)
    assert result["asked"] == 300 == result["kept"] + sum(result["rejected"].values()) + result["skipped"]
    assert Path(folder / result["report"]).is_file()
    assert result["report"] == "runs/greet/report.html", "the run folder is named after the configuration file"
    assert "generate (1 of 2)" in said
    assert "report (2 of 2)" in said


def test_a_finished_run_does_nothing_and_says_the_same(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = write_config(folder)
    first = run_all(config, folder / "run", [])
    again = run_all(config, folder / "run", [])
    assert {key: value for key, value in again.items() if key != "seconds"} == {
        key: value for key, value in first.items() if key != "seconds"
    }
    assert "nothing to do" in capfd.readouterr().err


def test_overrides_reach_the_stages(folder: Path) -> None:
    assert run_all(write_config(folder), folder / "run", ["prompts.count=7"])["asked"] == 7


def test_a_failing_stage_ends_the_run_with_its_exit_code(folder: Path) -> None:
    write_config(folder)
    (folder / "templates.toml").write_text(TEMPLATES.replace("{n}", "{n.__class__}"))
    process = potstill("run", "greet.toml", cwd=folder)
    out, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert out == ""
    assert "potstill generate: template greet: slot {n.__class__} must be a plain name" in said
    assert said.splitlines()[-1].startswith("potstill run: generate failed (see above)")
    assert "Traceback" not in said
    assert not (folder / "runs/greet/report.html").exists()


def test_an_evaluation_without_a_student_is_a_mistake_in_the_configuration(folder: Path) -> None:
    config = write_config(folder, more='[eval]\nitems = "items.jsonl"')
    with pytest.raises(ConfigError, match=r"student\.model is not"):
        run_all(config, folder / "run", [])
    assert not (folder / "run").exists(), "nothing has begun"


def test_a_stage_that_was_killed_gives_the_shells_exit_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "potstill.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    monkeypatch.setattr("evals.pipeline.FRONT_DOOR", folder / "potstill.py")
    with pytest.raises(StageError, match="generate failed") as caught:
        run_stage("generate", [])
    assert caught.value.exit_code == 137


def test_an_interrupt_reaches_the_stage_and_the_run_goes_on_later(folder: Path) -> None:
    write_config(folder, rate=300.0)
    process = potstill("run", "greet.toml", cwd=folder)
    deadline = time.monotonic() + 30
    metrics = folder / "runs/greet/metrics.jsonl"
    while not metrics.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    out, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert out == ""
    assert "potstill generate: stopped at prompt" in said
    assert said.splitlines()[-1] == "potstill run: generate was interrupted; run the same command again to go on"
    assert not list(folder.glob("runs/greet/*.part")), "what was answered is published"
    process = potstill("run", "greet.toml", "--set", "teacher.echo.tokens_per_s=1000000", cwd=folder)
    out, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "going on at prompt" in said
    assert json.loads(out)["asked"] == 300
