"""Pressure: how many requests are open while an endpoint refuses some."""

import asyncio

from engine.openai_pressure import Pressure


async def test_places_are_halved_once_a_round_and_come_back_with_answers() -> None:
    pressure = Pressure(8, first_pause_s=0.8)
    rounds = [await pressure.__aenter__() for _ in range(8)]
    assert 0.05 <= pressure.too_many(rounds[0]) <= 0.1
    assert [pressure.too_many(one) for one in rounds[1:]] == [0.0] * 7, "they went out together"
    for _ in rounds:
        await pressure.__aexit__(None, None, None)
    assert (pressure.allowed, await most_open(pressure)) == (4, 4)
    assert 0.1 <= pressure.too_many(1) <= 0.2, "again, without an answer in between"
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
        pressure.too_many(number)
    assert await most_open(pressure) == 1


async def most_open(pressure: Pressure) -> int:
    """Open requests until one must wait, and close them all."""
    opened = 0
    try:
        while True:
            await asyncio.wait_for(pressure.__aenter__(), 0.02)
            opened += 1
    except TimeoutError:
        for _ in range(opened):
            await pressure.__aexit__(None, None, None)
        return opened
