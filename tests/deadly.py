"""A watch that does harm to the worker it is in, as a file says; a teacher in another process imports it from here."""

from __future__ import annotations

import os
import time
from pathlib import Path

from engine.errors import EngineError
from engine.rows import Verdict


class Deadly:
    """Rejects nothing. Orders: `fail` or `wait` as the worker starts, `die` or `fork` once in one that is asked."""

    def __init__(self, orders: Path) -> None:
        self.orders = orders

    def __reduce__(self) -> tuple[object, ...]:
        return arrive, (self.orders,)

    def __call__(self, text: str) -> Verdict | None:
        if taken(self.orders, "die"):
            raise EngineError("the card is lost")
        if taken(self.orders, "fork") and os.fork() == 0:
            time.sleep(600)
            os._exit(0)
        return None


def arrive(orders: Path) -> Deadly:
    """Make one in the worker."""
    order = orders.read_text() if orders.exists() else ""
    if order == "fail":
        os._exit(1)
    if order == "wait":
        time.sleep(600)
    return Deadly(orders)


def taken(orders: Path, order: str) -> bool:
    """Say whether that is ordered, to one worker only."""
    try:
        if orders.read_text() != order:
            return False
        orders.unlink()
    except FileNotFoundError:
        return False
    return True
