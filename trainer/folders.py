"""Folders of weights that appear whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.shards import PART, disk


@contextmanager
def write_folder(target: Path) -> Iterator[Path]:
    """Give a folder to write into; at the end it takes the place of `target`, and after a failure it is gone."""
    half_made = target.with_name(target.name + PART)
    remove_folder(half_made)
    with disk(half_made):
        half_made.mkdir(parents=True)
    try:
        yield half_made
        remove_folder(target)
        with disk(target):
            half_made.replace(target)
    finally:
        remove_folder(half_made)


def remove_folder(folder: Path) -> None:
    """Delete a folder and what is in it; nothing happens where there is none."""
    if folder.exists():
        with disk(folder):
            shutil.rmtree(folder)
