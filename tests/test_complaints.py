"""Standard error that takes nothing: the work, the line on standard output and the exit code are as ever."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from echo_runs import ECHO, ROOT


def potstill(way: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    reader, writer = os.pipe()
    os.close(reader)
    command = 'exec "$@" ' + {"full": "2>/dev/full", "closed": "2>&-", "pipe": f"2>&{writer}"}[way]
    given = [sys.executable, "-m", "potstill", *map(str, arguments)]
    try:
        return subprocess.run(
            ["bash", "-c", command, "bash", *given], stdout=subprocess.PIPE, pass_fds=[writer], cwd=ROOT, text=True
        )
    finally:
        os.close(writer)


@pytest.mark.parametrize("way", ["full", "closed", "pipe"])
def test_a_generation_goes_on(way: str, tmp_path: Path) -> None:
    sets = ("prompts.count=200", "teacher.echo.tokens_per_s=1e9", "teacher.replicas=2")
    overrides = [part for one in sets for part in ("--set", one)]
    done = potstill(way, "generate", ECHO, "--out", tmp_path / "run", *overrides)
    assert done.returncode == 0
    summary = json.loads(done.stdout)
    assert (summary["asked"], summary["ending"]) == (200, "prompts")


def test_a_failure_keeps_its_exit_code(tmp_path: Path) -> None:
    for arguments, code in ((("verify", tmp_path / "none"), 2), (("generate", ECHO, "--out", ECHO / "run"), 1)):
        done = potstill("full", *arguments)
        assert (done.returncode, done.stdout) == (code, "")


def test_a_stream_of_somebody_elses_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from io import StringIO

    from engine.complaints import tolerate_loss

    own = StringIO()
    monkeypatch.setattr(sys, "stderr", own)
    tolerate_loss()
    assert sys.stderr is own
