"""Train: the kept rows of a run -> a student.

In order: rows, preflight, start model, training, student, done.json. Promises that nothing is trained that preflight
did not see, that a student appears whole or not at all, and that the same command goes on where a killed one stopped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from engine.config import Config
from engine.errors import TrainError
from engine.models import resolve_model
from engine.progress import note
from engine.shards import disk, read_manifest
from trainer import done, loop, trl_backend, unsloth_backend
from trainer.arguments import changed, plan_steps, training_arguments
from trainer.done import Done
from trainer.fold import fold
from trainer.folders import write_folder
from trainer.journal import Journal, step_of
from trainer.libraries import quiet, versions
from trainer.memory import ROOMY, Need, check_card, estimate, read_config
from trainer.plan import Dtype, Plan, look, make_plan
from trainer.prepare import Prepared, prepare, summarise
from trainer.prune import check_student, choose_layers, cut_config, prune

UNTRAINED = "untrained"
STUDENT = "student"


class Job(msgspec.Struct, frozen=True):
    """One training, settled: what the steps below share."""

    config: Config
    plan: Plan
    prepared: Prepared
    out: Path
    fingerprint: str
    start: str
    """Folder or Hugging Face id of the start model."""
    layers: tuple[int, ...]
    """Kept by pruning; none where it was not asked for."""
    need: Need
    order_rows: int
    """Rows that the settings ask to batch; a folded batch holds several times as many."""


def train(config: Config, run: Path, out: Path) -> Done:
    """Fine-tune the student on the kept rows of `run` and write the results to `out`.

    Raises: any UsageError, DataError or TrainError, each in one sentence.
    """
    manifest = read_manifest(run)
    wanted = done.fingerprint(config, manifest)
    before = done.read_done(out)
    if before is not None and done.is_done(out, before, wanted):
        note(f"train  {out} is trained already, with these settings and rows; nothing to do")
        return before
    check_student(config.student)
    plan = make_plan(config.train, look())
    if plan.backend == "unsloth":
        unsloth_backend.patch()
    with quiet():
        prepared = prepare(config, run, manifest)
        checkpoint = done.begin(out, wanted, config)
        start, layers = _start_model(config, prepared, out)
        start_config, order_rows = read_config(start), config.train.batch_size
        config = msgspec.structs.replace(config, train=fold(config.train, plan, prepared.load, start_config))
        need = _need(config, prepared, start_config, tuning=plan.tuning, dtype=plan.dtype)
        check_card(need, plan.memory_bytes)
        return _fit(Job(config, plan, prepared, out, wanted, start, layers, need, order_rows), checkpoint)


def check(config: Config, run: Path) -> dict[str, Any]:
    """Do all that needs no GPU and trains nothing; return what was seen.

    The memory is the one that the settings ask for, also where this machine could not honour them.
    Raises: as `train` does.
    """
    check_student(config.student)
    with quiet():
        manifest = read_manifest(run)
        prepared = prepare(config, run, manifest)
        start = read_config(resolve_model(config.student.model, key="student.model"))
        if config.student.init == "prune":
            cut_config(start, choose_layers(start.num_hidden_layers, config.student.layers))
        dtype: Dtype = "bfloat16" if config.train.dtype == "auto" else config.train.dtype
        need = _need(config, prepared, start, tuning=config.train.tuning, dtype=dtype)
        check_card(need, look().memory_bytes)
        return {**summarise(config, prepared), "memory": msgspec.to_builtins(need)}


def _need(config: Config, prepared: Prepared, start: Any, *, tuning: str, dtype: Dtype) -> Need:
    steps = plan_steps(config.train, prepared.load)
    longest = steps.max_length if config.train.packing else prepared.load.longest
    return estimate(start, config.train, tuning=tuning, dtype=dtype, tokens=steps.batch_size * longest)


def _start_model(config: Config, prepared: Prepared, out: Path) -> tuple[str, tuple[int, ...]]:
    """Return the model that training starts from; with init = prune it is cut first, and the kept layers are named."""
    model = resolve_model(config.student.model, key="student.model")
    if config.student.init == "model":
        return model, ()
    by_importance = config.student.layers_by == "importance"
    rows = [row.input_ids for row in prepared.train] if by_importance else None
    cut = prune(model, out / UNTRAINED, config.student.layers, rows)
    note(
        f"prune  {len(cut.layers)} of {cut.of_layers} layers ({', '.join(map(str, cut.layers))}), "
        f"{cut.parameters / 1e6:.1f} of {cut.of_parameters / 1e6:.1f} M parameters"
    )
    if cut.influence:
        note("prune  influence by layer: " + " ".join(f"{value:.3f}" for value in cut.influence))
    return str(out / UNTRAINED), cut.layers


def _fit(job: Job, checkpoint: Path | None) -> Done:
    """Train from the start model, or from a checkpoint of the same job, and write student and done.json."""
    settings, parts = job.config.train, job.prepared.parts()
    arguments = training_arguments(
        settings,
        job.plan,
        job.prepared.load,
        folder=job.out / done.FOLDER / done.CHECKPOINTS,
        gradient_checkpointing=job.plan.device == "cuda" and job.need.total_bytes > ROOMY * job.plan.memory_bytes,
    )
    # Beside metrics.jsonl; left alone, TensorBoard writes among the checkpoints, which are deleted.
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(job.out / done.FOLDER / "logs"))
    journal = Journal(job.out / done.FOLDER / "metrics.jsonl", parts={name: len(rows) for name, rows in parts.items()})
    with _full_memory(job), disk(job.out):
        model = _load(job, arguments)
        tokenizer, rows = job.prepared.chat.tokenizer, job.prepared.train
        trainer = loop.build(
            model, tokenizer, arguments, rows, parts, journal, patience=settings.patience, order_rows=job.order_rows
        )
        _report(job, arguments, trainer, checkpoint)
        journal.begin(checkpoint)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        journal.close()
    with disk(job.out / STUDENT), write_folder(job.out / STUDENT) as folder:
        loop.save(trainer, folder, job.start, tokenizer)
    finished = _finished(job, trainer, journal)
    done.write_done(job.out, finished)
    return finished


def _load(job: Job, arguments: dict[str, Any]) -> Any:
    if job.plan.backend == "unsloth":
        return unsloth_backend.load(job.start, job.config.train, job.plan, arguments)
    return trl_backend.load(job.start, job.config.train, job.plan)


def _report(job: Job, arguments: dict[str, Any], trainer: Any, checkpoint: Path | None) -> None:
    """Say on stderr what is about to happen, and what the library changed of it."""
    plan, need = job.plan, job.need
    note(
        f"train  {len(job.prepared.train)} rows, {len(job.prepared.validation)} held out, {plan.tuning} on "
        f"{plan.backend}, {plan.dtype}, {need.trained_parameters / 1e6:.1f} of {need.parameters / 1e6:.1f} M parameters"
        + (f", from step {step_of(checkpoint)}" if checkpoint else "")
    )
    if (batch := job.config.train.batch_size) != job.order_rows:
        note(f"train  {batch} rows at once instead of {job.order_rows}, in steps of as many rows as before")
    for key, (wanted, resolved) in changed(arguments, trainer.args).items():
        note(f"train  {plan.backend} made {key} = {resolved} of {wanted}")


@contextmanager
def _full_memory(job: Job) -> Iterator[None]:
    """Turn a full card into a sentence."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainError(
            f"the GPU's memory is full (estimate: {job.need.total_bytes / 2**30:.1f} GiB); halve train.batch_size and "
            "double train.gradient_accumulation, lower train.max_length, or set train.tuning = qlora"
        ) from error


def _finished(job: Job, trainer: Any, journal: Journal) -> Done:
    adapter = job.plan.tuning != "full"
    untrained = UNTRAINED if job.config.student.init == "prune" else job.config.student.model
    counts = journal.counts
    return Done(
        untrained=untrained,
        student=untrained if adapter else STUDENT,
        adapter=STUDENT if adapter else "",
        backend=job.plan.backend,
        tuning=job.plan.tuning,
        dtype=job.plan.dtype,
        layers=job.layers,
        parameters=job.need.parameters,
        trained_parameters=sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad),
        rows=len(job.prepared.train),
        validation_rows=len(job.prepared.validation),
        dropped=job.prepared.dropped,
        steps=trainer.state.global_step,
        trained_tokens=counts.trained_tokens,
        real_tokens=counts.real_tokens,
        padded_tokens=counts.padded_tokens,
        train_loss=journal.loss,
        eval_loss=journal.best_loss if trainer.args.load_best_model_at_end else journal.eval_loss,
        seconds=round(counts.seconds, 2),
        fingerprint=job.fingerprint,
        versions=versions(),
    )
