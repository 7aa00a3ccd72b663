"""What is asked of an endpoint, what each of its faults leads to, and how the client keeps the key."""

from __future__ import annotations

import logging
from base64 import b64encode
from typing import Any

import endpoint as server
import pytest
from asking import MODES, SAMPLING, ask, eventually, never, prompts
from endpoint import Endpoint, Fault, refusal

from engine.backend import Watch, answer_all, make_backend
from engine.config import Sampling, Teacher
from engine.errors import ConfigError, EndpointError
from engine.openai_backend import DOWN_AFTER, OpenAIBackend
from engine.rows import Message, Prompt


async def test_a_request_says_what_the_settings_say() -> None:
    prompt = Prompt(
        index=0,
        id="p",
        template="t",
        instruction="Add.",
        input="1 2",
        prefix=(Message("system", "Be brief."),),
        seed=2**61 + 1,
        max_tokens=9,
    )
    async with Endpoint() as endpoint:
        teacher = Teacher(
            backend="openai",
            base_url=endpoint.url + "/",
            model="teacher-lora",
            chat_template_kwargs={"enable_thinking": False},
        )
        sampling = Sampling(temperature=0.25, top_p=0.5, top_k=20, stop=("###",))
        async with make_backend(teacher, sampling) as asking:
            await answer_all(asking, [prompt])
        assert endpoint.seen[0].body == {
            "model": "teacher-lora",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Add.\n\n1 2"}],
            "temperature": 0.25,
            "top_p": 0.5,
            "top_k": 20,
            "stop": ["###"],
            "seed": 2**61 + 1,
            "max_tokens": 9,
            "chat_template_kwargs": {"enable_thinking": False},
        }


async def test_settings_that_are_off_are_not_sent() -> None:
    async with Endpoint() as endpoint:
        await ask(endpoint, prompts(1))
        body = endpoint.seen[0].body
        assert body.keys() == {"model", "messages", "temperature", "top_p", "seed", "max_tokens"}
        assert body["max_tokens"] == SAMPLING.max_tokens
        await ask(endpoint, prompts(1), watch=never)
        assert endpoint.seen[1].body["stream"] is True
        assert endpoint.seen[1].body["stream_options"] == {"include_usage": True}


PASSING = {
    "429": server.RATE_LIMIT,
    "500": server.BROKEN,
    "503": server.OVERLOAD,
    "503 that says when": Fault(503, headers={"Retry-After": "0.01"}),
    "408": Fault(408),
    "garbage": server.GARBAGE,
    "no choices": server.NO_CHOICES,
    "given up": Fault(200, b'{"choices": [{"message": {"content": "Half"}, "finish_reason": "abort"}]}'),
    "broken stream": Fault(
        200, b'data: {"error": {"message": "engine died", "code": 500}}\n\n', {"Content-Type": "text/event-stream"}
    ),
    "hang": server.HANG,
    "reset": server.RESET,
    "cut": server.CUT,
}


def patience_s(fault: Fault) -> float:
    return 0.4 if fault is server.HANG else 30.0


@MODES
@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING.keys())
async def test_a_fault_that_passes_is_tried_again(fault: Fault, watch: Watch | None) -> None:
    async with Endpoint() as endpoint:
        endpoint.script.extend([fault, fault])
        answers = await ask(endpoint, prompts(1), watch=watch, timeout_s=patience_s(fault))
        assert answers[0].text.endswith("Say something about 0.")
        assert answers[0].error == ""
        assert len(endpoint.seen) == 3


BLAMED = {name: fault for name, fault in PASSING.items() if name not in ("429", "503 that says when")}


@MODES
@pytest.mark.parametrize("fault", BLAMED.values(), ids=BLAMED.keys())
async def test_a_prompt_that_always_fails_is_one_failed_row(fault: Fault, watch: Watch | None) -> None:
    async with Endpoint() as endpoint:
        endpoint.poison["about 3."] = fault
        answers = await ask(endpoint, prompts(8), watch=watch, retries=2, timeout_s=patience_s(fault))
        assert [answer.id for answer in answers if answer.error] == ["p3"]
        assert "after 2 retries" in answers[3].error
        assert answers[3].finish_reason == "error"
        assert sum("about 3." in seen.question for seen in endpoint.seen) == 3


@MODES
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (server.TOO_LONG, "maximum context length"),
        (refusal(422, "content not allowed"), "422 content not allowed"),
        (refusal(404, "no such chat template"), "no such chat template"),
        (Fault(413, b"too large"), "413"),
        (Fault(400, b'{"detail": [{"msg": "bad seed"}]}'), "bad seed"),
    ],
    ids=["400", "422", "404", "413", "detail"],
)
async def test_a_refused_prompt_is_one_failed_row_and_not_asked_again(
    fault: Fault, words: str, watch: Watch | None
) -> None:
    async with Endpoint() as endpoint:
        endpoint.poison["about 1."] = fault
        answers = await ask(endpoint, prompts(3), watch=watch)
        assert words in answers[1].error
        assert [answer.error for answer in (answers[0], answers[2])] == ["", ""]
        assert len(endpoint.seen) == 3


async def test_a_prompt_without_a_utf8_form_is_one_failed_row() -> None:
    async with Endpoint() as endpoint:
        broken = Prompt(index=0, id="p", template="t", instruction="half \ud83d")
        answers = await ask(endpoint, [broken])
        assert "cannot be sent" in answers[0].error
        assert not endpoint.seen


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (server.WRONG_KEY, ("refuses the key", "incorrect API key", "SOME_KEY")),
        (Fault(403), ("refuses the key", "SOME_KEY")),
        (server.NO_MODEL, ("no model 'teacher'", "teacher.model", "teacher, teacher-lora")),
        (refusal(404, 'model "teacher" not found, try pulling it first'), ("no model 'teacher'",)),
        (refusal(400, "Unknown", param="model"), ("no model 'teacher'",)),
        (Fault(404, b"404: Not Found"), ("no OpenAI-compatible endpoint", "teacher.base_url")),
        (Fault(404, b'{"detail":"Not Found"}'), ("no OpenAI-compatible endpoint", "teacher.base_url")),
        (Fault(308, headers={"Location": "https://elsewhere.invalid/v1"}), ("308 https://elsewhere.invalid/v1",)),
        (refusal(429, "no credit left", code="insufficient_quota"), ("no credit left", "run the same command")),
        (Fault(429, headers={"Retry-After": "86400"}), ("asks to wait 86400 s", "run the same command")),
        (Fault(402), ("run the same command",)),
        (refusal(400, "1 alone", code="unsupported_value", param="temperature"), ("a setting", "400 1 alone")),
    ],
)
async def test_what_no_prompt_can_pass_ends_the_run_at_once(fault: Fault, words: tuple[str, ...]) -> None:
    async with Endpoint() as endpoint:
        endpoint.always = fault
        with pytest.raises(EndpointError) as caught:
            await ask(endpoint, prompts(4), api_key_env="SOME_KEY")
        message = str(caught.value)
        assert all(word in message for word in (endpoint.url, *words)), message
        assert len(endpoint.seen) <= 4


async def test_an_address_where_nothing_listens_fails_at_once() -> None:
    async with Endpoint() as endpoint:
        url = endpoint.url
    with pytest.raises(EndpointError, match=rf"{url} does not answer \(Connection refused\); .*set teacher.base_url"):
        async with OpenAIBackend(Teacher(model="teacher", base_url=url), SAMPLING):
            pass


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (server.GARBAGE, "no OpenAI-compatible endpoint"),
        (Fault(308, headers={"Location": "https://elsewhere.invalid/v1"}), "elsewhere.invalid"),
        (server.OVERLOAD, "does not answer .*503"),
        (server.WRONG_KEY, "refuses the key"),
        (server.HANG, "does not answer .*no answer within 0.4 s"),
        (server.RESET, "does not answer"),
    ],
    ids=["site", "redirect", "503", "401", "hang", "reset"],
)
async def test_what_is_wrong_from_the_start_fails_before_any_prompt(fault: Fault, words: str) -> None:
    async with Endpoint() as endpoint:
        endpoint.on_models = fault
        with pytest.raises(EndpointError, match=words):
            await ask(endpoint, prompts(1), timeout_s=patience_s(fault))
        assert not endpoint.seen
        await eventually(lambda: endpoint.connections == 0)


@pytest.mark.parametrize("fault", [Fault(404), Fault(405), server.RATE_LIMIT, Fault(200, b"[]")])
async def test_an_endpoint_may_be_without_a_list_of_models(fault: Fault) -> None:
    async with Endpoint() as endpoint:
        endpoint.on_models = fault
        assert [answer.error for answer in await ask(endpoint, prompts(2))] == ["", ""]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"base_url": "127.0.0.1:8000/v1"}, "http://"),
        ({"base_url": "me:hunter2@localhost/v1"}, "http://"),
        ({"base_url": "http:///v1"}, "a host"),
        ({"base_url": "http://localhost:port/v1"}, "is no address"),
        ({"base_url": "http://localhost/v1?key=hunter2"}, "leave out"),
        ({"model": ""}, "teacher.model is empty"),
        ({"adapter": "runs/lora"}, "alias"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        OpenAIBackend(Teacher(**{"model": "teacher", **settings}), SAMPLING)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("status", [401, 500])
async def test_the_key_is_sent_and_never_shown(
    status: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    key = "sk-secret-0123456789"
    monkeypatch.setenv("SOME_KEY", f"{key}\n")
    caplog.set_level(logging.DEBUG)
    async with Endpoint(key=key) as endpoint:
        settings = {"api_key_env": "SOME_KEY", "retries": 1}
        assert len(await ask(endpoint, prompts(2), **settings)) == 2
        assert endpoint.seen[0].headers["Authorization"] == f"Bearer {key}"
        endpoint.always = refusal(status, f"key {key} is not good, " + 40 * key)
        with pytest.raises(EndpointError, match=r"\*\*\*") as caught:
            await ask(endpoint, prompts(2 * DOWN_AFTER), **settings)
    assert key[:12] not in str(caught.value) + caplog.text


def test_a_key_with_a_line_break_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-one\nsk-two")
    with pytest.raises(ConfigError, match="the environment variable SOME_KEY holds no key") as caught:
        OpenAIBackend(Teacher(model="teacher", api_key_env="SOME_KEY"), SAMPLING)
    assert "sk-" not in str(caught.value)


async def test_an_error_in_place_of_an_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-secret")
    async with Endpoint() as endpoint:
        endpoint.poison["about 1."] = Fault(200, b'{"error": {"message": "sk-secret: upstream is gone", "code": 502}}')
        answers = await ask(endpoint, prompts(2), retries=0, api_key_env="SOME_KEY")
        assert answers[1].error == "***: upstream is gone, after 0 retries"


async def test_without_a_key_none_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    async with Endpoint() as endpoint:
        await ask(endpoint, prompts(1), api_key_env="SOME_KEY")
        assert "Authorization" not in endpoint.seen[0].headers
    async with Endpoint(key="needed") as endpoint:
        with pytest.raises(EndpointError, match=r"refuses the key .*SOME_KEY"):
            await ask(endpoint, prompts(1), api_key_env="SOME_KEY")


async def test_a_password_in_the_address_is_sent_in_place_of_a_key_and_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-somebody-else")
    async with Endpoint() as endpoint:
        url = endpoint.url.replace("//", "//me:hunter2@")
        async with OpenAIBackend(Teacher(model="teacher", base_url=url), SAMPLING) as teacher:
            assert teacher.describe() == {"backend": "openai", "model": "teacher", "endpoint": endpoint.url}
            assert not (await answer_all(teacher, prompts(1)))[0].error
            assert endpoint.seen[0].headers["Authorization"] == f"Basic {b64encode(b'me:hunter2').decode()}"
    with pytest.raises(EndpointError) as caught:
        async with OpenAIBackend(Teacher(model="teacher", base_url=url), SAMPLING):
            pass
    assert "hunter2" not in str(caught.value)
