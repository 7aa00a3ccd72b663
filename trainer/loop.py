"""Loop: TRL's SFTTrainer, plain or patched by Unsloth, on rows that are rendered already.

Adds what both backends lack: an order that survives a resume, a count of trained tokens, and a check that what the
library made of the rows is what was handed to it. On a CPU the loss looks at answer positions only; with the teacher's
probabilities at hand it is that of top-k distillation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.config import Train
from engine.errors import TrainError
from trainer.captured import NUMBER, TOPK_IDS, TOPK_LOGPROBS, Captured, WithTeacher
from trainer.journal import Journal
from trainer.kd_loss import distillation_loss
from trainer.order import LengthOrder
from trainer.render import Rendered


def build(
    model: Any,
    tokenizer: Any,
    arguments: dict[str, Any],
    train: Sequence[Rendered],
    validation: dict[str, list[Rendered]],
    journal: Journal,
    settings: Train,
    captured: Captured | None = None,
) -> Any:
    """Return a trainer; `validation` maps the journal's parts to their rows, `captured` the rows to the teacher's view.

    With train.patience, it stops after so many evaluations without a better loss.

    Raises: TrainError where the library dropped, cut or masked rows.
    """
    from trl import SFTConfig

    trainer = _trainer_class()(
        model=model,
        args=on_one_card(SFTConfig(**arguments)),
        train_dataset=_dataset(train, numbered=captured is not None),
        # Sorted by length, so that little of a validation batch is padding.
        eval_dataset={name: _dataset(sorted(rows, key=lambda row: row.tokens)) for name, rows in validation.items()}
        or None,
        processing_class=tokenizer,
        callbacks=[callback(journal, settings.patience if validation else 0)],
    )
    trainer.journal = journal
    trainer.settings = settings
    if captured is not None:
        trainer.data_collator = WithTeacher(trainer.data_collator, captured)
    trainer.lengths = None if arguments["packing"] else [row.tokens for row in train]
    drop_printer(trainer)
    _check_rows(trainer.train_dataset, train)
    return trainer


def on_one_card(args: Any) -> Any:
    """Return the arguments of a trainer that takes one card, also where CUDA has started with several in sight.

    The library would spread every batch over all of them (torch's DataParallel), which TRL refuses.
    """
    _ = args.device  # counts the cards
    args._n_gpu = min(args.n_gpu, 1)
    return args


def _dataset(rows: Sequence[Rendered], *, numbered: bool = False) -> Any:
    """Return the columns that TRL and Unsloth both take for rows that are tokenised: ids, and which of them count.

    Numbered, each row also says which one it is.
    """
    import numpy as np
    from datasets import Dataset

    ids = [np.frombuffer(row.input_ids, dtype=np.int32) for row in rows]
    masks = [(np.arange(row.tokens) >= row.prompt_tokens).astype(np.int8) for row in rows]
    columns: dict[str, Any] = {"input_ids": ids, "completion_mask": masks}
    return Dataset.from_dict({**columns, NUMBER: range(len(rows))} if numbered else columns)


def _check_rows(dataset: Any, rows: Sequence[Rendered]) -> None:
    """Compare token counts: a library that cuts, drops or unmasks rows does so without a word."""
    import pyarrow.compute as pc

    table = dataset.data.table
    tokens = len(pc.list_flatten(table["input_ids"]))
    trained = pc.sum(pc.not_equal(pc.list_flatten(table["labels"]), -100)).as_py()
    expected = (sum(row.tokens for row in rows), sum(row.trained_tokens for row in rows))
    if (tokens, trained) != expected:
        raise TrainError(
            f"the training library made {tokens} tokens, {trained} of them trained, "
            f"of {expected[0]} and {expected[1]}; "
            "its version does not fit this one of potstill: install the versions that pyproject.toml names"
        )


def _trainer_class() -> type[Any]:
    from trl import SFTTrainer

    class StudentTrainer(SFTTrainer):  # type: ignore[misc, unused-ignore]
        """SFTTrainer with our order of rows, our count of tokens and, on a CPU, our loss."""

        journal: Journal
        settings: Train
        lengths: list[int] | None

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return LengthOrder(
                self.lengths or [1] * len(self.train_dataset),
                # Not this process's share of it: with any number of processes, a step has the same rows.
                batch_size=self.settings.batch_size,
                seed=self.args.seed,
                epoch=lambda: int(self.state.epoch or 0),
            )

        def _set_signature_columns_if_needed(self) -> None:
            super()._set_signature_columns_if_needed()
            if NUMBER not in self._signature_columns:
                self._signature_columns.append(NUMBER)

        def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
            batches, items = super().get_batch_samples(*args, **kwargs)
            if batches:
                tokens = [sum(kind) for kind in zip(*map(_count, batches), strict=True)]
                add(tokens, self.journal, self.accelerator)
            return batches, items

        def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> Any:
            metrics = super().evaluate(eval_dataset, *args, **kwargs)
            if eval_dataset is None:
                # Of all parts together, which the library measures one by one.
                metrics["eval_loss"] = self.journal.eval_loss
            return metrics

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            from_teacher = TOPK_IDS in inputs
            if return_outputs or not (from_teacher or self.args.use_cpu):
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            if from_teacher:
                loss = teacher_loss(model, inputs, num_items_in_batch, weight=self.settings.kd_weight)
            else:
                loss = answer_loss(model, inputs, num_items_in_batch)
            # The items are those of all processes, whose gradients are averaged, not added.
            return loss if num_items_in_batch is None else loss * self.accelerator.num_processes

    return StudentTrainer


def answer_loss(model: Any, inputs: dict[str, Any], items: Any) -> Any:
    """Return the mean cross-entropy over answer tokens (over `items` of them where a step has several batches).

    TRL's own loss projects every position onto the vocabulary unless Triton is there. With a small student that is
    most of the work, and the prompt's share of it is thrown away: a step took 1.5 times as long.
    """
    from torch.nn.functional import cross_entropy

    logits, targets, _ = _answer_logits(model, inputs)
    loss = cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")
    return loss / ((targets != -100).sum() if items is None else items)


def teacher_loss(model: Any, inputs: dict[str, Any], items: Any, *, weight: float) -> Any:
    """Return the mean loss of top-k distillation over answer tokens, with items as `answer_loss` has them."""
    logits, targets, places = _answer_logits(model, inputs)
    answer = targets != -100
    ids, logprobs = (inputs[key][:, places][answer] for key in (TOPK_IDS, TOPK_LOGPROBS))
    loss = distillation_loss(logits[answer], targets[answer], ids, logprobs, weight=weight)
    return loss / (answer.sum() if items is None else items)


def _answer_logits(model: Any, inputs: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Return logits and targets at the places where any row of the batch has an answer, and these places."""
    targets = inputs["labels"][:, 1:]
    places = (targets != -100).any(dim=0).nonzero().squeeze(1)
    rest = {key: value for key, value in inputs.items() if key not in ("labels", TOPK_IDS, TOPK_LOGPROBS)}
    logits = model(**rest, logits_to_keep=places, use_cache=False).logits
    return logits, targets[:, places], places


def _count(batch: Any) -> tuple[int, int, int]:
    """Return trained, real and padded tokens of a batch."""
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    trained = int((batch["labels"][:, 1:] != -100).sum())
    return trained, ids.numel() if mask is None else int(mask.sum()), ids.numel()


def add(tokens: Sequence[int], journal: Journal, accelerator: Any) -> None:
    """Add the trained, real and padded tokens of a step, those of all processes, to the journal."""
    import torch

    if accelerator.num_processes > 1:
        sums = torch.tensor(tokens, dtype=torch.int64, device=accelerator.device)
        tokens = accelerator.reduce(sums, reduction="sum").tolist()
    trained, real, padded = tokens
    journal.count(trained=trained, real=real, padded=padded)


def callback(journal: Journal, patience: int) -> Any:
    from transformers import TrainerCallback

    class JournalCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
        """Hands the journal what happens, and stops when patience is over."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step >= state.max_steps:
                control.should_log = True  # between two points of the curve, a loss that is no number would not show
                # The last step is one more candidate for the best; else its checkpoint is of no use.
                control.should_evaluate = control.should_evaluate or patience > 0
                control.should_save = patience > 0

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            journal.log(state.global_step, state.max_steps, state.epoch or 0.0, logs or {})
            if 0 < patience <= journal.stale:
                control.should_training_stop = True

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            journal.keep(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    return JournalCallback()


def drop_printer(trainer: Any) -> None:
    """Remove the callback that prints every log on stdout."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)


def save(trainer: Any, folder: Path, start: str, tokenizer: Any) -> None:
    """Write the student: the adapter, or the whole model in the number format of the model it came from."""
    from peft import PeftModel
    from transformers import AutoConfig

    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    if isinstance(model, PeftModel):
        # Its default asks the network whether the vocabulary was resized; it never is here.
        model.save_pretrained(folder, save_embedding_layers=False)
    else:
        dtype = AutoConfig.from_pretrained(start).dtype
        (model if dtype is None else model.to(dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
