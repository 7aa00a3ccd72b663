"""How an answer is scored against its reference: exact, normalised, JSON, numeric, chrF, ROUGE-L.

Promises a number in [0, 1] for any text, however broken: a model's output is data and never an exception. Knows
nothing of models, files or of how scores are averaged.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, NoReturn

EMPTY_THINK = re.compile(r"^\s*<think>\s*</think>")
"""A hybrid reasoning model that was told not to think writes this before its answer."""
FENCED = re.compile(r"^\s*```[\w+-]*[^\S\n]*\n(.*?)\n?\s*```\s*$", re.DOTALL)
TRAILING = " \t\n.,;:!?"


def bare(text: str) -> str:
    """Return a text without an empty think block and without the code fence around all of it."""
    text = EMPTY_THINK.sub("", text)
    fenced = FENCED.match(text)
    return (fenced.group(1) if fenced else text).strip()


def normal(text: str) -> str:
    """Return a text in the form in which normalised match compares: NFKC, case, spaces, trailing punctuation."""
    folded = unicodedata.normalize("NFKC", bare(text)).casefold()
    return " ".join(folded.split()).rstrip(TRAILING)


def exact(reference: str, output: str) -> float:
    """Exact match as in the original recipe: strip, lower, equal."""
    return float(output.strip().lower() == reference.strip().lower())


def normalised(reference: str, output: str) -> float:
    """Match after `normal`."""
    return float(normal(output) == normal(reference))


class NotJSONError(ValueError):
    """The text is not one strict JSON value."""


def parse_json(text: str) -> Any:
    """Return the JSON value that a text is; numbers come back exact, so that 1 equals 1.0 and nothing is rounded.

    Raises: NotJSONError where it is anything else, has a key twice, or holds NaN or Infinity.
    """
    try:
        return json.loads(bare(text), object_pairs_hook=_object, parse_float=Decimal, parse_constant=_refuse)
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise NotJSONError(str(error)) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise NotJSONError("a key comes twice")
    return found


def _refuse(name: str) -> NoReturn:
    raise NotJSONError(f"{name} is not JSON")


def leaves(value: Any, path: str = "$") -> Iterator[tuple[str, str, Any]]:
    """Yield (path, kind, value) of every leaf; `kind` keeps true apart from 1 and an empty list from an empty text."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, f"{path}.{json.dumps(key)}")
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}[{index}]")
    elif isinstance(value, dict | list):
        yield path, type(value).__name__, None
    else:
        numeric = isinstance(value, int | Decimal) and not isinstance(value, bool)
        yield path, "number" if numeric else type(value).__name__, value


def json_scores(reference: str, output: str) -> dict[str, float]:
    """Return `json` (equal, whatever the order of keys), `json_parses`, and `json_fields` (F1 over the leaves)."""
    try:
        found = Counter(leaves(parse_json(output)))
    except (NotJSONError, RecursionError):
        return {"json": 0.0, "json_parses": 0.0, "json_fields": 0.0}
    wanted = Counter(leaves(parse_json(reference)))
    return {
        "json": float(found == wanted),
        "json_parses": 1.0,
        "json_fields": 2 * (found & wanted).total() / (found.total() + wanted.total()),
    }


NUMBER = re.compile(
    r"(?<![\w.])([-+]?(?:\d{1,3}(?:,\d{3})+|\d+|(?=\.\d))(?:\.\d+)?(?:[eE][-+]?\d{1,3}(?!\d))?)"
    r"\s*((?:°|degrees?\b|deg\b\.?)?\s*(?:[A-Za-zµμΩ%]+(?:/[A-Za-z]+)?[²³]?)?)"
)
SPELLINGS = str.maketrans({"\u2212": "-", "℃": "°C", "℉": "°F", "º": "°", "\u00a0": " ", "\u202f": " "})
UNITS = {"celsius": "c", "centigrade": "c", "fahrenheit": "f", "kelvin": "k", "kelvins": "k"}


def quantities(text: str) -> list[tuple[Decimal, str]]:
    """Return every (number, unit) of a text in order; `-16.1 °C` and `-16.1 degrees Celsius` are the same."""
    found = NUMBER.findall(bare(text).translate(SPELLINGS))
    return [(Decimal(number.replace(",", "")), _unit(unit)) for number, unit in found]


def _unit(text: str) -> str:
    name = re.sub(r"^(°|degrees?\b|deg\b\.?)\s*", "", text.strip()).casefold()
    return UNITS.get(name, name) or ("°" if text.strip() else "")


def numeric(reference: str, output: str) -> float:
    """Compare the last number that has the reference's unit, within half of the reference's last printed digit.

    Where the reference has no unit, the last number counts, whatever its unit.
    """
    wanted, unit = quantities(reference)[-1]
    found = [number for number, its_unit in quantities(output) if not unit or its_unit == unit]
    if not found:
        return 0.0
    half_digit = Decimal(5).scaleb(min(0, int(wanted.as_tuple().exponent)) - 1)
    return float(abs(found[-1] - wanted) <= half_digit)


CHRF_ORDER = 6
CHRF_BETA = 2
"""Longest character n-gram, and the weight of recall. Source: Popovic, chrF, WMT 2015."""


def chrf(reference: str, output: str) -> float:
    """Return chrF2: F-score of character n-grams without spaces, over the orders that both texts have."""
    wanted, found = ("".join(bare(text).split()) for text in (reference, output))
    precisions, recalls = [], []
    for order in range(1, min(CHRF_ORDER, len(wanted), len(found)) + 1):
        a, b = (Counter(text[i : i + order] for i in range(len(text) - order + 1)) for text in (wanted, found))
        shared = (a & b).total()
        precisions.append(shared / b.total())
        recalls.append(shared / a.total())
    precision, recall = sum(precisions), sum(recalls)
    if not precision or not recall:
        return 0.0
    return (1 + CHRF_BETA**2) * precision * recall / (CHRF_BETA**2 * precision + recall) / len(precisions)


def rouge_l(reference: str, output: str) -> float:
    """Return ROUGE-L: F1 of the longest common subsequence of words. Source: Lin, ROUGE, 2004."""
    wanted, found = (re.findall(r"\w+", bare(text).casefold()) for text in (reference, output))
    row = [0] * (len(found) + 1)
    for word in wanted:
        above = row
        row = [0]
        for column, other in enumerate(found):
            row.append(above[column] + 1 if word == other else max(above[column + 1], row[-1]))
    return 2 * row[-1] / (len(wanted) + len(found)) if wanted and found else 0.0


_SCORERS: dict[str, Callable[[str, str], float]] = {
    "exact": exact,
    "normalised": normalised,
    "json": lambda reference, output: json_scores(reference, output)["json"],
    "numeric": numeric,
    "chrf": chrf,
    "rouge_l": rouge_l,
}
METRICS = tuple(_SCORERS)
"""What may be a headline metric."""


def scores(metric: str, reference: str, output: str) -> dict[str, float]:
    """Return the headline metric with those that explain it: a gap between exact and normalised is a format problem."""
    found = {name: _SCORERS[name](reference, output) for name in ("exact", "normalised", metric)}
    if metric == "json":
        found |= json_scores(reference, output)
    if metric == "numeric":
        found["has_number"] = float(bool(quantities(output)))
    if metric in ("chrf", "rouge_l"):
        found |= {"chrf": chrf(reference, output), "rouge_l": rouge_l(reference, output)}
    return found


def reference_fault(metric: str, reference: str) -> str:
    """Say why a reference cannot be scored with a metric, or return an empty text."""
    if metric == "json":
        try:
            parse_json(reference)
        except NotJSONError as error:
            return f"the reference is not JSON ({error})"
    if metric == "numeric" and not quantities(reference):
        return "the reference holds no number"
    return ""
