"""The held-out loss of every contender, measured in one way: the mean cross-entropy over all answer tokens.

Each student is loaded plainly, its adapter on the 16- or 32-bit base that a server would put it on, and computes in
float32. So a loss says what was learnt, and not which library or number format it was learnt with.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.train_rows import read_run
from engine.config import Config
from trainer.examples import example_of
from trainer.libraries import quiet
from trainer.loop import answer_loss
from trainer.render import Rendered, load_chat, render

BATCH_ROWS = 16


def losses(config: Config, held_out: Path, students: dict[str, str]) -> dict[str, float]:
    """Return the loss of each student, and of the untrained model under `untrained`."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with quiet():
        chat = load_chat(config.student.model, config.teacher.chat_template_kwargs)
        rows = list(render(chat, [example_of(row) for row in read_run(held_out)]))
        base = AutoModelForCausalLM.from_pretrained(config.student.model, dtype=torch.float32).to(device).eval()
        found = {"untrained": loss_of(base, rows)}
        for name, folder in students.items():
            if not (Path(folder) / "adapter_config.json").exists():
                whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
                found[name] = loss_of(whole, rows)
                continue
            student = PeftModel.from_pretrained(base, folder).eval()
            found[name] = loss_of(student, rows)
            base = student.unload()
    return found


def loss_of(model: Any, rows: Sequence[Rendered]) -> float:
    """Return the mean loss over the answer tokens of all rows."""
    import torch

    total, tokens = 0.0, 0
    ordered = sorted(rows, key=lambda row: row.tokens)
    for start in range(0, len(ordered), BATCH_ROWS):
        batch = ordered[start : start + BATCH_ROWS]
        with torch.no_grad():
            total += answer_loss(model, _inputs(batch, model.device), 1).item()
        tokens += sum(row.trained_tokens for row in batch)
    return total / tokens


def _inputs(batch: Sequence[Rendered], device: Any) -> dict[str, Any]:
    """Pad a batch on the right. Shapes: (rows, longest)."""
    import torch

    width = max(row.tokens for row in batch)
    ids, mask = torch.zeros(len(batch), width, dtype=torch.long), torch.zeros(len(batch), width, dtype=torch.long)
    labels = torch.full((len(batch), width), -100)
    for place, row in enumerate(batch):
        ids[place, : row.tokens] = torch.tensor(row.input_ids)
        mask[place, : row.tokens] = 1
        labels[place, row.prompt_tokens : row.tokens] = ids[place, row.prompt_tokens : row.tokens]
    return {
        name: tensor.to(device) for name, tensor in (("input_ids", ids), ("attention_mask", mask), ("labels", labels))
    }
