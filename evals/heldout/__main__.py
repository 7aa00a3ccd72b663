"""Build one held-out file: `python -m evals.heldout debian-json --out data/heldout/debian-json.jsonl`.

With `--templates FILE --template ID` the items are made with that template's own text, so they fit it exactly.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

import msgspec

from engine.errors import PotstillError, TemplateError
from engine.shards import disk, replace_file
from engine.templates import load_templates
from evals.heldout import addresses, debian, temperatures
from evals.heldout.records import Source, build

SOURCES = {
    "debian-json": Source(
        "Format as JSON.\n\nname={name} section={section} size={size}", "json", "json", 400, debian.fields
    ),
    "debian-summaries": Source("Summarise in one sentence.\n\n{paragraph}", "summary", "chrf", 200, debian.summaries),
    "temperatures": Source("Convert temperature.\n\n{value} F", "temperature", "numeric", 400, temperatures.fahrenheit),
    "addresses": Source("Split the address into JSON fields.\n\n{address}", "address", "json", 400, addresses.labelled),
}


def main(argv: list[str] | None = None) -> int:
    """Build a file and say how many items it has and its sha256."""
    parser = argparse.ArgumentParser(prog="python -m evals.heldout", description=__doc__.split("\n")[0])
    parser.add_argument("source", choices=SOURCES)
    parser.add_argument("--out", type=Path, required=True, help="file to write (JSONL)")
    parser.add_argument("--input", type=Path, help="the source's file, where it is not installed here")
    parser.add_argument("--templates", type=Path, help="template file whose text the items are made with")
    parser.add_argument("--template", help="id of the template; default: the source's own")
    parser.add_argument("--count", type=int, help="items at most")
    args = parser.parse_args(argv)
    try:
        digest, items = _write(args, SOURCES[args.source])
    except PotstillError as error:
        print(f"heldout {args.source}: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{args.out}: {items} items, sha256 {digest}")
    return 0


def _write(args: argparse.Namespace, source: Source) -> tuple[str, int]:
    template = args.template or source.template
    text = _text(args.templates, template) if args.templates else source.text
    items = build(source, text, template, count=args.count or source.count, path=args.input)
    data = b"".join(msgspec.json.encode(item) + b"\n" for item in items)
    with disk(args.out.parent):
        args.out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(args.out, data)
    return hashlib.sha256(data).hexdigest(), len(items)


def _text(path: Path, template: str) -> str:
    found = {one.id: one.text for one in load_templates(path)}
    if template not in found:
        raise TemplateError(f"{path} has no template {template!r}, only {', '.join(found)}; give one with --template")
    return found[template]


if __name__ == "__main__":
    sys.exit(main())
