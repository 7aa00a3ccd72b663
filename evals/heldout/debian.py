"""Debian's package metadata: fields to put into JSON, and descriptions with the maintainers' own one-line summary."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from engine.errors import MissingError
from evals.heldout.records import Record

STATUS = Path("/var/lib/dpkg/status")
THIRD_PARTY = re.compile(r"google-cloud-|kubectl$|nodejs$|docker|containerd")
"""Packages that build machines take from elsewhere; their metadata is not Debian's."""
PARAGRAPH_CHARS = (120, 700)
"""Length of a description that is worth summarising and fits every student's context."""


def fields(path: Path | None) -> Iterator[Record]:
    """Yield a record per package: name, section, size (installed, KiB), priority, version, architecture."""
    for stanza in stanzas(path or STATUS):
        values = {
            "name": stanza.get("Package", ""),
            "section": stanza.get("Section", ""),
            "size": stanza.get("Installed-Size", ""),
            "priority": stanza.get("Priority", ""),
            "version": stanza.get("Version", ""),
            "architecture": stanza.get("Architecture", ""),
        }
        if all(values.values()):
            yield Record(values, partial(_as_json, values))


def summaries(path: Path | None) -> Iterator[Record]:
    """Yield a record per description that one package alone has: its first paragraph, and its synopsis."""
    found = [(_first_paragraph(stanza.get("Description", "")), stanza) for stanza in stanzas(path or STATUS)]
    uses = Counter(paragraph for paragraph, _ in found)
    low, high = PARAGRAPH_CHARS
    for paragraph, stanza in found:
        synopsis = stanza.get("Description", "").split("\n")[0].strip()
        if uses[paragraph] == 1 and low <= len(paragraph) <= high and synopsis:
            yield Record({"paragraph": paragraph}, partial(_constant, synopsis))


def stanzas(path: Path) -> Iterator[dict[str, str]]:
    """Yield the stanzas of an RFC 822 style file; a continued value keeps its lines.

    Raises: MissingError where the file is not there.
    """
    if not path.is_file():
        raise MissingError(f"{path} is not there; give a copy of a Debian machine's dpkg status file with --input")
    for block in path.read_text(encoding="utf-8").split("\n\n"):
        stanza: dict[str, str] = {}
        key = ""
        for line in block.splitlines():
            if line[:1] in (" ", "\t"):
                stanza[key] += "\n" + line
            else:
                key, _, value = line.partition(":")
                stanza[key] = value.strip()
        if "Package" in stanza and not THIRD_PARTY.match(stanza["Package"]):
            yield stanza


def _constant(reference: str, names: list[str]) -> str:
    return reference


def _as_json(values: dict[str, str], names: list[str]) -> str:
    chosen = {name: int(values[name]) if name == "size" else values[name] for name in names}
    return json.dumps(chosen, separators=(",", ":"), ensure_ascii=False)


def _first_paragraph(description: str) -> str:
    """Return the first paragraph of a long description; empty where it holds a list, whose lines are indented."""
    body = description.split("\n")[1:]
    paragraph: list[str] = []
    for line in body:
        if line.strip() == ".":
            break
        if line.startswith("  ") or re.match(r" [*-] ", line):
            return ""
        paragraph += line.split()
    return " ".join(paragraph)
