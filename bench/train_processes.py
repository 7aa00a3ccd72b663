"""Processes of `bench train`: started one after the other or all at once, and always working one at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from bench.train_contender import Job
from engine.errors import PotstillError
from engine.progress import note
from engine.signals import ends_with_parent

ROOT = Path(__file__).parent.parent


class Process:
    """A contender's process, from its start to the line that it prints last."""

    def __init__(self, name: str, job: Job) -> None:
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        # Two processes that generate Unsloth's code at once would read each other's half-written files.
        compiled = f"{job.out}-compiled"
        environment = {**os.environ, "PYTHONPATH": paths, "UNSLOTH_COMPILE_LOCATION": compiled}
        command = [sys.executable, "-m", "bench.train_contender", msgspec.json.encode(job).decode()]
        self.name = name
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=Path(job.out).parent,
            preexec_fn=ends_with_parent(),
        )

    def wait_ready(self) -> None:
        """Wait until it has imported what it needs, or is gone."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line == "ready\n":
                return

    def work(self) -> dict[str, Any]:
        """Let it work; return what it found, or nothing where it failed."""
        out = ""
        try:
            out, _ = self._process.communicate("go\n")
        except BrokenPipeError:
            self._process.wait()
        if self._process.returncode:
            note(f"{self.name}: failed with exit code {self._process.returncode}; see above")
            return {}
        found: dict[str, Any] = msgspec.json.decode(out.splitlines()[-1])
        return found

    def end(self) -> None:
        """End it, whatever it is doing."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def run_all(jobs: dict[str, Job], held_out: str, *, together: bool) -> dict[str, dict[str, Any]]:
    """Train every contender, then measure their held-out losses; a contender that failed has no result.

    With `together` all start at once, which saves the minutes that libraries take to load.
    Raises: PotstillError where the losses cannot be measured.
    """
    processes: list[Process] = []
    results: dict[str, dict[str, Any]] = {}
    try:
        if together:
            processes = [Process(name, job) for name, job in jobs.items()]
            for process in processes:
                process.wait_ready()
        for place, (name, job) in enumerate(jobs.items()):
            if not together:
                processes.append(Process(name, job))
                processes[-1].wait_ready()
            results[name] = processes[place].work()
            if results[name]:
                results[name]["settings"] = [*job.overrides]
                note(f"{name}: {_told(results[name])}")
        _evaluate(jobs, results, held_out, processes)
    finally:
        for process in processes:
            process.end()
    return results


def _told(result: dict[str, Any]) -> str:
    """Say what a contender did, so that a bench that is ended on the way leaves figures."""
    timed, whole = result["timed"], f"{result['steps']} steps in {result['train_s']:.1f} s"
    if not timed["s"]:
        return f"{whole}, none of them timed"
    return f"{whole}, {timed['real'] / timed['s']:,.0f} tokens/s in {timed['step']} steps after the warm-up"


def _evaluate(
    jobs: dict[str, Job], results: dict[str, dict[str, Any]], held_out: str, processes: list[Process]
) -> None:
    students = {name: result["student"] for name, result in results.items() if result}
    if not students:
        return
    first = next(iter(jobs.values()))
    job = Job("evaluate", first.config, held_out, f"{held_out}-losses", students=students, held_out=held_out)
    processes.append(Process("evaluate", job))
    processes[-1].wait_ready()
    losses = processes[-1].work()
    if not losses:
        raise PotstillError("bench train: the held-out losses could not be measured; see above")
    for name in students:
        results[name] |= {"eval_loss": losses[name], "untrained_loss": losses["untrained"]}
