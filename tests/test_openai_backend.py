"""OpenAIBackend against a real small endpoint that misbehaves on demand."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import endpoint as server
import pytest
from endpoint import Endpoint, Fault, refusal, serving

from engine.backend import Watch, answer_all, make_backend
from engine.config import Sampling, Teacher, load
from engine.errors import ConfigError, EndpointError
from engine.generate import generate
from engine.openai_backend import DOWN_AFTER, OpenAIBackend
from engine.openai_client import LONGEST_BACKOFF_S, backoff_s
from engine.rows import Completion, Message, Prompt, Verdict
from engine.shards import read_lines, read_manifest
from engine.verify import verify

ECHO = Path(__file__).resolve().parent.parent / "data" / "echo.toml"

SAMPLING = Sampling(max_tokens=64)
BANNED = Verdict("phrase", "holds 'banned'")


def never(text: str) -> Verdict | None:
    """Watch without ever being certain: the answers come as streams."""
    return None


def bans(text: str) -> Verdict | None:
    return BANNED if "banned" in text else None


MODES = pytest.mark.parametrize("watch", [None, never], ids=["plain", "streamed"])


def prompts(count: int, text: str = "Say something about") -> list[Prompt]:
    return [Prompt(index=i, id=f"p{i}", template="t", instruction=f"{text} {i}.", seed=i + 7) for i in range(count)]


def backend(endpoint: Endpoint, *, watch: Watch | None = None, **settings: Any) -> OpenAIBackend:
    teacher = Teacher(backend="openai", base_url=endpoint.url, **{"model": "teacher", "max_in_flight": 4, **settings})
    return OpenAIBackend(teacher, SAMPLING, watch=watch, first_backoff_s=0.01)


async def ask(endpoint: Endpoint, asked: list[Prompt], **settings: Any) -> list[Completion]:
    async with backend(endpoint, **settings) as teacher:
        return await answer_all(teacher, asked)


async def drain(teacher: OpenAIBackend, answered: list[Completion]) -> None:
    while True:
        answered += await teacher.completions()


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the condition is the server's, which has no event for it
            await asyncio.sleep(0.01)


@MODES
async def test_answers_are_the_endpoints_and_come_once_each(watch: Watch | None) -> None:
    asked = prompts(20)
    async with Endpoint() as endpoint:
        answers = await ask(endpoint, asked, watch=watch)
        assert [answer.text for answer in answers] == [server.answer(seen.body)[0] for seen in by_id(endpoint, asked)]
    assert [(answer.id, answer.finish_reason, answer.error) for answer in answers] == [
        (prompt.id, "stop", "") for prompt in asked
    ]
    assert answers[0].prompt_tokens == 7
    assert answers[0].output_tokens == -(-len(answers[0].text) // server.PIECE_CHARS)


def by_id(endpoint: Endpoint, asked: list[Prompt]) -> list[server.Seen]:
    seen = {request.question: request for request in endpoint.seen}
    return [seen[prompt.question] for prompt in asked]


@MODES
async def test_answers_depend_on_seed_and_messages_and_not_on_the_load(watch: Watch | None) -> None:
    async with Endpoint() as endpoint:
        one = await ask(endpoint, prompts(12), watch=watch, max_in_flight=1)
        many = await ask(endpoint, prompts(12), watch=watch, max_in_flight=12)
        assert one == many
        same_words = [Prompt(index=i, id=f"s{i}", template="t", instruction="Hello.", seed=i) for i in range(3)]
        assert len({answer.text for answer in await ask(endpoint, same_words, watch=watch)}) == 3


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


@MODES
@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING.keys())
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
        ({"model": ""}, "teacher.model is empty"),
        ({"adapter": "runs/lora"}, "alias"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        OpenAIBackend(Teacher(**{"model": "teacher", **settings}), SAMPLING)


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


async def test_without_a_key_none_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    async with Endpoint() as endpoint:
        await ask(endpoint, prompts(1), api_key_env="SOME_KEY")
        assert "Authorization" not in endpoint.seen[0].headers
    async with Endpoint(key="needed") as endpoint:
        with pytest.raises(EndpointError, match=r"refuses the key .*SOME_KEY"):
            await ask(endpoint, prompts(1), api_key_env="SOME_KEY")


async def test_a_password_in_the_address_is_not_shown() -> None:
    async with Endpoint() as endpoint:
        url = endpoint.url.replace("//", "//me:hunter2@")
        async with OpenAIBackend(Teacher(model="teacher", base_url=url), SAMPLING) as teacher:
            assert teacher.describe() == {"backend": "openai", "model": "teacher", "endpoint": endpoint.url}
    with pytest.raises(EndpointError) as caught:
        async with OpenAIBackend(Teacher(model="teacher", base_url=url), SAMPLING):
            pass
    assert "hunter2" not in str(caught.value)


async def test_no_more_than_the_limit_is_in_flight_and_no_less() -> None:
    async with Endpoint(delay_s=0.02) as endpoint:
        endpoint.script.extend([server.OVERLOAD, None] * 10)
        await ask(endpoint, prompts(60), max_in_flight=5)
        assert endpoint.most_in_flight == 5


async def test_the_rate_limit_holds_in_every_window_and_counts_retries() -> None:
    async with Endpoint() as endpoint:
        endpoint.script.extend([server.OVERLOAD] * 10)
        await ask(endpoint, prompts(50), max_in_flight=32, requests_per_s=40.0)
        starts = [seen.at for seen in endpoint.seen]
        assert len(starts) == 60
        # 150 ms: on a busy machine a request may be on its way so long before the server looks at its clock.
        assert all(late - early > 0.85 for early, late in zip(starts, starts[40:], strict=False))
        assert starts[-1] - starts[0] < 4


async def test_a_fractional_rate_limit_holds() -> None:
    async with Endpoint() as endpoint:
        await ask(endpoint, prompts(4), requests_per_s=2.5)
        starts = [seen.at for seen in endpoint.seen]
        # Two in any 0.8 s, less what a request may be on its way.
        assert starts[2] - starts[0] > 0.65
        assert starts[3] - starts[1] > 0.65
        assert starts[3] - starts[0] < 3


def test_backoff_is_drawn_from_nothing_to_a_doubling_bound() -> None:
    for attempt in (0, 1, 4, 40, 10_000):
        bound = min(LONGEST_BACKOFF_S, 0.5 * 2.0 ** min(attempt, 32))
        draws = [backoff_s(attempt, 0.5) for _ in range(2000)]
        assert 0 <= min(draws) < 0.05 * bound
        assert 0.95 * bound < max(draws) <= bound


async def test_tries_are_spaced_by_the_backoff() -> None:
    async with Endpoint() as endpoint:
        endpoint.script.extend([server.OVERLOAD] * 5)
        started = time.monotonic()
        await ask(endpoint, prompts(1), retries=5)
        # Bounds of 10, 20, 40, 80 and 160 ms: 310 ms at most, and half of it on average.
        assert 0.01 < time.monotonic() - started < 0.31 + 2
        assert len(endpoint.seen) == 6


async def test_retry_after_holds_every_prompt_back() -> None:
    async with Endpoint(delay_s=0.01) as endpoint:
        endpoint.script.extend([None, Fault(429, headers={"Retry-After": "0.4"})])
        await ask(endpoint, prompts(12), max_in_flight=2)
        starts = [seen.at for seen in endpoint.seen]
        assert len(starts) == 13
        refused_at = starts[1]
        assert not [at for at in starts[2:] if at < refused_at + 0.35]


async def test_an_endpoint_that_goes_down_ends_the_run_and_fails_no_row() -> None:
    asked = prompts(100)
    answered: list[Completion] = []
    async with Endpoint(delay_s=0.01) as endpoint:
        async with backend(endpoint, retries=2, max_in_flight=16) as teacher:
            await teacher.add(asked)
            while len(answered) < 20:
                answered += await teacher.completions()
            await endpoint.stop()
            with pytest.raises(EndpointError, match=r"went down .*run the same command again"):
                await drain(teacher, answered)
            with pytest.raises(EndpointError):
                await teacher.completions()
        assert not [answer for answer in answered if answer.error]
        await endpoint.start()
        missing = [prompt for prompt in asked if prompt.id not in {answer.id for answer in answered}]
        answered += await ask(endpoint, missing)
    assert sorted(answer.id for answer in answered) == sorted(prompt.id for prompt in asked)


async def test_an_endpoint_that_goes_down_under_the_last_prompts_fails_no_row_either() -> None:
    async with Endpoint() as endpoint:
        async with backend(endpoint, retries=1) as teacher:
            await answer_all(teacher, prompts(3))
            await endpoint.stop()
            with pytest.raises(EndpointError, match="went down"):
                await answer_all(teacher, prompts(2))
        await endpoint.start()


async def test_the_last_prompts_fail_alone_while_the_endpoint_is_up() -> None:
    async with Endpoint() as endpoint:
        endpoint.always = server.BROKEN
        answers = await ask(endpoint, prompts(DOWN_AFTER - 1), retries=1)
        assert all("500 internal error, after 1 retries" in answer.error for answer in answers)


async def test_failures_in_a_row_without_an_answer_end_the_run() -> None:
    async with Endpoint() as endpoint:
        endpoint.always = server.BROKEN
        with pytest.raises(EndpointError, match=rf"{DOWN_AFTER} prompts in a row .*500 internal error"):
            await ask(endpoint, prompts(DOWN_AFTER), retries=1)


async def test_a_verdict_hangs_up_on_the_stream() -> None:
    asked = prompts(3, "tell the banned word " + 40 * "and more ")
    async with Endpoint(piece_s=0.002) as endpoint:
        async with backend(endpoint, watch=bans) as teacher:
            answers = await answer_all(teacher, asked)
            await eventually(lambda: all(seen.hung_up for seen in endpoint.seen))
        for answer, seen in zip(answers, by_id(endpoint, asked), strict=True):
            assert answer.verdict == BANNED
            assert (answer.finish_reason, answer.error) == ("abort", "")
            whole, _ = server.answer(seen.body)
            assert whole.startswith(answer.text)
            assert "banned" in answer.text
            # Judged every 8 deltas; a few more may be on their way when the client leaves.
            assert len(answer.text) <= whole.index("banned") + len("banned") + 12 * server.PIECE_CHARS
            assert seen.deltas < len(whole) // server.PIECE_CHARS // 2
            assert answer.output_tokens == -(-len(answer.text) // server.PIECE_CHARS)
            assert answer.prompt_tokens == -(-len(seen.question) // 4)


async def test_a_verdict_frees_its_place() -> None:
    async with Endpoint(piece_s=0.002) as endpoint:
        answers = await ask(endpoint, prompts(9, "banned " + 30 * "and more "), watch=bans, max_in_flight=1)
        assert [answer.verdict for answer in answers] == [BANNED] * 9


async def test_a_finished_answer_is_not_judged_by_the_stream() -> None:
    async with Endpoint() as endpoint:
        answers = await ask(endpoint, prompts(1, "banned"), watch=bans)
        assert answers[0].verdict is None
        assert answers[0].finish_reason == "stop"


async def test_an_endpoint_that_cannot_stream_is_read_whole() -> None:
    async with Endpoint() as endpoint:
        body = b'{"choices": [{"message": {"content": "Whole."}, "finish_reason": "length"}]}'
        endpoint.always = Fault(200, body, {"Content-Type": "application/json"})
        answers = await ask(endpoint, prompts(1), watch=bans)
        assert (answers[0].text, answers[0].finish_reason, answers[0].output_tokens) == ("Whole.", "length", 2)


@MODES
async def test_tokens_are_estimated_where_the_endpoint_counts_none(watch: Watch | None) -> None:
    async with Endpoint() as endpoint:
        endpoint.usage = False
        answer = (await ask(endpoint, prompts(1), watch=watch))[0]
        assert answer.output_tokens == -(-len(answer.text) // 4)
        assert answer.prompt_tokens == -(-len("Say something about 0.") // 4)


@MODES
async def test_an_aborted_prompt_is_hung_up_on_or_never_sent(watch: Watch | None) -> None:
    asked = prompts(6)
    async with Endpoint(delay_s=30) as endpoint, backend(endpoint, watch=watch, max_in_flight=2) as teacher:
        await teacher.add(asked)
        await eventually(lambda: endpoint.in_flight == 2)
        await teacher.abort([asked[0].id, asked[5].id, "nobody"])
        await eventually(lambda: endpoint.seen[0].hung_up)
        await eventually(lambda: len(endpoint.seen) == 3)
        endpoint.delay_s = 0
        await teacher.abort([asked[1].id, asked[2].id])
        back: list[Completion] = []
        while len(back) < 2:
            back += await teacher.completions()
        assert sorted(answer.id for answer in back) == ["p3", "p4"]
        assert await teacher.completions() == []


async def test_an_abort_wakes_who_waits_for_answers() -> None:
    async with Endpoint(delay_s=30) as endpoint, backend(endpoint) as teacher:
        await teacher.add(prompts(2))
        waiting = asyncio.create_task(teacher.completions())
        await eventually(lambda: endpoint.in_flight == 2)
        await teacher.abort(["p0", "p1"])
        assert await asyncio.wait_for(waiting, 5) == []


@MODES
@pytest.mark.parametrize("fails", [False, True], ids=["left", "raised"])
async def test_tasks_and_sockets_end_with_the_block(watch: Watch | None, fails: bool) -> None:
    before = asyncio.all_tasks()
    async with Endpoint(delay_s=30) as endpoint:
        with pytest.raises(ZeroDivisionError) if fails else nullcontext():
            async with backend(endpoint, watch=watch) as teacher:
                serving = asyncio.all_tasks()
                await teacher.add(prompts(40))
                await eventually(lambda: endpoint.in_flight == 4)
                if fails:
                    raise ZeroDivisionError
        left = {task for task in asyncio.all_tasks() - before - serving if "RequestHandler" not in repr(task)}
        assert not left
        await eventually(lambda: endpoint.connections == 0)
        assert all(seen.hung_up for seen in endpoint.seen)
        assert len(endpoint.seen) == 4


async def test_a_failed_start_leaves_no_socket() -> None:
    async with Endpoint(key="needed") as endpoint:
        with pytest.raises(EndpointError):
            await ask(endpoint, prompts(1), api_key_env="SOME_KEY")
        await eventually(lambda: endpoint.connections == 0)


def generated(url: str, folder: Path, *overrides: str) -> list[bytes]:
    """Run a generation against an endpoint and return its kept lines."""
    teacher = ["backend=openai", "model=teacher", "max_in_flight=8", f"base_url={url}"]
    sets = [f"teacher.{setting}" for setting in teacher]
    rules = ["prompts.count=200", "filter.cap_per_template=0", "filter.max_chars=60", 'filter.phrases=["7: ", "age=1"]']
    generate(load(ECHO, [*sets, *rules, *overrides]), folder)
    manifest = read_manifest(folder)
    return [line for shard in manifest.of("kept") for line in read_lines(folder, shard)]


def test_a_run_keeps_the_same_rows_whatever_the_endpoint_goes_through(tmp_path: Path) -> None:
    with serving(Endpoint()) as endpoint:
        calm = generated(endpoint.url, tmp_path / "calm", "filter.early=false")
        assert 20 < len(calm) < 190, "some rows are kept and some are not"
        endpoint.script.extend([None, server.OVERLOAD, server.CUT] * 5)
        assert generated(endpoint.url, tmp_path / "rough") == calm
        # So many prompts fail in a row: the endpoint counts as down, and the run starts over with it.
        endpoint.script.extend([None] * 50 + [server.OVERLOAD] * DOWN_AFTER)
        one_by_one = ("teacher.max_in_flight=1", "teacher.retries=0")
        assert generated(endpoint.url, tmp_path / "down", *one_by_one) == calm
        assert not endpoint.script
    for name in ("calm", "rough", "down"):
        assert verify(tmp_path / name)["failed"] == 0
