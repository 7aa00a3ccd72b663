"""The model card of an exported student: what it is, what it was distilled from, how it was checked, how to load it.

A README whose front matter the Hugging Face hub reads. Promises that a folder of this machine is told by its last name
only. Pure but for the run's manifest.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from engine.facts import is_local, public
from engine.yaml_text import to_yaml
from trainer.forms import Form
from trainer.gguf_file import llama_command
from trainer.student import NAME, Student


def model_card(student: Student, form: Form, report: Mapping[str, Any]) -> str:
    """Return the card; `report` is what export.json says."""
    lines = [*_head(student, form), "", *_check(report), "", *_use(student, form, report), "", *_licence()]
    return f"---\n{to_yaml(_front_matter(student, form))}---\n\n" + "\n".join(lines) + "\n"


def _front_matter(student: Student, form: Form) -> dict[str, Any]:
    told: dict[str, Any] = {"pipeline_tag": "text-generation", "tags": ["distillation", "potstill", form.name]}
    if not is_local(_base(student)):
        told["base_model"] = _base(student)
    if form.adapter:
        told["library_name"] = "peft"
    elif not form.file:
        told["library_name"] = "transformers"
    return told


def _base(student: Student) -> str:
    """Return the model that the student was made from, as the configuration names it."""
    return student.config.student.model


def _head(student: Student, form: Form) -> Iterator[str]:
    done, teacher = student.done, student.config.teacher
    yield f"# {student.run.resolve().name} ({form.name})"
    yield ""
    yield f"This is {form.what}."
    yield ""
    pruned = ", some of its layers" if done.untrained == "untrained" else ""
    adapter = f" with the adapter `{public(teacher.adapter)}`" if teacher.adapter else ""
    yield f"- base model: `{public(_base(student))}`{pruned}"
    yield f"- distilled from: `{public(teacher.model) or teacher.backend}`{adapter}"
    yield f"- trained on: {done.rows:,} rows, {done.trained_tokens:,} answer tokens, {done.steps:,} steps"
    yield f"- trained was: {'an adapter' if done.adapter else 'every weight'} ({done.tuning})"
    if student.template_kwargs:
        yield f"- chat template arguments, in training and in use: `{student.template_kwargs}`"


def _check(report: Mapping[str, Any]) -> Iterator[str]:
    yield "## How it was checked"
    yield ""
    if "agreement" not in report:
        yield "It was not checked."
        return
    found = report["agreement"]
    yield f"Asked {found['items']} held-out questions, greedily, it gave the same answer as the trained student to the"
    yield f"letter {found['same']} times ({found['share']:.1%}), on {report['engine']}."


def _use(student: Student, form: Form, report: Mapping[str, Any]) -> Iterator[str]:
    kwargs = student.template_kwargs
    template = f" --default-chat-template-kwargs {shlex.quote(json.dumps(kwargs))}" if kwargs else ""
    yield "## How to use it"
    yield ""
    yield "```"
    if form.file:
        yield llama_command(form.file, kwargs)
    elif form.adapter:
        adapter = f"--enable-lora --lora-modules {NAME}=FOLDER --max-lora-rank {report['max_lora_rank']}"
        yield f"vllm serve {public(student.model)} {adapter}{template}"
    else:
        yield f"vllm serve FOLDER --served-model-name {NAME}{template}"
    yield "```"


def _licence() -> Iterator[str]:
    yield "## Licence"
    yield ""
    yield "The base model's licence holds, and what the teacher wrote may be bound by the teacher's own."
