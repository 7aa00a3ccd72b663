"""One evaluation: ask teacher, student and untrained student the same held-out items, and write what came out.

Promises that a repeated evaluation is a no-op, that one which was killed goes on, and that all three answer greedily,
under one limit, through the same engine. Only the teacher sees its template's system prompt and examples. Writes
`eval/answers-*.jsonl` and `eval/summary.json` in the run folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from engine.config import Config, Sampling
from engine.decode import UNREADABLE
from engine.errors import ConfigError, DataError, MissingError
from engine.progress import note
from engine.rows import hash_id
from engine.run import versions
from engine.shards import read_manifest, replace_file
from engine.templates import load_templates
from evals.answers import Answers, Prefixes, collect, keys
from evals.contestants import NAMES, Contestant, contestants
from evals.findings import Finding, find
from evals.items import Item, load_items
from evals.overlap import Overlap, find_overlap
from evals.summary import Figures, figures, headline

FOLDER = "eval"
SUMMARY = "summary.json"
METHOD = 1
"""Raised when the same answers would give another summary."""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """`eval/summary.json`."""

    fingerprint: str
    eval: dict[str, Any]
    """The headline: scores, retained share with its interval, number of items."""
    verdict: str
    figures: Figures
    findings: list[Finding]
    overlap: Overlap | None
    repeated: int
    models: dict[str, dict[str, Any]]
    versions: dict[str, str]


def evaluate(settings: Config, run: Path) -> dict[str, Any]:
    """Evaluate a run and return the result line.

    Raises: any PotstillError; answers that are on disk by then are not asked for again.
    """
    held_out = load_items(settings.eval)
    prefixes = teacher_prefixes(settings, held_out.items)
    sampling = Sampling(temperature=0, top_p=1.0, max_tokens=settings.eval.max_tokens, stop=settings.sampling.stop)
    asked = contestants(settings.teacher, run)
    folder = run / FOLDER
    fingerprint = _fingerprint(settings, run, held_out.items, asked, prefixes, sampling)
    done = read_summary(run)
    if done and done.fingerprint == fingerprint and not _failures(done):
        note(f"{folder} is finished: {done.eval['items']} items; nothing to do")
        return _result(done, folder)
    answers = {who.name: collect(who, held_out.items, _seen_by(who, prefixes), sampling, folder) for who in asked}
    overlap = find_overlap(held_out.items, run, prefixes)
    summary = _summarise(settings, answers, overlap, fingerprint=fingerprint, repeated=held_out.repeated)
    replace_file(folder / SUMMARY, msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n")
    for line in _lines(summary):
        note(line)
    return _result(summary, folder)


def read_summary(run: Path) -> Summary | None:
    """Read a run's evaluation; None where there is none.

    Raises: DataError where it cannot be read.
    """
    path = run / FOLDER / SUMMARY
    if not path.is_file():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Summary)
    except UNREADABLE as error:
        raise DataError(f"{path}: cannot be read ({error}); remove it and evaluate again") from None


def teacher_prefixes(settings: Config, items: Sequence[Item]) -> Prefixes:
    """Return the turns that the teacher sees, by template.

    Raises: ConfigError where an item names a template that the template file does not have.
    """
    if not settings.prompts.templates:
        return {}
    prefixes = {template.id: template.prefix for template in load_templates(Path(settings.prompts.templates))}
    for item in items:
        if item.template and item.template not in prefixes:
            raise ConfigError(
                f"{settings.eval.items} has an item of template {item.template!r}, which {settings.prompts.templates} "
                f"does not have (only {', '.join(prefixes)}), so its examples are unknown; rename one of them"
            )
    return prefixes


def _seen_by(who: Contestant, prefixes: Prefixes) -> Prefixes:
    return prefixes if who.name == "teacher" else {}


def _fingerprint(
    settings: Config,
    run: Path,
    items: Sequence[Item],
    asked: Sequence[Contestant],
    prefixes: Prefixes,
    sampling: Sampling,
) -> str:
    """Hash everything that the summary depends on."""
    parts = [str(METHOD), str(settings.eval.bootstrap), str(settings.eval.seed), _rows_hash(run)]
    parts += [f"{item.metric}\x1f{item.reference}" for item in items]
    for who in asked:
        parts += keys(who, items, _seen_by(who, prefixes), sampling)
    return hash_id(*parts)


def _rows_hash(run: Path) -> str:
    try:
        return hash_id(*(shard.xxh3 for shard in read_manifest(run).of("kept")))
    except MissingError:
        return ""


def _failures(summary: Summary) -> int:
    return sum(behaviour.failed for behaviour in summary.figures.behaviour.values())


def _summarise(
    settings: Config, answers: dict[str, Answers], overlap: Overlap | None, *, fingerprint: str, repeated: int
) -> Summary:
    trio = {name: answers[name].answers for name in NAMES}
    found = figures(trio, overlap, resamples=settings.eval.bootstrap, seed=settings.eval.seed)
    return Summary(
        fingerprint=fingerprint,
        eval=headline(found.overall),
        verdict=found.overall.verdict,
        figures=found,
        findings=find(found, overlapping=len(overlap.ids) if overlap else 0),
        overlap=overlap,
        repeated=repeated,
        models={name: answers[name].model for name in NAMES},
        versions=versions(),
    )


def _lines(summary: Summary) -> list[str]:
    overall = summary.figures.overall
    scores = ", ".join(
        f"{name} {score.value:.1%}" for name in NAMES if (score := getattr(overall, name)).value is not None
    )
    retained = overall.retained
    share = "cannot be computed" if retained.value is None else f"{retained.value:.1%}"
    if retained.low is not None and retained.high is not None:
        share += f" ({retained.low:.1%} to {retained.high:.1%})"
    return [
        f"eval: {overall.items} items: {scores}; retained {share}: {summary.verdict}",
        *(f"eval: {finding.text}" for finding in summary.findings),
    ]


def _result(summary: Summary, folder: Path) -> dict[str, Any]:
    return {
        "eval": summary.eval,
        "verdict": summary.verdict,
        "overlap": len(summary.overlap.ids) if summary.overlap else None,
        "findings": [finding.code for finding in summary.findings],
        "summary": str(folder / SUMMARY),
    }
