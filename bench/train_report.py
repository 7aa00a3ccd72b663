"""The figures of `bench train` as a table, on the terminal and on a page beside the JSON that its numbers come from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

COLUMNS = (
    ("trained tok/s", "trained_per_s", ",.0f"),
    ("x recipe", "x_recipe", ".2f"),
    ("real tok/s", "real_per_s", ",.0f"),
    ("padded tok/s", "padded_per_s", ",.0f"),
    ("padding eff.", "padding_efficiency", ".1%"),
    ("MFU", "mfu", ".2%"),
    ("ms/step", "ms_per_step", ",.0f"),
    ("steps", "steps", "d"),
    ("training s", "train_s", ",.1f"),
    ("peak GB", "peak_gb", ".2f"),
    ("eval loss", "eval_loss", ".4f"),
)


def table(found: dict[str, Any]) -> str:
    """Return the results as a Markdown table, one row for each contender."""
    return "\n".join(_rows(found))


def write_report(folder: Path, found: dict[str, Any]) -> None:
    """Write train-SHAPE.json and train-SHAPE.md."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"train-{Path(found['shape']).name}"
    (folder / f"{name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    (folder / f"{name}.md").write_text("\n".join(_page(found)) + "\n", encoding="utf-8")


def _rows(found: dict[str, Any]) -> Iterator[str]:
    yield "| contender | " + " | ".join(title for title, _, _ in COLUMNS) + " |"
    yield "| --- |" + " ---: |" * len(COLUMNS)
    for name, figures in found["results"].items():
        cells = [_cell(figures.get(key), form) for _, key, form in COLUMNS]
        yield f"| {name} | " + " | ".join(cells) + " |"
    for name in found["failed"]:
        yield f"| {name} | failed |" + " |" * (len(COLUMNS) - 1)


def _cell(value: Any, form: str) -> str:
    return "" if value is None else format(value, form)


def _page(found: dict[str, Any]) -> Iterator[str]:
    about = found["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    peak = f" ({found['peak_tflops']} dense bfloat16 TFLOP/s)" if found["peak_tflops"] else ""
    yield f"# Training, measured: {found['shape']}"
    yield ""
    yield f"`potstill bench train`, {found['parameters'] / 1e6:,.1f} M parameters, {found['rows']:,} rows of"
    yield f"{found['tokens_per_row']} tokens on average, {found['trained_share']:.0%} of them trained,"
    yield f"{found['epochs']:g} epochs, {found['held_out_rows']} rows held out; on {found['card'] or 'a CPU'}{peak},"
    yield f"{about['cpu']}, {about['cores']} cores, Python {about['python']}; {packages}."
    yield ""
    yield from _rows(found)
    yield ""
    yield f"Speeds leave out the start and the first {found['warm_up_steps']} steps. MFU: 6 N FLOPs a token and"
    yield "attention, real tokens only. How to read the columns: docs/bench.md."
    yield ""
    yield "Settings, beside the recipe's own:"
    yield ""
    for name, figures in found["results"].items():
        yield f"- {name}: {', '.join(figures['settings'])} ({figures['tuning']}, {figures['dtype']})"
