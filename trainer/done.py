"""Done: what a finished training says of itself, and how a repeated or killed one finds out what is left to do.

`train/done.json` is written last and atomically, so a student without it is not finished. Its fingerprint covers the
settings and the rows that decide the student; the same fingerprint again is nothing to do, another one starts afresh.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from engine.config import Config, dump
from engine.decode import UNREADABLE
from engine.errors import DataError
from engine.rows import hash_id
from engine.shards import Manifest, disk, replace_file
from trainer.folders import remove_folder
from trainer.journal import STATE, step_of
from trainer.roles import ROLES, STUDENT, Role

DONE = "done.json"
CHECKPOINTS = "checkpoints"
SPEED_KEYS = ("report_to", "processes", "preset")
"""Settings of training that decide nothing about the student; what a preset decides, the other keys say."""
METHOD_KEYS = (("topk_kd", "kd_weight"), ("on_policy", "on_policy"))
"""Settings that only one method looks at."""
SFT = "sft"
"""Folder, in that of an on_policy training, of the training before it."""
FOLDER = STUDENT.records
UNTRAINED = "untrained"
"""Folder of a start model that was cut first."""
MADE = frozenset({*ROLES, UNTRAINED, f"{SFT}/{UNTRAINED}"})
"""Folders of weights that training makes in a result folder; what done.json names else is a path or a hub id."""
FINGERPRINT = "fingerprint"
"""File beside the checkpoints: what they belong to."""


class Done(msgspec.Struct, kw_only=True):
    """A finished training. Paths of what lies in the result folder are relative to it."""

    untrained: str
    """The start model: `untrained` in the result folder, else as the configuration names it."""
    student: str
    """The model to load."""
    adapter: str
    """The adapter to put on it; empty after full fine-tuning."""
    backend: str
    tuning: str
    dtype: str
    parameters: int
    trained_parameters: int
    rows: int
    validation_rows: int
    dropped: dict[str, int]
    data: str = ""
    """Run or file whose rows were learnt, seen from the result folder; empty where that is it."""
    method: str = "sft"
    unmatched: int = 0
    """Rows that topk_kd learnt from their text alone, since the teacher's tokens were others."""
    steps: int
    trained_tokens: int
    real_tokens: int
    padded_tokens: int
    train_loss: float | None
    """The last point of the curve."""
    eval_loss: float | None
    """Of the student that was kept, over the held-out rows."""
    seconds: float
    layers: tuple[int, ...] = ()
    """Layers of `student.model` that pruning kept."""
    fingerprint: str
    versions: dict[str, str]


def fingerprint(config: Config, manifest: Manifest) -> str:
    """Return a hash of all that decides the student: settings, template, and the checksums of the kept rows."""
    train = msgspec.to_builtins(config.train)
    for key in (*SPEED_KEYS, *(key for method, key in METHOD_KEYS if method != config.train.method)):
        del train[key]
    if not config.train.patience:
        del train["checkpoint_steps"]
    settings: dict[str, Any] = {
        "student": msgspec.to_builtins(config.student),
        "train": train,
        "chat_template_kwargs": config.teacher.chat_template_kwargs,
    }
    if config.train.method == "on_policy":
        settings["teacher"] = [config.teacher.model, config.teacher.adapter, config.sampling.max_tokens]
    rows = [shard.xxh3 for shard in manifest.of("kept")]
    if config.train.method == "topk_kd":
        rows += [shard.logprobs.xxh3 for shard in manifest.of("kept") if shard.logprobs]
    return hash_id(msgspec.json.encode(settings, order="sorted").decode(), *rows)


def read_done(out: Path, role: Role = STUDENT) -> Done | None:
    """Return what the last training of a result folder says, or None where none is finished.

    Raises: DataError where its file cannot be read.
    """
    path = out / role.records / DONE
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Done)
    except UNREADABLE as error:
        raise DataError(f"{path}: cannot be read ({error}); delete it to train again") from None


def is_done(out: Path, done: Done | None, wanted: str) -> bool:
    """Say whether the wanted training is finished and what it made is still there."""
    if done is None or done.fingerprint != wanted:
        return False
    made = [name for name in (done.adapter or done.student, done.untrained) if name in MADE]
    return all((out / name).is_dir() for name in made)


def write_done(out: Path, done: Done, role: Role = STUDENT) -> None:
    """Write the last file of a training, and delete the checkpoints: nothing is left to resume."""
    records = out / role.records
    replace_file(records / DONE, msgspec.json.format(msgspec.json.encode(done), indent=2) + b"\n")
    remove_folder(records / CHECKPOINTS)


def begin(records: Path, wanted: str, config: Config) -> None:
    """Make the folder of records ready for a training, and keep its settings there.

    Checkpoints of another fingerprint are deleted.
    """
    checkpoints = records / CHECKPOINTS
    mark = checkpoints / FINGERPRINT
    with disk(records):
        if not mark.exists() or mark.read_text() != wanted:
            remove_folder(checkpoints)
        checkpoints.mkdir(parents=True, exist_ok=True)
        (records / DONE).unlink(missing_ok=True)
    replace_file(mark, wanted.encode())
    replace_file(records / "config.toml", dump(config))


def last_checkpoint(records: Path) -> Path | None:
    """Return the last whole checkpoint: one that was killed half-written lacks the journal's part."""
    whole = [folder for folder in (records / CHECKPOINTS).glob("checkpoint-*") if (folder / STATE).is_file()]
    return max(whole, key=step_of, default=None)
