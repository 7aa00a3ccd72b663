"""What vLLM prints and logs: kept in a file, out of the user's sight, and read for the cause of a failure.

Promises that nothing of it gets to stdout, that the file is deleted unless a failure points there, and that whoever
set VLLM_LOGGING_LEVEL sees everything on stderr instead. Knows nothing of what the lines mean, but for an error's.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CAUSE = re.compile(r"\b(\w*(?:Error|Exception): \S.*)")
_PYDANTIC = re.compile(r"^\d+ validation errors? for \w+\s+(?:Value error, )?(.*?) \[type=", re.DOTALL)
_POINTER = "See root cause above"
"""What vLLM's client says of an engine process that did not start: true, and no help."""
CAUSE_CHARS = 400


class EngineLog:
    """The log of one engine."""

    def __init__(self) -> None:
        self.shown = "VLLM_LOGGING_LEVEL" in os.environ
        self._descriptor, name = tempfile.mkstemp(prefix="potstill-vllm-", suffix=".log")
        self._path = Path(name)
        self._keep = False
        self._handler: logging.Handler = logging.NullHandler()

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Send stdout and stderr here; processes that start meanwhile keep writing here after it ends."""
        kept = [os.dup(number) for number in (1, 2)]
        target = kept[1] if self.shown else self._descriptor
        _point(target, target)
        try:
            yield
        finally:
            _point(*kept)
            for descriptor in kept:
                os.close(descriptor)

    def adopt(self, logger: str) -> None:
        """Write what a logger of this process says from now on here too, and nowhere else."""
        if not self.shown:
            self._handler = logging.FileHandler(self._path, encoding="utf-8")
            logging.getLogger(logger).handlers = [self._handler]

    def explain(self, error: BaseException) -> str:
        """Keep the log, with the error in it, and say what the error was and where to read on."""
        self._keep = True
        trace = "".join(traceback.format_exception(error))
        if self.shown:
            sys.stderr.write(trace)
        else:
            os.write(self._descriptor, trace.encode("utf-8", "replace"))
        text = first_sentence(error)
        if _POINTER in text:
            text = self._cause() or text
        return f"{text}; vLLM's log is {'above' if self.shown else f'in {self._path}'}"

    def _cause(self) -> str:
        """Return the last error in the log that says something."""
        for line in reversed(self._path.read_text(errors="replace").splitlines()):
            found = _CAUSE.search(line)
            if found and _POINTER not in line:
                return found.group(1)
        return ""

    def close(self) -> None:
        """Close the file, and delete it unless somebody was told to read it."""
        self._handler.close()
        os.close(self._descriptor)
        if self.shown or not self._keep:
            self._path.unlink(missing_ok=True)  # whoever cleans the folder of temporary files may be first


def first_sentence(error: BaseException) -> str:
    """Return what an error says, on one line; of pydantic's errors, what they say and not where they come from."""
    text = str(error)
    refused = _PYDANTIC.search(text)
    line = refused.group(1) if refused else f"{type(error).__name__}: {text}".partition("\n")[0]
    return " ".join(line.split())[:CAUSE_CHARS].rstrip(". ")


def _point(stdout: int, stderr: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
