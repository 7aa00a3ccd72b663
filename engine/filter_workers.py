"""Chunks are scanned, by some threads at once or by none, and come back in the order of the input.

Only scanning is shared out: it needs nothing of other rows. Judging and writing stay with the caller, so verdicts do
not depend on the number of workers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from engine.filter_chunk import Chunk
from engine.filter_native import NativeFilter
from engine.readers import Piece

if TYPE_CHECKING:
    from concurrent.futures import Future

CHUNK_BYTES = 1 << 19
"""Bytes of a chunk: large enough that Python's share is small, small enough for the processor's second cache."""
AHEAD = 2
"""Chunks that wait for the caller, for each worker."""


def scanned(native: NativeFilter, pieces: Iterable[Piece], *, workers: int) -> Iterator[tuple[Chunk, Piece]]:
    """Yield every piece with the chunk that was made of it, which is used again after the next step."""
    if workers < 1:
        chunk = Chunk()
        for piece in pieces:
            yield native.scan(chunk, piece.name, piece.lines), piece
        return
    from concurrent.futures import ThreadPoolExecutor

    free = [Chunk() for _ in range(AHEAD * workers + 1)]
    waiting: deque[tuple[Future[Chunk], Piece]] = deque()
    with ThreadPoolExecutor(workers, "filter") as pool:
        source = iter(pieces)
        failure: Exception | None = None
        while True:
            try:
                piece = next(source)
            except StopIteration:
                break
            except Exception as error:
                # What was read before it comes first.
                failure = error
                break
            if not free:
                yield from _next(waiting, free)
            waiting.append((pool.submit(native.scan, free.pop(), piece.name, piece.lines), piece))
        while waiting:
            yield from _next(waiting, free)
        if failure is not None:
            raise failure


def _next(waiting: deque[tuple[Future[Chunk], Piece]], free: list[Chunk]) -> Iterator[tuple[Chunk, Piece]]:
    future, piece = waiting.popleft()
    chunk = future.result()
    yield chunk, piece
    free.append(chunk)
