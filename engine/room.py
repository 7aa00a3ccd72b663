"""Memory at addresses, for the compiled filter, without NumPy, which takes 12 MB where it is imported.

Promises that every piece ends in bytes that may be read (engine/native/memory.py), and that an address is only given
out for memory that its owner keeps.
"""

from __future__ import annotations

import ctypes
import mmap

from engine.native.memory import PADDING

WORD = 8
_BUFFER_WORDS = 10
"""Words of CPython's `Py_buffer`; the first is the address."""


class Room:
    """Memory of a size, zero at first, or a copy of some bytes."""

    __slots__ = ("address", "data")

    def __init__(self, size: int) -> None:
        # Memory of its own and not the allocator's: what is never touched takes none, and it goes back whole.
        memory = mmap.mmap(-1, size + PADDING)
        self.data = memoryview(memory)
        self.address = address_of(memory)

    @classmethod
    def of(cls, data: bytes) -> Room:
        """Return a copy of some bytes, which is only read."""
        room, padded = cls.__new__(cls), data + bytes(PADDING)
        room.data, room.address = memoryview(padded), address_of(padded)
        return room

    def at_least(self, size: int) -> Room:
        """Return this memory, or larger one, whose content is lost, if it has not so many bytes."""
        return self if len(self.data) >= size + PADDING else Room(size * 5 // 4)

    def until(self, end: int) -> memoryview:
        """Return what stands before an address."""
        return self.data[: end - self.address]

    def words(self) -> memoryview[int]:
        """Return the same memory as whole numbers of eight bytes."""
        return self.data[: len(self.data) // WORD * WORD].cast("q")


def address_of(memory: bytes | mmap.mmap) -> int:
    """Return where memory is that its owner does not move; `ctypes` itself says that only of what may be written."""
    view = (ctypes.c_void_p * _BUFFER_WORDS)()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(memory), view, 0)
    address = view[0]
    ctypes.pythonapi.PyBuffer_Release(view)
    assert address is not None
    return address
