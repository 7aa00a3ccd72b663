"""On-policy distillation: the student answers, and the teacher, in the same process, says how likely each token was.

A thin call of TRL's DistillationTrainer, which compares both over the whole vocabulary, on prompts alone; it goes on
with a student that has learnt the rows by `sft`. The teacher sees what the student sees: not the system prompt and the
examples that it may have written the rows with.

Source: Agarwal et al., "On-Policy Distillation of Language Models", arXiv 2306.13649.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec

from engine.config import Config, Train
from engine.errors import ConfigError
from engine.models import resolve_model
from trainer import loop, trl_backend
from trainer.captured import check_vocabulary
from trainer.job import Job
from trainer.journal import Journal
from trainer.memory import Need, estimate, read_config
from trainer.order import SeededByEpoch
from trainer.plan import Dtype
from trainer.prepare import Prepared


def as_steps(train: Train) -> Train:
    """Return the settings of the steps that follow `sft`: their number and learning rate are their own."""
    own = train.on_policy
    return msgspec.structs.replace(
        train, max_steps=own.steps, learning_rate=own.learning_rate, packing=False, patience=0
    )


def check(config: Config, prepared: Prepared) -> None:
    """Check that teacher and student tell the same tokens apart, and that there are prompts for a step.

    Raises: ConfigError where it is not so.
    """
    rows, step = len(prepared.train), config.train.batch_size * config.train.gradient_accumulation
    if rows < step:
        raise ConfigError(
            f"train.method = on_policy asks train.batch_size x train.gradient_accumulation = {step} questions a step, "
            f"and there are {rows}; lower one of them, or generate more rows"
        )
    check_vocabulary(config, prepared.chat)
    models = [(config.teacher.model, "teacher.model"), (config.student.model, "student.model")]
    sizes = [read_config(resolve_model(model, key=key)).get_text_config().vocab_size for model, key in models]
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"train.method = on_policy compares whole vocabularies, and the teacher's has {sizes[0]:,} places, the "
            f"student's {sizes[1]:,}; take another size of the family, or train.method = topk_kd"
        )


def with_teacher(need: Need, config: Config, dtype: Dtype) -> Need:
    """Add the teacher's weights to what training takes."""
    teacher = read_config(resolve_model(config.teacher.model, key="teacher.model"))
    alone = estimate(teacher, config.train, tuning="lora", dtype=dtype, tokens=0)
    taken = alone.parameters * (4 if dtype == "float32" else 2)
    return msgspec.structs.replace(need, weights_bytes=need.weights_bytes + taken)


def complete(arguments: dict[str, Any], job: Job) -> dict[str, Any]:
    """Return the keyword arguments of DistillationConfig, from those that all trainings share."""
    from trl import DistillationConfig

    own = job.settings.on_policy
    known = {field.name for field in dataclasses.fields(DistillationConfig)}
    return {
        **{key: value for key, value in arguments.items() if key in known},
        "eval_strategy": "no",
        "beta": own.beta,
        "temperature": own.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "max_completion_length": job.config.sampling.max_tokens,
        "chat_template_kwargs": job.config.teacher.chat_template_kwargs or None,
        "disable_dropout": False,
        "shuffle_dataset": True,
    }


def build(job: Job, model: Any, arguments: dict[str, Any], journal: Journal) -> Any:
    """Return a trainer of this student, with these arguments; its teacher is loaded here."""
    from trl import DistillationConfig

    trainer = _trainer_class()(
        model=model,
        teacher_model=trl_backend.load_teacher(job.config.teacher, job.plan),
        args=loop.on_one_card(DistillationConfig(**arguments)),
        train_dataset=_prompts(job.prepared),
        processing_class=job.prepared.chat.tokenizer,
        callbacks=[loop.callback(journal, 0)],
    )
    trainer.journal = journal
    loop.drop_printer(trainer)
    return trainer


def _prompts(prepared: Prepared) -> Any:
    from datasets import Dataset

    return Dataset.from_list([{"prompt": row.example.conversation({})["prompt"]} for row in prepared.train])


def _trainer_class() -> type[Any]:
    from trl import DistillationTrainer

    class OnPolicyTrainer(DistillationTrainer):  # type: ignore[misc, unused-ignore]
        """DistillationTrainer with our count of tokens, and an order of prompts that survives a resume."""

        journal: Journal

        def _get_train_sampler(self, dataset: Any = None) -> Any:
            sampler = super()._get_train_sampler(dataset)
            return SeededByEpoch(sampler, seed=self.args.seed, epoch=lambda: int(self.state.epoch or 0))

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            made = super()._generate_and_score_completions(inputs)
            if self.model.training:
                prompt, answer = made["prompt_mask"], made["completion_mask"]
                trained = int(answer.sum())
                tokens = (trained, trained + int(prompt.sum()), answer.numel() + prompt.numel())
                loop.add(tokens, self.journal, self.accelerator)
            return made

    return OnPolicyTrainer
