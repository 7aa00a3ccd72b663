"""How prompts are paced, and that what is no prompt's fault costs none anything: limits, outages, broken ends."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import endpoint as server
import pytest
from asking import MODES, ask, backend, eventually, never, prompts
from endpoint import Endpoint, Fault, Seen, refusal, serving
from rough import Limit, flapping

from engine.backend import Watch, answer_all
from engine.config import load
from engine.errors import EndpointError, LimitError
from engine.generate import generate
from engine.openai_client import LONGEST_BACKOFF_S, backoff_s
from engine.shards import read_lines, read_manifest
from engine.verify import verify

ECHO = Path(__file__).resolve().parent.parent / "data" / "echo.toml"
SHORT = {"patience_s": 0.2, "timeout_s": 0.2}


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


@pytest.mark.parametrize("how", [{}, {"strict": True}, {"says_when": True}], ids=str)
async def test_a_hard_rate_limit_fails_no_prompt(how: dict[str, bool]) -> None:
    async with Endpoint() as endpoint:
        endpoint.gate = limit = Limit(20, window_s=0.1, **how)
        answers = await ask(endpoint, prompts(100), max_in_flight=64, retries=0)
        assert not [answer for answer in answers if answer.error]
        assert limit.refused > 20


async def test_retry_after_holds_every_prompt_back() -> None:
    async with Endpoint(delay_s=0.01) as endpoint:
        endpoint.script.extend([None, Fault(429, headers={"Retry-After": "0.4"})])
        await ask(endpoint, prompts(12), max_in_flight=2)
        starts = [seen.at for seen in endpoint.seen]
        assert len(starts) == 13
        refused_at = starts[1]
        assert not [at for at in starts[2:] if at < refused_at + 0.35]


async def test_an_endpoint_that_only_refuses_ends_the_run() -> None:
    async with Endpoint() as endpoint:
        endpoint.always = server.RATE_LIMIT
        with pytest.raises(LimitError, match=r"429 slow down; no answer for 0.2 s\); .*run the same command again"):
            await ask(endpoint, prompts(20), **SHORT)


async def test_patience_is_not_used_up_while_nobody_asks() -> None:
    asked = prompts(2)
    async with Endpoint() as endpoint, backend(endpoint, **SHORT) as teacher:
        endpoint.always = server.RATE_LIMIT
        await teacher.add(asked[:1])
        await eventually(lambda: len(endpoint.seen) > 0)
        await teacher.abort([asked[0].id])
        await asyncio.sleep(0.3)
        endpoint.always = None
        endpoint.script.append(server.RATE_LIMIT)
        seen = len(endpoint.seen)
        assert [answer.error for answer in await answer_all(teacher, asked[1:])] == [""]
        assert len(endpoint.seen) == seen + 2


async def test_a_prompt_too_large_for_a_limit_fails_alone() -> None:
    async with Endpoint() as endpoint:
        endpoint.poison["about 3."] = server.RATE_LIMIT
        answers = await ask(endpoint, prompts(8), **SHORT)
        assert [answer.id for answer in answers if answer.error] == ["p3"]
        assert answers[3].error == "429 slow down, for 0.2 s, while others are answered"


@MODES
async def test_an_endpoint_that_is_closed_half_of_the_time_answers_every_prompt(watch: Watch | None) -> None:
    async with Endpoint(delay_s=0.02, piece_s=0.002) as endpoint, flapping(endpoint, up_s=0.1, down_s=0.1):
        answers = await ask(endpoint, prompts(60), watch=watch)
        assert not [answer for answer in answers if answer.error]


@pytest.mark.parametrize("tail", ["cut", "hang"])
async def test_what_breaks_after_the_answer_takes_nothing_away_from_it(tail: str) -> None:
    async with Endpoint() as endpoint:
        endpoint.tail = tail
        answers = await ask(endpoint, prompts(4), watch=never, retries=0, timeout_s=3.0)
        assert [answer.error for answer in answers] == [""] * 4
        assert len(endpoint.seen) == 4


async def test_a_model_that_knows_the_new_name_of_the_limit_only_is_asked_by_it() -> None:
    def new_model(seen: Seen) -> Fault | None:
        old = "max_tokens" in seen.body
        return refusal(400, "not supported", code="unsupported_parameter", param="max_tokens") if old else None

    async with Endpoint() as endpoint:
        endpoint.gate = new_model
        answers = await ask(endpoint, prompts(20), retries=0)
        assert not [answer for answer in answers if answer.error]
        assert len(endpoint.seen) <= 20 + 4


def generated(url: str, folder: Path) -> list[bytes]:
    """Run a generation against an endpoint and return its kept lines."""
    teacher = ["backend=openai", "model=teacher", "max_in_flight=8", f"base_url={url}", "retries=0"]
    sets = [f"teacher.{setting}" for setting in [*teacher, *(f"{key}={value}" for key, value in SHORT.items())]]
    generate(load(ECHO, [*sets, "prompts.count=120", "filter.cap_per_template=0"]), folder)
    manifest = read_manifest(folder)
    return [line for shard in manifest.of("kept") for line in read_lines(folder, shard)]


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [(server.RATE_LIMIT, LimitError, "run the same command again"), (server.BROKEN, EndpointError, "went down")],
)
def test_a_run_whose_endpoint_answers_nobody_ends_without_a_failed_row_and_goes_on_later_with_the_same_rows(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: Fault,
    error: type[EndpointError],
    words: str,
) -> None:
    monkeypatch.setattr("engine.generate.BACKOFF_S", 0.01)
    with serving(Endpoint()) as endpoint:
        calm = generated(endpoint.url, tmp_path / "calm")
        asked = len(endpoint.seen)
        endpoint.gate = lambda seen: answer if len(endpoint.seen) > asked + 60 else None
        with pytest.raises(error, match=words):
            generated(endpoint.url, tmp_path / "run")
        restarted = "restart" in capsys.readouterr().err
        assert restarted == (error is not LimitError), "a spent limit had its patience; asking at once is of no use"
        endpoint.gate = None
        assert generated(endpoint.url, tmp_path / "run") == calm
    assert verify(tmp_path / "run")["failed"] == 0
