"""`potstill export-model`: the student of a run in the forms in which people serve it, each one verified.

Promises that a form stands under its name only if the answers of the exported files were compared with the student's
and agree, or verification was switched off and export.json says so; that one which does not agree stands under
NAME.failed and ends the command with exit code 1; and that an earlier form of the same name is gone then.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from engine.errors import ExportError, MissingError, UsageError
from engine.new_folder import checksums
from engine.progress import note
from engine.rows import Prompt
from engine.shards import disk, replace_file
from trainer.folders import remove_folder, write_folder
from trainer.forms import FORMS, Form
from trainer.libraries import quiet, versions
from trainer.model_card import model_card
from trainer.questions import held_out_prompts
from trainer.student import Student, read_student
from trainer.verify_form import Engine, Verified, Verifier, describe

FOLDER = "models"
"""Folder of a run that forms go to."""
REPORT = "export.json"
CARD = "README.md"
FAILED = ".failed"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for."""

    to: Sequence[str]
    out: Path | None = None
    """Folder that gets a folder a form; None takes RUN/models."""
    items: int = 100
    """Held-out questions at most."""
    verify: bool = True
    engine: Engine = "auto"
    overrides: Sequence[str] = ()


def export_model(run: Path, request: Request) -> dict[str, Any]:
    """Write each form and verify it; return its report's headline by form.

    Raises: ExportError where a form does not answer as the student does, after all were written.
    """
    forms = _choose(request.to)
    student = read_student(run, list(request.overrides))
    verifier = None
    if request.verify:
        verifier = Verifier(student, _questions(student, request.items), request.engine)
    out = request.out or run / FOLDER
    told, failures = {}, []
    for form in forms:
        target = out / form.name
        report = _export(student, form, target, verifier)
        told[form.name] = _headline(report, target)
        if verifier is not None and not report["verified"]:
            failures.append(f"{form.name}, {_sentence(report)}, below {report['agreement']['least']:.0%}")
    if failures:
        raise ExportError(
            f"not good enough to pass for the student: {'; '.join(failures)}; it is in {out}/NAME{FAILED}, where "
            f"{REPORT} has answers that differ; serve another form"
        )
    return {"export_model": str(out), "forms": told}


def _choose(names: Sequence[str]) -> list[Form]:
    if not names:
        raise UsageError(f"--to names no form; there are {', '.join(FORMS)}")
    for name in names:
        if name not in FORMS:
            raise UsageError(f"--to {name}: no such form; there are {', '.join(FORMS)}")
        missing = [package for package in FORMS[name].needs if importlib.util.find_spec(package) is None]
        if missing:
            package = missing[0].replace("_", "-")
            raise MissingError(f"--to {name} needs {package}; pip install {package}, or potstill[cpu] or [gpu]")
    return [FORMS[name] for name in dict.fromkeys(names)]


def _questions(student: Student, wanted: int) -> list[Prompt]:
    prompts = held_out_prompts(student, wanted)
    if len(prompts) < wanted:
        note(
            f"export-model  {len(prompts)} questions are held out, not {wanted}, and fewer show less; "
            "name more with --set eval.items=FILE"
        )
    return prompts


def _export(student: Student, form: Form, target: Path, verifier: Verifier | None) -> dict[str, Any]:
    """Write one form and verify it, and give it the name that it deserves."""
    failed = target.with_name(target.name + FAILED)
    remove_folder(target)
    note(f"export-model  {form.name}: writing {target}")
    with write_folder(failed) as folder:
        with quiet(), disk(folder):
            details = form.write(student, folder)
        verified = verifier.verify(form, folder) if verifier else None
        report = _report(student, form, details, verified, folder)
    if verified is None or verified.agreement.good:
        with disk(target):
            failed.replace(target)
    note(f"export-model  {form.name}: {_sentence(report)}, {report['bytes']:,} bytes")
    return report


def _report(
    student: Student, form: Form, details: dict[str, Any], verified: Verified | None, folder: Path
) -> dict[str, Any]:
    """Write model card and export.json beside the weights."""
    said = {"form": form.name, **describe(verified), **details}
    replace_file(folder / CARD, model_card(student, form, said).encode())
    files = checksums(folder, {})
    report = {
        **said,
        "bytes": sum(file.bytes for file in files),
        "files": msgspec.to_builtins(files),
        "student": student.done.fingerprint,
        "versions": versions(),
    }
    replace_file(folder / REPORT, msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    return report


def _sentence(report: dict[str, Any]) -> str:
    if "agreement" not in report:
        return "not verified"
    found = report["agreement"]
    return (
        f"{found['same']} of {found['items']} held-out answers are the student's own "
        f"({found['share']:.1%}; it gives {found['distinct']} different ones)"
    )


def _headline(report: dict[str, Any], target: Path) -> dict[str, Any]:
    agreement = report.get("agreement", {})
    return {
        "folder": str(target),
        "bytes": report["bytes"],
        "verified": report["verified"],
        "engine": report.get("engine"),
        "items": agreement.get("items"),
        "agreement": agreement.get("share"),
    }
