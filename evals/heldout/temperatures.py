"""Hourly temperatures of Seattle and San Francisco in 2010 (NOAA), as the package vega_datasets ships them."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Iterator
from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path

from engine.errors import MissingError
from evals.heldout.records import Record

FILES = ("seattle-temps.csv", "sf-temps.csv")


def fahrenheit(path: Path | None) -> Iterator[Record]:
    """Yield a record per measured value in Fahrenheit; the reference is Celsius to one decimal, computed exactly."""
    for name in FILES:
        with ((path or _folder()) / name).open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                value = row["temp"]
                yield Record({"value": value}, partial(_reference, value))


def _reference(value: str, names: list[str]) -> str:
    return f"{celsius(value)} C"


def celsius(value: str) -> Decimal:
    """Return a temperature in Fahrenheit as Celsius, rounded once, to one decimal."""
    exact = (Fraction(value) - 32) * 5 / 9
    return (Decimal(exact.numerator) / Decimal(exact.denominator)).quantize(Decimal("0.1"), ROUND_HALF_EVEN)


def _folder() -> Path:
    found = importlib.util.find_spec("vega_datasets")
    if found is None or not found.submodule_search_locations:
        raise MissingError("vega_datasets is not installed; pip install vega_datasets, or give its folder with --input")
    return Path(found.submodule_search_locations[0]) / "_data"
