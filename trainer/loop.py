"""Loop: TRL's SFTTrainer, plain or patched by Unsloth, on rows that are rendered already.

Adds what both backends lack: an order that survives a resume, a count of trained tokens, and a check that what the
library made of the rows is what was handed to it. On a CPU the loss looks at answer positions only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.errors import TrainError
from trainer.journal import Journal
from trainer.order import LengthOrder
from trainer.render import Rendered


def build(
    model: Any,
    tokenizer: Any,
    arguments: dict[str, Any],
    train: Sequence[Rendered],
    validation: dict[str, list[Rendered]],
    journal: Journal,
    *,
    patience: int = 0,
    order_rows: int = 1,
) -> Any:
    """Return a trainer; `validation` maps the journal's parts to their rows.

    With patience, it stops after so many evaluations without a better loss. `order_rows` rows of about one length
    stand together in the order, whatever a batch holds.

    Raises: TrainError where the library dropped, cut or masked rows.
    """
    from trl import SFTConfig

    trainer = _trainer_class()(
        model=model,
        args=SFTConfig(**arguments),
        train_dataset=_dataset(train),
        # Sorted by length, so that little of a validation batch is padding.
        eval_dataset={name: _dataset(sorted(rows, key=lambda row: row.tokens)) for name, rows in validation.items()}
        or None,
        processing_class=tokenizer,
        callbacks=[_callback(journal, patience if validation else 0)],
    )
    trainer.journal = journal
    trainer.order_rows = order_rows
    trainer.lengths = None if arguments["packing"] else [row.tokens for row in train]
    _drop_printer(trainer)
    _check_rows(trainer.train_dataset, train)
    return trainer


def _dataset(rows: Sequence[Rendered]) -> Any:
    """Return the columns that TRL and Unsloth both take for rows that are tokenised: ids, and which of them count."""
    import numpy as np
    from datasets import Dataset

    ids = [np.frombuffer(row.input_ids, dtype=np.int32) for row in rows]
    masks = [(np.arange(row.tokens) >= row.prompt_tokens).astype(np.int8) for row in rows]
    return Dataset.from_dict({"input_ids": ids, "completion_mask": masks})


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
        lengths: list[int] | None
        order_rows: int

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return LengthOrder(
                self.lengths or [1] * len(self.train_dataset),
                batch_size=self.order_rows,
                seed=self.args.seed,
                epoch=lambda: int(self.state.epoch or 0),
            )

        def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
            batches, items = super().get_batch_samples(*args, **kwargs)
            for batch in batches:
                _count(batch, self.journal)
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
            if self.args.use_cpu and not return_outputs:
                return answer_loss(model, inputs, num_items_in_batch)
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    return StudentTrainer


def answer_loss(model: Any, inputs: dict[str, Any], items: Any) -> Any:
    """Return the mean cross-entropy over answer tokens (over `items` of them where a step has several batches).

    TRL's own loss projects every position onto the vocabulary unless Triton is there. With a small student that is
    most of the work, and the prompt's share of it is thrown away: a step took 1.5 times as long.
    """
    from torch.nn.functional import cross_entropy

    targets = inputs["labels"][:, 1:]
    places = (targets != -100).any(dim=0).nonzero().squeeze(1)
    rest = {key: value for key, value in inputs.items() if key != "labels"}
    logits = model(**rest, logits_to_keep=places, use_cache=False).logits
    targets = targets[:, places]
    loss = cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")
    return loss / ((targets != -100).sum() if items is None else items)


def _count(batch: Any, journal: Journal) -> None:
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    trained = int((batch["labels"][:, 1:] != -100).sum())
    journal.count(trained=trained, real=ids.numel() if mask is None else int(mask.sum()), padded=ids.numel())


def _callback(journal: Journal, patience: int) -> Any:
    from transformers import TrainerCallback

    class JournalCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
        """Hands the journal what happens, and stops when patience is over."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step >= state.max_steps:
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


def _drop_printer(trainer: Any) -> None:
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
