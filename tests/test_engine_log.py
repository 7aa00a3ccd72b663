"""The engine's log: nothing to stdout, deleted after a good end, and the cause of a bad one."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.engine_log import EngineLog, first_sentence


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that logs are made in, with the user not asking for them."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("VLLM_LOGGING_LEVEL", raising=False)
    return tmp_path


def chatter() -> None:
    """Print as libraries do, below Python and from a process of their own."""
    os.write(1, b"to stdout\n")
    os.write(2, b"to stderr\n")
    subprocess.run([sys.executable, "-c", "print('from a child')"], check=True)


def test_everything_is_caught_and_then_forgotten(logs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = EngineLog()
    with log.capture():
        chatter()
        (path,) = logs.iterdir()
        assert sorted(path.read_text().split("\n")) == ["", "from a child", "to stderr", "to stdout"]
    os.write(1, b"ours again\n")
    assert capfd.readouterr().out == "ours again\n"
    log.close()
    assert not list(logs.iterdir())


def test_python_prints_go_there_too(logs: Path) -> None:
    """In a process whose stdout is not pytest's."""
    script = "\n".join(
        (
            "from engine.engine_log import EngineLog",
            "log = EngineLog()",
            "with log.capture():",
            "    print('noise')",
            "print('result')",
        )
    )
    environment = {**os.environ, "TMPDIR": str(logs)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("result\n", "")
    (path,) = logs.iterdir()
    assert path.read_text() == "noise\n"


def test_an_error_keeps_it_and_says_where(logs: Path) -> None:
    log = EngineLog()
    with log.capture():
        chatter()
    said = log.explain(RuntimeError("no more memory.\nA long story."))
    log.close()
    (path,) = logs.iterdir()
    assert said == f"RuntimeError: no more memory; vLLM's log is in {path}"
    assert "to stdout" in path.read_text()
    assert "A long story." in path.read_text()


def test_the_cause_of_a_failed_process_is_read_from_the_log(logs: Path) -> None:
    log = EngineLog()
    with log.capture():
        os.write(2, b"(EngineCore pid=7) ValueError: To serve one request, 3 GiB of cache are needed.\n")
        os.write(2, b"RuntimeError: Engine core initialization failed. See root cause above.\n")
    said = log.explain(RuntimeError("Engine core initialization failed. See root cause above."))
    assert said.startswith("ValueError: To serve one request, 3 GiB of cache are needed.; vLLM's log")
    log.close()


def test_whoever_sets_a_level_sees_it(
    logs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "INFO")
    log = EngineLog()
    with log.capture():
        chatter()
    assert log.explain(ValueError("bad")) == "ValueError: bad; vLLM's log is above"
    log.close()
    seen = capfd.readouterr()
    assert seen.out == ""
    assert "from a child" in seen.err
    assert not list(logs.iterdir())


def test_a_logger_goes_the_same_way(logs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = EngineLog()
    log.adopt("noisy")
    logging.getLogger("noisy").error("this is fine")
    (path,) = logs.iterdir()
    assert "this is fine" in path.read_text()
    log.close()
    logging.getLogger("noisy").handlers = []
    assert capfd.readouterr() == ("", "")


def test_the_first_sentence_of_pydantics_errors_is_what_they_say() -> None:
    class ValidationError(Exception):
        pass

    long = (
        "1 validation error for ModelConfig\n  Value error, the length\n  is wrong. [type=value_error, input=3]\n more"
    )
    assert first_sentence(ValidationError(long)) == "the length is wrong"
    assert first_sentence(KeyError("k")) == "KeyError: 'k'"
