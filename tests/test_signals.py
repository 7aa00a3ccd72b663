"""What becomes of children: a child that asked for it ends when its parent is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARENT = """
import subprocess, sys, time
from engine.signals import ends_with_parent
asked = ends_with_parent() if sys.argv[1:] else None
child = subprocess.Popen(["sleep", "60"], start_new_session=True, preexec_fn=asked)
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child")
@pytest.mark.parametrize("asked", [True, False])
def test_a_killed_parent_leaves_no_child_that_asked_to_be_told(asked: bool) -> None:
    command = [sys.executable, "-c", PARENT, *(["told"] if asked else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + (5 if asked else 0.3)
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert _runs(child) is not asked
    if not asked:
        os.kill(child, signal.SIGKILL)


def _runs(pid: int) -> bool:
    """Say whether it runs; one that has ended and that nobody has asked about does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
