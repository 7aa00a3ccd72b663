"""Chunks: prompts that wait for a replica, handed out a template at a time, the first in order before all others.

Knows prompts; nothing of replicas.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from heapq import heappop, heappush

from engine.rows import Prompt


class Waiting:
    """Prompts that no replica has yet."""

    def __init__(self) -> None:
        self._templates: dict[str, deque[Prompt]] = {}
        self._turns: list[tuple[int, str]] = []
        """A heap of templates by their first prompts' places in the order; some are out of date."""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, prompt: Prompt) -> None:
        """Let a prompt wait."""
        queue = self._templates.get(prompt.template)
        if queue is None:
            queue = self._templates[prompt.template] = deque()
            heappush(self._turns, (prompt.index, prompt.template))
        queue.append(prompt)
        self._count += 1

    def put_back(self, prompts: Sequence[Prompt]) -> None:
        """Let prompts wait that were handed out before: each goes before what comes later in order."""
        for prompt in prompts:
            self.add(prompt)
        for template in {prompt.template for prompt in prompts}:
            queue = self._templates[template] = deque(sorted(self._templates[template], key=lambda one: one.index))
            heappush(self._turns, (queue[0].index, template))

    def take(self, limit: int) -> list[Prompt]:
        """Hand out at most `limit` prompts of one template: of that whose turn it is, by the order of commitment."""
        while self._turns:
            index, template = heappop(self._turns)
            queue = self._templates.get(template)
            if queue is None or queue[0].index != index:
                continue
            taken = [queue.popleft() for _ in range(min(limit, len(queue)))]
            if queue:
                heappush(self._turns, (queue[0].index, template))
            else:
                del self._templates[template]
            self._count -= len(taken)
            return taken
        return []

    def discard(self, ids: Collection[str]) -> None:
        """Forget those of these prompts that wait here."""
        left = [prompt for queue in self._templates.values() for prompt in queue if prompt.id not in ids]
        self._templates.clear()
        self._turns.clear()
        self._count = 0
        for prompt in left:
            self.add(prompt)
