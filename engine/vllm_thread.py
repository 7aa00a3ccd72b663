"""EngineThread: the one thread that touches vLLM, from its start to its end.

A loop: orders in, one engine step, answers out. No barrier between batches, aborts in batches, finished rows handed
over once a step. Promises that whatever ends the engine is posted, and that a killed engine process ends it: vLLM alone
would wait for that one for ever. Knows nothing of asyncio; `post` carries everything out.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from engine.backend import Watch
from engine.config import Sampling, Teacher
from engine.engine_log import EngineLog
from engine.errors import EngineError, PotstillError
from engine.render import Rendered
from engine.rows import Completion
from engine.vllm_answers import Answers, ScoredAnswers
from engine.vllm_settings import answer_tokens, sampling_params
from engine.vllm_start import Engine, start_engine

Post = Callable[[Engine | list[Completion] | BaseException], None]
"""Takes what the thread has to say: that the engine runs, that rows are finished, or why it is gone."""


class EngineThread(threading.Thread):
    """One vLLM engine and its loop."""

    def __init__(self, teacher: Teacher, sampling: Sampling, model: str, *, watch: Watch | None, post: Post) -> None:
        super().__init__(name="vllm", daemon=True)
        self._teacher = teacher
        self._sampling = sampling
        self._model = model
        self._watch = watch
        self._post = post
        self._orders: queue.SimpleQueue[list[Rendered] | tuple[str, ...] | None] = queue.SimpleQueue()
        self._answers: Answers | ScoredAnswers = Answers(watch)
        self._closing = threading.Event()
        self._log = EngineLog()
        self._engine: Engine | None = None

    def add(self, prompts: list[Rendered]) -> None:
        """Ask these."""
        self._orders.put(prompts)

    def abort(self, ids: Sequence[str]) -> None:
        """Stop these; one that is finished by then is answered all the same."""
        self._orders.put(tuple(ids))

    def close(self) -> None:
        """End after the step that is running."""
        self._closing.set()
        self._orders.put(None)

    def run(self) -> None:
        try:
            with self._log.capture():
                engine = self._engine = start_engine(
                    self._teacher, self._model, watched=self._watch is not None, logprobs=self._sampling.logprobs
                )
            self._log.adopt("vllm")
            if engine.processes:
                threading.Thread(target=self._mourn, args=(engine.processes,), daemon=True).start()
            if self._sampling.logprobs:
                self._answers = ScoredAnswers(
                    self._watch,
                    width=self._sampling.logprobs,
                    tokenizer=engine.llm.get_tokenizer(),
                    decoded=bool(self._sampling.stop),
                )
            self._post(engine)
            self._loop(engine)
        except PotstillError as error:
            self._post(error)
        except Exception as error:
            self._post(self._dead(error))
        finally:
            self._shut_down()

    def _dead(self, error: Exception) -> EngineError:
        return EngineError(f"teacher.model {self._teacher.model}: {self._log.explain(error)}")

    def _mourn(self, processes: list[BaseProcess]) -> None:
        """Post the death of one of vLLM's processes: the step that waits for its answer never returns."""
        wait([process.sentinel for process in processes])
        if not self._closing.is_set():
            self._post(self._dead(ChildProcessError("a process of vLLM's engine was killed, or ended by itself")))

    def _shut_down(self) -> None:
        self._closing.set()
        engine, self._engine = self._engine, None
        if engine is not None:
            with self._log.capture():
                engine.llm.llm_engine.engine_core.shutdown()
        self._log.close()

    def _loop(self, engine: Engine) -> None:
        vllm = engine.llm.llm_engine
        while self._obey(engine, idle=not vllm.has_unfinished_requests()):
            if vllm.has_unfinished_requests():
                self._answer(vllm, vllm.step())

    def _obey(self, engine: Engine, *, idle: bool) -> bool:
        """Follow the orders that are there, up to one lot of prompts; wait for one if idle. False: close."""
        while True:
            try:
                order = self._orders.get(block=idle)
            except queue.Empty:
                return True
            if order is None or self._closing.is_set():
                return False
            if isinstance(order, list):
                self._ask(engine, order)
                return True
            self._drop(engine.llm.llm_engine, order)
            idle = False

    def _ask(self, engine: Engine, prompts: list[Rendered]) -> None:
        from vllm.exceptions import VLLMValidationError
        from vllm.inputs import tokens_input

        failed = []
        for rendered in prompts:
            prompt = rendered.prompt
            error = rendered.error or self._too_long(rendered, engine.max_model_len)
            if not error:
                params = sampling_params(
                    self._sampling,
                    prompt,
                    watched=self._watch is not None,
                    special=bool(self._teacher.reasoning_end),
                )
                try:
                    engine.llm.llm_engine.add_request(
                        prompt.id, tokens_input(rendered.ids), params, lora_request=engine.lora
                    )
                except (ValueError, VLLMValidationError) as refusal:  # the second is a ValueError up to 0.26 only
                    error = f"vLLM refuses this prompt: {' '.join(str(refusal).split())}"
            if error:
                failed.append(Completion(id=prompt.id, text="", finish_reason="error", error=error))
        if failed:
            self._post(failed)

    def _too_long(self, rendered: Rendered, max_model_len: int) -> str:
        """Say that an answer would be cut by the end of the context, and not by its limit: it would pass for whole."""
        asked, answer = len(rendered.ids), answer_tokens(self._sampling, rendered.prompt)
        if asked + answer <= max_model_len:
            return ""
        return (
            f"the prompt has {asked} tokens and the answer may have {answer}, more than teacher.max_model_len "
            f"({max_model_len}) together; shorten the prompt, or change teacher.max_model_len or max_tokens"
        )

    def _drop(self, vllm: Any, ids: Sequence[str]) -> None:
        vllm.abort_request(list(ids))
        self._answers.forget(ids)

    def _answer(self, vllm: Any, outputs: list[Any]) -> None:
        """Hand over what a step finished, and what need not be finished."""
        done, hopeless = [], []
        for output in outputs:
            completion = self._answers.take(output)
            if completion is None:
                continue
            done.append(completion)
            if completion.verdict is not None:
                hopeless.append(completion.id)
        if hopeless:
            self._drop(vllm, hopeless)
        if done:
            self._post(done)
