"""Train: the kept rows of a run -> a student; or gold rows -> a teacher, in the same way.

In order: rows, preflight, start model, training, student, done.json. Promises that nothing is trained that preflight
did not see, that a student appears whole or not at all, and that the same command goes on where a killed one stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from engine.config import Config, Train
from engine.errors import TrainError
from engine.models import resolve_model
from engine.shards import disk
from trainer import done, loop, on_policy, ranks, trackers, trl_backend, unsloth_backend
from trainer.arguments import changed, plan_steps, share, training_arguments
from trainer.captured import read_captured
from trainer.done import Done
from trainer.fold import fold
from trainer.folders import write_folder
from trainer.job import Job
from trainer.journal import Journal, step_of
from trainer.libraries import quiet, versions
from trainer.memory import ROOMY, Need, check_card, estimate, read_config
from trainer.plan import Dtype, Plan, check_settings, look, make_plan
from trainer.prepare import Prepared, prepare, say_pair, summarise
from trainer.prune import check_student, choose_layers, cut_config
from trainer.ranks import note
from trainer.roles import STUDENT, Role, in_role, open_rows, speaking_of
from trainer.start import start_after, start_model


def train(config: Config, data: Path, out: Path, role: Role = STUDENT) -> Done:
    """Fine-tune the student (or the teacher) on the rows of a run or a JSONL file and write the results to `out`.

    Raises: any UsageError, DataError or TrainError, each in one sentence.
    """
    with speaking_of(role):
        config = in_role(config, role)
        check_student(config.student)
        finished = _train(config, data, out, role)
    ranks.leave()
    return finished


def _train(config: Config, data: Path, out: Path, role: Role, plan: Plan | None = None) -> Done:
    run, manifest = open_rows(data)
    wanted = done.fingerprint(config, manifest)
    before = done.read_done(out, role)
    if before is not None and done.is_done(out, before, wanted):
        note(f"train  {out} is trained already, with these settings and rows; nothing to do")
        return before
    if manifest.is_open:
        note(f"train  {data} has not ended; these are its rows so far")
    plan = plan or make_plan(config.train, look())
    if plan.backend == "unsloth":
        unsloth_backend.patch()
    with quiet():
        prepared = prepare(config, run, manifest)
        settings = share(config.train, plan.processes)
        first = None
        if config.train.method == "on_policy":
            on_policy.check(config, prepared)
            first = _sft_first(config, data, out, role, plan)
        captured = None
        if config.train.method == "topk_kd":
            captured = read_captured(run, config, prepared.chat, prepared.train)
        ranks.join(plan.device)
        checkpoint = _begin(out / role.records, wanted, config)
        start = start_after(first, config, out) if first else start_model(config, prepared, out)
        if first:
            settings = on_policy.as_steps(settings)
        start_config = read_config(start.model)
        settings = settings if first else fold(settings, plan, prepared.load, start_config)
        need = _need(settings, prepared, start_config, tuning=plan.tuning, dtype=plan.dtype)
        if first:
            need = on_policy.with_teacher(need, config, plan.dtype)
        check_card(need, plan.memory_bytes)
        job = Job(config, settings, plan, prepared, captured, data, out, role, wanted, start, need)
        return _fit(job, checkpoint)


def _sft_first(config: Config, data: Path, out: Path, role: Role, plan: Plan) -> Done:
    """Train what on_policy goes on with, in a folder of its own; one that is there already is taken.

    In the plan's backend: Unsloth, once imported, would patch the on-policy trainer, too.
    """
    before = msgspec.structs.replace(config.train, method="sft")
    return _train(msgspec.structs.replace(config, train=before), data, out / done.SFT, role, plan)


def _begin(records: Path, wanted: str, config: Config) -> Path | None:
    """Make the folder of records ready; return the checkpoint that a killed training of this fingerprint left."""
    if ranks.is_main():
        done.begin(records, wanted, config)
    ranks.wait()
    return done.last_checkpoint(records)


def check(config: Config, data: Path, role: Role = STUDENT) -> dict[str, Any]:
    """Do all that needs no GPU and trains nothing; return what was seen.

    The memory is the one that the settings ask for, also where this machine could not honour them.
    Raises: as `train` does.
    """
    with speaking_of(role):
        return _check(in_role(config, role), data)


def _check(config: Config, data: Path) -> dict[str, Any]:
    check_student(config.student)
    check_settings(config.train)
    settings = share(config.train, config.train.processes)
    with quiet():
        run, manifest = open_rows(data)
        prepared = prepare(config, run, manifest)
        start = read_config(resolve_model(config.student.model, key="student.model"))
        if config.student.init == "prune":
            cut_config(start, choose_layers(start.num_hidden_layers, config.student.layers))
        dtype: Dtype = "bfloat16" if config.train.dtype == "auto" else config.train.dtype
        need = _need(settings, prepared, start, tuning=config.train.tuning, dtype=dtype)
        if config.train.method == "on_policy":
            on_policy.check(config, prepared)
            need = on_policy.with_teacher(need, config, dtype)
        memory_bytes = look().memory_bytes
        check_card(need, memory_bytes)
        note(need.sentence(memory_bytes))
        seen = {**summarise(config, prepared), "memory": msgspec.to_builtins(need)}
        say_pair(seen["like_teacher"])
        if config.train.method == "topk_kd":
            seen["unmatched"] = read_captured(run, config, prepared.chat, prepared.train).unmatched
        return seen


def _need(settings: Train, prepared: Prepared, start: Any, *, tuning: str, dtype: Dtype) -> Need:
    steps = plan_steps(settings, prepared.load)
    longest = steps.max_length if settings.packing else prepared.load.longest
    return estimate(start, settings, tuning=tuning, dtype=dtype, tokens=steps.batch_size * longest)


def _fit(job: Job, checkpoint: Path | None) -> Done:
    """Train from the start model, or from a checkpoint of the same job, and write student and done.json."""
    arguments = training_arguments(
        job.settings,
        job.plan,
        job.prepared.load,
        folder=job.records / done.CHECKPOINTS,
        gradient_checkpointing=job.plan.device == "cuda" and job.need.total_bytes > ROOMY * job.plan.memory_bytes,
    )
    if job.config.train.method == "on_policy":
        arguments = on_policy.complete(arguments, job)
    arguments |= trackers.names(job.out)
    parts = {name: len(rows) for name, rows in job.prepared.parts().items()}
    journal = Journal(job.records / "metrics.jsonl", parts=parts, writes=ranks.is_main())
    reports = trackers.reporting(job.config.train.report_to, logs=job.records / "logs")
    with reports, _full_memory(job), disk(job.out):
        trainer = _trainer(job, arguments, journal)
        _report(job, arguments, trainer, checkpoint)
        journal.begin(checkpoint)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        journal.close()
    finished = _finished(job, trainer, journal)
    if ranks.is_main():
        weights = job.out / job.role.name
        with disk(weights), write_folder(weights) as folder:
            loop.save(trainer, folder, job.start.model, job.prepared.chat.tokenizer)
        done.write_done(job.out, finished, job.role)
    ranks.wait()
    return finished


def _trainer(job: Job, arguments: dict[str, Any], journal: Journal) -> Any:
    model = _load(job, arguments)
    if job.config.train.method == "on_policy":
        return on_policy.build(job, model, arguments, journal)
    rows = (job.prepared.train, job.prepared.parts())
    return loop.build(model, job.prepared.chat.tokenizer, arguments, *rows, journal, job.config.train, job.captured)


def _load(job: Job, arguments: dict[str, Any]) -> Any:
    if job.plan.backend == "unsloth":
        return unsloth_backend.load(job.start.model, job.settings, job.plan, arguments)
    return trl_backend.load(job.start.model, job.settings, job.plan, job.start.adapter)


def _report(job: Job, arguments: dict[str, Any], trainer: Any, checkpoint: Path | None) -> None:
    """Say on stderr what is about to happen, and what the library changed of it."""
    plan, need = job.plan, job.need
    together = f", {plan.processes} processes" if plan.processes > 1 else ""
    note(
        f"train  {job.config.train.method}: {len(job.prepared.train)} rows, {len(job.prepared.validation)} held out, "
        f"{plan.tuning} on {plan.backend}, {plan.dtype}{together}, "
        f"{need.trained_parameters / 1e6:.1f} of {need.parameters / 1e6:.1f} M parameters"
        + (f", from step {step_of(checkpoint)}" if checkpoint else "")
    )
    if job.captured is not None and job.captured.unmatched:
        note(f"train  {job.captured.unmatched} rows learn from their text alone: the teacher's tokens are others")
    if (batch := job.settings.batch_size) > (asked := job.config.train.batch_size):
        note(f"train  {batch} rows at once instead of {asked}, in steps of as many rows as before")
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
    untrained = job.start.untrained
    counts = journal.counts
    return Done(
        untrained=untrained,
        student=untrained if adapter else job.role.name,
        adapter=job.role.name if adapter else "",
        backend=job.plan.backend,
        tuning=job.plan.tuning,
        dtype=job.plan.dtype,
        layers=job.start.layers,
        data=job.data_from_out,
        method=job.config.train.method,
        unmatched=job.captured.unmatched if job.captured else 0,
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
