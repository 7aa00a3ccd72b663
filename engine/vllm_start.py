"""Starting vLLM: import, engine, adapter, and what exactly it is that will answer.

Promises a sentence where there is no GPU for a build that needs one, and an engine that has proved that it can load its
adapter. Nothing here generates.
"""

from __future__ import annotations

import copy
import gc
import multiprocessing
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from engine.config import Teacher
from engine.engine_log import first_sentence
from engine.errors import ConfigError, MissingError
from engine.model_hash import hub_folder, model_hash
from engine.render import Renderer, chat_template
from engine.vllm_settings import engine_arguments, prepare_cpu, prepare_environment

INVARIANT_FROM = (8, 0)
"""Compute capability from which on vLLM documents batch invariance; on 9.0 and above since it has it at all."""


class Engine(msgspec.Struct, frozen=True):
    """A started vLLM."""

    llm: Any
    """vLLM's `LLM`; its `llm_engine` is what the loop drives."""
    lora: Any
    """The request that selects the adapter, or None."""
    renderer: Renderer
    facts: dict[str, str]
    processes: list[BaseProcess]
    """vLLM's own processes, empty where the engine runs in this one."""

    @property
    def capacity(self) -> int:
        """Prompts that run at once."""
        return int(self.llm.llm_engine.vllm_config.scheduler_config.max_num_seqs)

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus answer, in tokens."""
        return int(self.llm.llm_engine.model_config.max_model_len)


def start_engine(teacher: Teacher, model: str, *, watched: bool, logprobs: int = 0) -> Engine:
    """Start vLLM in this thread; `logprobs` is the most candidates a token that a prompt may ask for.

    Raises: MissingError where there is no GPU for a CUDA build, or no chat template; ConfigError where vLLM refuses a
    setting or does not know a key of `teacher.engine_args`; whatever vLLM raises where it does not start.
    """
    prepare_environment(batch_invariant=teacher.batch_invariant)
    before = multiprocessing.active_children()
    with _collector_out_of_the_way():
        llm = _start(teacher, model, watched=watched, logprobs=logprobs)
    lora = _load_adapter(llm, teacher.adapter)
    tokenizer = copy.deepcopy(llm.get_tokenizer())  # the engine uses its own meanwhile, from another thread
    template = chat_template(tokenizer, teacher.model, teacher.adapter)
    renderer = Renderer(tokenizer, template, teacher.chat_template_kwargs)
    asked = {"chat_template": xxhash.xxh3_128_hexdigest(template.encode()), "prompt_form": renderer.form}
    return Engine(
        llm=llm,
        lora=lora,
        renderer=renderer,
        facts=_facts(llm, teacher, model) | asked,
        processes=[process for process in multiprocessing.active_children() if process not in before],
    )


@contextmanager
def _collector_out_of_the_way() -> Iterator[None]:
    """Start without garbage collection: a fifth of the CPU time goes into scanning modules that stay anyway."""
    fresh = "vllm" not in sys.modules
    gc.disable()
    try:
        import vllm  # noqa: F401

        if fresh:
            gc.freeze()
        yield
    finally:
        gc.enable()


def _start(teacher: Teacher, model: str, *, watched: bool, logprobs: int) -> Any:
    from pydantic import ValidationError
    from vllm import LLM
    from vllm.platforms import current_platform

    if current_platform.is_unspecified():
        raise MissingError(
            "vLLM finds no GPU, and this build of it runs on nothing else; on a machine without one, "
            "pip install 'potstill[cpu]' into a fresh environment, or set teacher.backend to openai"
        )
    if teacher.batch_invariant:
        _check_invariance(current_platform)
    if current_platform.is_cpu():
        prepare_cpu()
    arguments = engine_arguments(teacher, model, watched=watched, cpu=current_platform.is_cpu(), logprobs=logprobs)
    try:
        return LLM(**arguments)
    except ValidationError as error:
        raise ConfigError(f"teacher: vLLM refuses these settings: {first_sentence(error)}") from error
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise ConfigError(f"teacher.engine_args: vLLM does not know one of the keys ({error})") from None


def _check_invariance(platform: Any) -> None:
    """Refuse batch invariance where vLLM has no kernels for it: it would go on without, and say nothing."""
    if platform.is_cpu():
        raise ConfigError(
            "teacher.batch_invariant needs a CUDA card; on a CPU in float32 answers do not depend on what is asked "
            "beside them anyway; set it to false"
        )
    capability = platform.get_device_capability() if platform.is_cuda() else None
    if capability is None or (capability.major, capability.minor) < INVARIANT_FROM:
        name = platform.get_device_name()
        raise ConfigError(f"teacher.batch_invariant needs a CUDA card of compute capability 8.0 or above, not {name}")


def _load_adapter(llm: Any, adapter: str) -> Any:
    """Load the LoRA adapter now, so that one that does not fit fails here and not at every prompt."""
    if not adapter:
        return None
    from vllm.lora.request import LoRARequest

    request = LoRARequest("teacher", 1, adapter)
    llm.llm_engine.add_lora(request)
    return request


def _facts(llm: Any, teacher: Teacher, model: str) -> dict[str, str]:
    """Name everything that the answers depend on, for the manifest."""
    import torch
    import transformers
    import vllm
    from vllm.platforms import current_platform

    config = llm.llm_engine.vllm_config
    facts = {
        "vllm": vllm.__version__,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "device": current_platform.get_device_name(),
        "dtype": str(config.model_config.dtype).removeprefix("torch."),
        "runner": "v2" if config.use_v2_model_runner else "v1",
    }
    if teacher.batch_invariant:
        facts["batch_invariant"] = "true"
    folder = hub_folder(model, config.model_config.revision)
    if folder is not None:
        facts["model_hash"] = model_hash(folder)
    if teacher.adapter:
        facts |= {"adapter": teacher.adapter, "adapter_hash": model_hash(Path(teacher.adapter))}
    return facts
