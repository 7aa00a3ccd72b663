"""Pressure: how many requests are open, and when, while an endpoint refuses some or all."""

import asyncio
import time

from engine.openai_pressure import LONGEST_KNOCK_S, LONGEST_PAUSE_S, Pressure


async def test_places_are_halved_once_a_round_and_come_back_with_answers() -> None:
    pressure = Pressure(8, first_pause_s=0.08)
    rounds = [await pressure.__aenter__() for _ in range(8)]
    pressure.refused(rounds[0], too_many=True)
    assert 0.004 < pressure.pause_s <= 0.01
    before = pressure.pause_s
    for one in rounds[1:]:
        pressure.refused(one, too_many=True)
    assert pressure.pause_s <= before, "they went out together"
    for _ in rounds:
        await pressure.__aexit__(None, None, None)
    assert (pressure.allowed, await most_open(pressure)) == (4, 4)
    pressure.refused(1, too_many=True)
    assert 0.009 < pressure.pause_s <= 0.02, "again, without an answer in between"
    assert (pressure.allowed, await most_open(pressure)) == (2, 2)
    for _ in range(3):
        pressure.answered()
    assert await most_open(pressure) == 5
    for _ in range(9):
        pressure.answered()
    assert (pressure.allowed, await most_open(pressure)) == (8, 8), "no more than at first"


async def test_one_place_is_always_left() -> None:
    pressure = Pressure(2, first_pause_s=0.0)
    for number in range(9):
        pressure.refused(number, too_many=True)
    assert await most_open(pressure) == 1


async def test_pauses_are_bounded_and_a_closed_door_is_tried_soon_again() -> None:
    for too_many, longest_s in ((True, LONGEST_PAUSE_S), (False, LONGEST_KNOCK_S)):
        pressure = Pressure(4, first_pause_s=1.0)
        for number in range(40):
            pressure.refused(number, too_many=too_many)
        assert longest_s / 2 < pressure.pause_s <= longest_s
        assert pressure.allowed == (1 if too_many else 4)


async def test_nothing_goes_out_in_a_pause_and_then_in_turn() -> None:
    pressure = Pressure(1, first_pause_s=0.0)
    pressure.hold_back(0.05)
    started, came = time.monotonic(), []

    async def go(number: int) -> None:
        async with pressure:
            came.append((number, time.monotonic() - started))

    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(go(number))
    assert [number for number, _ in came] == [0, 1, 2, 3]
    assert came[0][1] >= 0.05


async def test_a_pause_that_begins_while_the_rate_limit_is_waited_for_holds() -> None:
    pressure = Pressure(4, first_pause_s=0.0, requests_per_s=1.9)
    async with asyncio.TaskGroup() as group:
        await pressure.__aenter__()
        late = group.create_task(pressure.__aenter__())
        await asyncio.sleep(0.01)
        pressure.hold_back(0.7)
        await asyncio.sleep(0.65)
        assert not late.done()


async def test_silence_lasts_from_the_first_refusal_to_an_answer() -> None:
    pressure = Pressure(4, first_pause_s=0.0)
    assert pressure.silent_s == 0
    pressure.refused(0, too_many=True)
    await asyncio.sleep(0.02)
    pressure.refused(1, too_many=False)
    assert pressure.silent_s >= 0.02
    pressure.answered()
    assert pressure.silent_s == 0


async def most_open(pressure: Pressure) -> int:
    """Open requests until one must wait, and close them all."""
    opened = 0
    try:
        while True:
            await asyncio.wait_for(pressure.__aenter__(), 0.04)
            opened += 1
    except TimeoutError:
        for _ in range(opened):
            await pressure.__aexit__(None, None, None)
        return opened
