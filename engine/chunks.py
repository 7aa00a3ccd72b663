"""Chunks: prompts that wait for a replica, handed out a template at a time, the first in order before all others.

Knows prompts; nothing of replicas.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence

from engine.rows import Prompt


class Waiting:
    """Prompts that no replica has yet."""

    def __init__(self) -> None:
        self._templates: dict[str, deque[Prompt]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, prompt: Prompt) -> None:
        """Let a prompt wait."""
        self._templates.setdefault(prompt.template, deque()).append(prompt)
        self._count += 1

    def put_back(self, prompts: Sequence[Prompt]) -> None:
        """Let prompts wait that were handed out before: each goes before what comes later in order."""
        for prompt in prompts:
            self.add(prompt)
        for template in {prompt.template for prompt in prompts}:
            self._templates[template] = deque(sorted(self._templates[template], key=lambda one: one.index))

    def take(self, limit: int) -> list[Prompt]:
        """Hand out at most `limit` prompts of one template: of that whose turn it is, by the order of commitment."""
        if not self._templates:
            return []
        template, queue = min(self._templates.items(), key=lambda item: item[1][0].index)
        taken = [queue.popleft() for _ in range(min(limit, len(queue)))]
        if not queue:
            del self._templates[template]
        self._count -= len(taken)
        return taken

    def discard(self, ids: Collection[str]) -> None:
        """Forget those of these prompts that wait here."""
        left = [prompt for queue in self._templates.values() for prompt in queue if prompt.id not in ids]
        self._templates.clear()
        self._count = 0
        for prompt in left:
            self.add(prompt)
