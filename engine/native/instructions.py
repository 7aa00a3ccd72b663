"""What numba makes of the functions of `memory`: one or two instructions each. Only `build` imports this."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.native import memory


def teach() -> None:
    """Tell numba how to compile every function of `memory` that is an instruction."""
    from llvmlite import ir
    from numba.core import types

    number, unsigned = types.int64, types.uint64
    bits = {size: ir.IntType(size) for size in (8, 32, 64, 128)}
    bytes32 = ir.VectorType(bits[8], memory.WIDE)

    def load(kind: Any, *, widen: bool = False) -> Callable[..., Any]:
        def emit(builder: Any, address: Any) -> Any:
            value = builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)
            return builder.zext(value, bits[64]) if widen else value

        return emit

    def store(kind: Any) -> Callable[..., Any]:
        def emit(builder: Any, address: Any, value: Any) -> Any:
            value = builder.trunc(value, kind) if kind is not bits[64] else value
            builder.store(value, builder.inttoptr(address, kind.as_pointer()), align=1)
            return bits[64](0)

        return emit

    def copy_wide(builder: Any, target: Any, source: Any) -> Any:
        builder.store(load(bytes32)(builder, source), builder.inttoptr(target, bytes32.as_pointer()), align=1)
        return bits[64](0)

    def mask_of(builder: Any, flags: Any) -> Any:
        return builder.zext(builder.bitcast(flags, bits[32]), bits[64])

    def odd_bytes(builder: Any, address: Any) -> Any:
        found = load(bytes32)(builder, address)
        # Signed, a byte of 0x80 or more is below 0x20 as well.
        flags = builder.icmp_signed("<", found, bytes32([0x20] * memory.WIDE))
        for byte in (memory.QUOTE, memory.BACKSLASH):
            flags = builder.or_(flags, builder.icmp_unsigned("==", found, bytes32([byte] * memory.WIDE)))
        return mask_of(builder, flags)

    def newlines(builder: Any, address: Any) -> Any:
        found = load(bytes32)(builder, address)
        return mask_of(builder, builder.icmp_unsigned("==", found, bytes32([memory.NEWLINE] * memory.WIDE)))

    def lowest(builder: Any, mask: Any) -> Any:
        return builder.cttz(mask, ir.IntType(1)(0))

    def high_product(builder: Any, one: Any, other: Any) -> Any:
        product = builder.mul(builder.zext(one, bits[128]), builder.zext(other, bits[128]))
        return builder.trunc(builder.lshr(product, bits[128](64)), bits[64])

    _teach(memory.load8, load(bits[8], widen=True), number, number)
    _teach(memory.load32, load(bits[32], widen=True), number, number)
    _teach(memory.word, load(bits[64]), number, number)
    _teach(memory.load64, load(bits[64]), unsigned, number)
    _teach(memory.store8, store(bits[8]), number, number, number)
    _teach(memory.put_word, store(bits[64]), number, number, number)
    _teach(memory.store64, store(bits[64]), number, number, unsigned)
    _teach(memory.copy_wide, copy_wide, number, number, number)
    _teach(memory.odd_bytes, odd_bytes, number, number)
    _teach(memory.newlines, newlines, number, number)
    _teach(memory.lowest, lowest, number, number)
    _teach(memory.high_product, high_product, unsigned, unsigned, unsigned)
    _teach(memory.swap64, lambda builder, value: builder.bswap(value), unsigned, unsigned)
    _teach(memory.signed, lambda builder, value: value, number, unsigned)
    _teach(memory.stripe, _stripe, number, number, number, number)


def _stripe(builder: Any, state: Any, data: Any, secret: Any) -> Any:
    from llvmlite import ir

    word = ir.IntType(64)
    lanes, places = ir.VectorType(word, 8), ir.VectorType(ir.IntType(32), 8)

    def read(address: Any) -> Any:
        return builder.load(builder.inttoptr(address, lanes.as_pointer()), align=1)

    found = read(data)
    keyed = builder.xor(found, read(secret))
    product = builder.mul(builder.and_(keyed, lanes([0xFFFFFFFF] * 8)), builder.lshr(keyed, lanes([32] * 8)))
    swapped = builder.shuffle_vector(found, found, places([1, 0, 3, 2, 5, 4, 7, 6]))
    total = builder.add(builder.add(read(state), swapped), product)
    builder.store(total, builder.inttoptr(state, lanes.as_pointer()), align=1)
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
