"""Doctor, the pair: do teacher and student fit each other, before either is loaded.

Each check is a pure function of what their small files say.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trainer.finding import Finding
from trainer.model_files import ModelFiles

USUAL_RATIO = 0.3
SMALL_RATIO = 0.15
"""Student over teacher, in parameters. A rule of thumb and no law: 4 B to 1.5 B (0.38) usually keeps most of a narrow
task, 4 B to 0.5 B (0.13) often does not. Source: the original recipe's account of both pairs."""
FREE_LICENCES = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0")
LICENCES = {
    "llama": "a student that is shared has to carry 'Llama' at the beginning of its name, and its licence comes along",
    "gemma": "the terms call a model that was trained on its outputs a derivative, and come along with it",
    "qwen-research": "it allows research only",
    "cc-by-nc": "it allows no commercial use",
}
"""What is known of a licence that begins like this; none of it replaces reading it."""


def check_pair(teacher: ModelFiles, student: ModelFiles, kwargs: dict[str, Any], method: str) -> Iterator[Finding]:
    """Compare a teacher with a student."""
    yield _family(teacher, student)
    yield _tokenizer(teacher, student, method)
    for role, model in (("teacher", teacher), ("student", student)):
        yield from check_chat(role, model, kwargs)
    if teacher.template and student.template and teacher.kind == student.kind and teacher.template != student.template:
        says = "one family, two chat templates: each model is asked in its own"
        yield Finding("template", "warn", says, "look at both, one of them may be of another release")
    yield _ratio(teacher, student)


def check_chat(role: str, model: ModelFiles, kwargs: dict[str, Any]) -> Iterator[Finding]:
    """Say whether a model was made to answer, and in which mode."""
    if not model.template:
        says = f"{role} {model.name} has no chat template: it is a base model"
        yield Finding("instruct", "fail", says, "take the instruct model of its family")
        return
    yield Finding("instruct", "ok", f"{role} {model.name} has a chat template")
    if "enable_thinking" in model.template and "enable_thinking" not in kwargs:
        yield Finding(
            "thinking",
            "warn",
            f"the {role}'s template can think before it answers, and teacher.chat_template_kwargs does not say whether",
            "set teacher.chat_template_kwargs = { enable_thinking = false }, for all stages alike; or "
            "teacher.reasoning_end, to keep the answers of a teacher that thinks (docs/sampling.md)",
        )


def check_licence(role: str, model: ModelFiles) -> Finding:
    """Say what is known of a model's licence."""
    found = model.licence
    if found.startswith(FREE_LICENCES):
        return Finding("licence", "ok", f"{role}: {found}")
    known = next((text for name, text in LICENCES.items() if found.startswith(name)), "")
    if known:
        return Finding("licence", "warn", f"{role}: {found}: {known}", "read it before you share rows or student")
    says = f"{role}: {found or 'its card names none here'}, of which nothing is known to this check"
    return Finding("licence", "warn", says, "read it before you share rows or student")


def _family(teacher: ModelFiles, student: ModelFiles) -> Finding:
    if teacher.kind == student.kind:
        return Finding("family", "ok", f"teacher and student are {teacher.kind} models")
    says = f"the teacher is a {teacher.kind} model, the student {student.kind}"
    return Finding("family", "warn", says, "a student of the teacher's family usually retains more")


def _tokenizer(teacher: ModelFiles, student: ModelFiles, method: str) -> Finding:
    if not teacher.vocabulary or not student.vocabulary:
        lacks = student.name if teacher.vocabulary else teacher.name
        return Finding("tokenizer", "warn", f"{lacks} has no tokenizer.json, so tokenizers were not compared")
    if teacher.vocabulary != student.vocabulary:
        says = "teacher and student have different tokenizers"
        if method != "sft":
            return Finding("tokenizer", "fail", f"{says}, and {method} needs one", "set train.method = sft")
        return Finding("tokenizer", "warn", f"{says}: text can be learnt, probabilities of tokens cannot")
    places = teacher.shape.vocabulary, student.shape.vocabulary
    if method == "on_policy" and places[0] != places[1]:
        says = f"one tokenizer, but the teacher's output has {places[0]:,} places, the student's {places[1]:,}"
        return Finding("tokenizer", "fail", says, "take another size of the family, or set train.method = topk_kd")
    if teacher.stop != student.stop:
        says = f"one tokenizer, but the teacher stops at {teacher.stop!r} and the student at {student.stop!r}"
        return Finding("tokenizer", "warn", says, "look at eos_token of both; one may be the base model's")
    return Finding("tokenizer", "ok", f"one tokenizer, which stops at {teacher.stop!r}")


def _ratio(teacher: ModelFiles, student: ModelFiles) -> Finding:
    ratio = student.shape.parameters / teacher.shape.parameters
    says = f"{teacher.billions:.2f} B to {student.billions:.2f} B parameters, {ratio:.2f} of the teacher"
    if ratio >= 1:
        return Finding("size", "warn", f"{says}: nothing gets smaller", "take a smaller student, or a larger teacher")
    if ratio >= USUAL_RATIO:
        return Finding("size", "ok", f"{says}: such pairs usually work")
    if ratio >= SMALL_RATIO:
        return Finding("size", "warn", f"{says}: enough for a narrow task", "try a small run first (prompts.count)")
    return Finding(
        "size", "warn", f"{says}: such pairs often do not work", "take a larger student, or narrow the task to one form"
    )
