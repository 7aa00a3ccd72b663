"""What numba makes of the functions of `memory`: one or two instructions each. Only `build` imports this."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.native import memory


def teach() -> None:
    """Tell numba how to compile every function of `memory` that is an instruction."""
    _teach_access()
    _teach_masks()
    _teach_numbers()


def _teach_access() -> None:
    from llvmlite import ir
    from numba.core import types

    number, unsigned = types.int64, types.uint64
    byte, half, whole = ir.IntType(8), ir.IntType(32), ir.IntType(64)
    wide = ir.VectorType(byte, memory.WIDE)

    def load(kind: Any) -> Callable[..., Any]:
        def emit(builder: Any, address: Any) -> Any:
            value = _load(builder, kind, address)
            return value if kind is whole else builder.zext(value, whole)

        return emit

    def store(kind: Any) -> Callable[..., Any]:
        def emit(builder: Any, address: Any, value: Any) -> Any:
            _store(builder, value if kind is whole else builder.trunc(value, kind), address)
            return whole(0)

        return emit

    def copy_wide(builder: Any, target: Any, source: Any) -> Any:
        _store(builder, _load(builder, wide, source), target)
        return whole(0)

    _teach(memory.load8, load(byte), number, number)
    _teach(memory.load32, load(half), number, number)
    _teach(memory.word, load(whole), number, number)
    _teach(memory.load64, load(whole), unsigned, number)
    _teach(memory.store8, store(byte), number, number, number)
    _teach(memory.put_word, store(whole), number, number, number)
    _teach(memory.store64, store(whole), number, number, unsigned)
    _teach(memory.copy_wide, copy_wide, number, number, number)
    _teach(memory.stripe, _stripe, number, number, number, number)


def _teach_masks() -> None:
    from llvmlite import ir
    from numba.core import types

    wide = ir.VectorType(ir.IntType(8), memory.WIDE)

    def all_of(byte: int) -> Any:
        return wide([byte] * memory.WIDE)

    def mask_of(builder: Any, flags: Any) -> Any:
        return builder.zext(builder.bitcast(flags, ir.IntType(memory.WIDE)), ir.IntType(64))

    def odd_bytes(builder: Any, address: Any) -> Any:
        found = _load(builder, wide, address)
        # Signed, a byte of 0x80 or more is below 0x20 as well.
        flags = builder.icmp_signed("<", found, all_of(0x20))
        for byte in (memory.QUOTE, memory.BACKSLASH):
            flags = builder.or_(flags, builder.icmp_unsigned("==", found, all_of(byte)))
        return mask_of(builder, flags)

    def newlines(builder: Any, address: Any) -> Any:
        found = _load(builder, wide, address)
        return mask_of(builder, builder.icmp_unsigned("==", found, all_of(memory.NEWLINE)))

    _teach(memory.odd_bytes, odd_bytes, types.int64, types.int64)
    _teach(memory.newlines, newlines, types.int64, types.int64)


def _teach_numbers() -> None:
    import numpy as np
    from llvmlite import ir
    from numba.core import types
    from numba.extending import overload

    number, unsigned = types.int64, types.uint64
    double = ir.IntType(128)

    def lowest(builder: Any, mask: Any) -> Any:
        return builder.cttz(mask, ir.IntType(1)(0))

    def high_product(builder: Any, one: Any, other: Any) -> Any:
        product = builder.mul(builder.zext(one, double), builder.zext(other, double))
        return builder.trunc(builder.lshr(product, double(64)), ir.IntType(64))

    def u64(value: Any) -> Callable[..., Any]:
        return lambda value: np.uint64(value)

    overload(memory.u64, strict=False)(u64)
    _teach(memory.lowest, lowest, number, number)
    _teach(memory.high_product, high_product, unsigned, unsigned, unsigned)
    _teach(memory.swap64, lambda builder, value: builder.bswap(value), unsigned, unsigned)
    _teach(memory.signed, lambda builder, value: value, number, unsigned)


def _load(builder: Any, kind: Any, address: Any) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)


def _store(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=1)


def _stripe(builder: Any, state: Any, data: Any, secret: Any) -> Any:
    from llvmlite import ir

    word = ir.IntType(64)
    lanes, places = ir.VectorType(word, 8), ir.VectorType(ir.IntType(32), 8)

    found = _load(builder, lanes, data)
    keyed = builder.xor(found, _load(builder, lanes, secret))
    product = builder.mul(builder.and_(keyed, lanes([0xFFFFFFFF] * 8)), builder.lshr(keyed, lanes([32] * 8)))
    swapped = builder.shuffle_vector(found, found, places([1, 0, 3, 2, 5, 4, 7, 6]))
    total = builder.add(builder.add(_load(builder, lanes, state), swapped), product)
    _store(builder, total, state)
    return word(0)


def _teach(function: Any, emit: Callable[..., Any], result: Any, *arguments: Any) -> None:
    """Let numba compile calls of a function as the instructions that `emit` builds."""
    from numba.extending import intrinsic, overload

    def types_of(context: Any) -> Any:
        return result(*arguments), lambda _, builder, signature, values: emit(builder, *values)

    names = ", ".join(function.__code__.co_varnames[: len(arguments)])
    # An intrinsic and an overload must have the very argument names of what they stand for.
    scope: dict[str, Any] = {"types_of": types_of}
    exec(f"def typed(typingctx, {names}): return types_of(typingctx)", scope)
    scope["instruction"] = intrinsic(scope["typed"])
    exec(f"def stand_in({names}):\n    def call({names}): return instruction({names})\n    return call", scope)
    overload(function, inline="never", strict=False)(scope["stand_in"])
