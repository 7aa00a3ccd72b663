"""OpenAIBackend against a real small endpoint: each prompt once, limits, verdicts, aborts, an endpoint gone down."""

from __future__ import annotations

import asyncio
import json
from contextlib import nullcontext
from pathlib import Path

import endpoint as server
import pytest
from asking import MODES, ask, backend, eventually, prompts
from endpoint import Endpoint, Fault, serving

from engine.backend import Watch, answer_all
from engine.config import load
from engine.errors import EndpointError
from engine.generate import generate
from engine.openai_backend import DOWN_AFTER, OpenAIBackend
from engine.rows import Completion, Prompt, Verdict
from engine.shards import read_lines, read_manifest
from engine.verify import verify

ECHO = Path(__file__).resolve().parent.parent / "data" / "echo.toml"
SHORT = {"patience_s": 0.3, "timeout_s": 0.3}
BANNED = Verdict("phrase", "holds 'banned'")


def bans(text: str) -> Verdict | None:
    return BANNED if "banned" in text else None


async def drain(teacher: OpenAIBackend, answered: list[Completion]) -> None:
    while True:
        answered += await teacher.completions()


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


async def test_no_more_than_the_limit_is_in_flight_and_no_less() -> None:
    async with Endpoint(delay_s=0.02) as endpoint:
        endpoint.script.extend([server.OVERLOAD, None] * 10)
        await ask(endpoint, prompts(60), max_in_flight=5)
        assert endpoint.most_in_flight == 5


async def test_an_endpoint_that_goes_down_ends_the_run_and_fails_no_row() -> None:
    asked = prompts(100)
    answered: list[Completion] = []
    async with Endpoint(delay_s=0.01) as endpoint:
        async with backend(endpoint, retries=2, max_in_flight=16, **SHORT) as teacher:
            await teacher.add(asked)
            while len(answered) < 20:
                answered += await teacher.completions()
            await endpoint.stop()
            with pytest.raises(EndpointError, match=r"went down \(Connection refused; no answer .* same command again"):
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
        async with backend(endpoint, retries=1, **SHORT) as teacher:
            await answer_all(teacher, prompts(3))
            await endpoint.stop()
            with pytest.raises(EndpointError, match="went down"):
                await answer_all(teacher, prompts(2))
        await endpoint.start()


async def test_the_last_prompts_fail_alone_while_the_endpoint_is_up() -> None:
    async with Endpoint() as endpoint:
        endpoint.poison["about"] = server.BROKEN
        answers = await ask(endpoint, prompts(DOWN_AFTER - 1), retries=1)
        assert all("500 internal error, after 1 retries" in answer.error for answer in answers)


async def test_the_last_prompts_do_not_fail_where_nobody_is_answered() -> None:
    async with Endpoint() as endpoint:
        endpoint.always = server.BROKEN
        with pytest.raises(EndpointError, match=r"went down \(500 internal error\)"):
            await ask(endpoint, prompts(DOWN_AFTER - 1), retries=1)


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


def ended(reason: str, watch: Watch | None) -> Fault:
    """Return an answer that ends so, with 5 and 11 tokens counted."""
    text = "delta" if watch else "message"
    usage = {"prompt_tokens": 5, "completion_tokens": 11}
    body = json.dumps({"choices": [{text: {"content": "Half"}, "finish_reason": reason}], "usage": usage}).encode()
    return Fault(200, b"data: " + body + b"\n\n", {"Content-Type": "text/event-stream"}) if watch else Fault(200, body)


@MODES
async def test_tokens_of_answers_that_nobody_gets_are_counted(watch: Watch | None) -> None:
    async with Endpoint() as endpoint:
        endpoint.poison |= {"about 1.": ended("content_filter", watch), "about 2.": ended("abort", watch)}
        endpoint.script.extend([ended("abort", watch)] * 2)
        first, filtered, given_up = await ask(endpoint, prompts(3), watch=watch, retries=2, max_in_flight=1)
        assert (first.error, first.sampled_tokens) == ("", first.output_tokens + 22)
        assert (filtered.prompt_tokens, filtered.output_tokens, filtered.sampled_tokens) == (5, 0, 11)
        assert (given_up.prompt_tokens, given_up.output_tokens, given_up.sampled_tokens) == (15, 0, 33)
        untouched = await ask(endpoint, prompts(1), watch=watch)
        assert untouched[0].sampled_tokens == 0


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


def test_a_run_counts_what_lost_tries_cost(tmp_path: Path) -> None:
    with serving(Endpoint()) as endpoint:
        endpoint.script.extend([ended("abort", None)] * 3 + [ended("content_filter", None)])
        generated(endpoint.url, tmp_path / "run", "filter.early=false", "prompts.count=50", "teacher.max_in_flight=4")
    manifest = read_manifest(tmp_path / "run")
    rows = [json.loads(line) for shard in manifest.shards for line in read_lines(tmp_path / "run", shard)]
    assert len(rows) == 50
    assert manifest.summary["failed"] == 1
    assert manifest.summary["output_tokens"] == sum(row.get("output_tokens", 0) for row in rows) + 4 * 11
    assert verify(tmp_path / "run")["asked"] == 50
