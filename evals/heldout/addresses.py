"""US addresses, labelled by hand for the usaddress parser; they are in its source archive, not in its wheel."""

from __future__ import annotations

import itertools
import json
import tarfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from engine.errors import DataError, MissingError
from evals.heldout.records import Record

MEMBER = "training/labeled.xml"
FEWEST_FIELDS = 4
"""An address of fewer parts is hardly a task."""


def labelled(path: Path | None) -> Iterator[Record]:
    """Yield a record per address: the text, and its parts as JSON under the labels that a person gave them.

    An address in which a label comes twice with another between is left out: its parts cannot be put together.
    """
    for address in ElementTree.fromstring(_read(path)):
        parts = [(part.tag, (part.text or "").strip()) for part in address]
        groups = [
            (tag, " ".join(text for _, text in group)) for tag, group in itertools.groupby(parts, lambda part: part[0])
        ]
        fields = {tag: text.rstrip(",") for tag, text in groups}
        if FEWEST_FIELDS <= len(fields) == len(groups):
            text = " ".join("".join(address.itertext()).split())
            yield Record({"address": text}, partial(_as_json, fields))


def _as_json(fields: dict[str, str], names: list[str]) -> str:
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False)


def _read(path: Path | None) -> bytes:
    if path is None or not path.is_file():
        raise MissingError(
            "addresses are in the source archive of usaddress; get it with pip download --no-deps --no-binary :all: "
            "usaddress==0.5.16 and give it with --input"
        )
    with tarfile.open(path) as archive:
        member = next((member for member in archive if member.name.endswith(f"/{MEMBER}")), None)
        file = archive.extractfile(member) if member else None
        if file is None:
            raise DataError(f"{path} holds no {MEMBER}; give the source archive of usaddress")
        return file.read()
