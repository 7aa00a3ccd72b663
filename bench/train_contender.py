"""One training of `bench train` in a process of its own, since Unsloth patches the libraries of its process for good.

Started by `bench.train_processes` as `python -m bench.train_contender JOB`. Imports what it needs, says `ready`, waits
for a line, trains or evaluates, and prints one JSON line. So several can start at once and still train in turn.
"""

from __future__ import annotations

import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import msgspec

from bench.peak import peak_bytes
from bench.recipe import Settings, train_recipe
from bench.train_rows import read_run
from engine.config import Config, load
from engine.errors import PotstillError
from trainer import unsloth_backend
from trainer.journal import read_lines
from trainer.libraries import quiet
from trainer.plan import look, make_plan

CONTENDERS = ("recipe", "recipe-auto", "recipe-trl", "potstill-unsloth", "potstill-trl")
"""`recipe` is the recipe with Unsloth where it is there; `recipe-auto` the same with padding left to Unsloth;
`recipe-trl` without Unsloth. `potstill-` is `potstill train` on either backend."""


class Job(msgspec.Struct, frozen=True):
    """What a process is to do; all paths lie in the bench's workspace."""

    contender: str
    config: str
    run: str
    out: str
    overrides: list[str] = []
    warm_up: int = 3
    students: dict[str, str] = {}
    """Of `evaluate`: the contenders, and what they trained."""
    held_out: str = ""


def main(text: str) -> None:
    """Get ready, wait, work, and print what was found."""
    job, out = msgspec.json.decode(text, type=Job), sys.stdout
    with redirect_stdout(sys.stderr):
        try:
            work = _ready(job)
            print("ready", file=out, flush=True)
            sys.stdin.readline()
            found = work()
        except PotstillError as error:
            print(f"{job.contender}: {error}", file=sys.stderr)
            sys.exit(error.exit_code)
    print(msgspec.json.encode(found).decode(), file=out, flush=True)


def _ready(job: Job) -> Any:
    """Import the libraries of a job and return the work itself."""
    config = load(Path(job.config), job.overrides)
    plan = make_plan(config.train, look())
    if job.contender != "evaluate" and plan.backend == "unsloth":
        unsloth_backend.patch()
    import peft
    import transformers  # noqa: F401
    import trl

    del peft, trl
    with quiet():
        pass
    if job.contender == "evaluate":
        from bench.heldout_loss import losses

        return lambda: losses(config, Path(job.held_out), job.students)
    return lambda: _measured(job, config)


def _measured(job: Job, config: Config) -> dict[str, Any]:
    with quiet():
        found = (_recipe if job.contender.startswith("recipe") else _potstill)(job, config)
    return {**found, **_memory()}


def _potstill(job: Job, config: Config) -> dict[str, Any]:
    from trainer.train import train

    started = time.perf_counter()
    done = train(config, Path(job.run), Path(job.out))
    whole_s = time.perf_counter() - started
    lines = [line for line in read_lines(Path(job.out) / "train" / "metrics.jsonl") if line.loss is not None]
    last = lines[-1]
    first = next((line for line in lines if line.step >= job.warm_up), last)
    return {
        "backend": done.backend,
        "tuning": done.tuning,
        "dtype": done.dtype,
        "steps": done.steps,
        "train_s": done.seconds,
        "load_s": whole_s - done.seconds,
        "train_loss": done.train_loss,
        "real": done.real_tokens,
        "padded": done.padded_tokens,
        "timed": {
            "step": last.step - first.step,
            "s": last.seconds - first.seconds,
            "real": last.real_tokens - first.real_tokens,
            "padded": last.padded_tokens - first.padded_tokens,
        },
        "student": str(Path(job.out) / (done.adapter or done.student)),
    }


def _recipe(job: Job, config: Config) -> dict[str, Any]:
    plan = make_plan(config.train, look())
    settings = Settings(
        model=config.student.model,
        unsloth=plan.backend == "unsloth",
        padding=job.contender != "recipe-auto",
        tuning=plan.tuning,
        dtype=plan.dtype,
        device=plan.device,
        epochs=config.train.epochs,
        max_steps=config.train.max_steps or 0,
        warm_up=job.warm_up,
        seed=config.train.seed,
    )
    started = time.perf_counter()
    found = train_recipe(settings, list(read_run(Path(job.run))), Path(job.out))
    return {
        "backend": plan.backend,
        "tuning": plan.tuning,
        "dtype": plan.dtype,
        "load_s": time.perf_counter() - started - found["train_s"],
        "student": job.out,
        **found,
    }


def _memory() -> dict[str, float]:
    """Return the peak of what tensors took on the GPU, or of the process's memory where there is no GPU."""
    import torch

    if torch.cuda.is_available():
        return {"peak_gb": torch.cuda.max_memory_allocated() / 1e9}
    return {"peak_gb": peak_bytes() / 1e9}


if __name__ == "__main__":
    main(sys.argv[1])
