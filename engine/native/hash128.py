"""XXH3-128 of bytes at an address, as the two halves of `xxhash.xxh3_128_digest` (seed 0)."""

from __future__ import annotations

from typing import Any

from engine.native.memory import high_product, load8, load32, load64, store64, stripe, swap64, u64

SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221b8084674f743248e"
    "e03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8a8fa763fe39c343ff9dcbbc7c70b4f1d"
    "8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc"
    "8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
"""The algorithm's own table."""
P32_1, P32_2, P32_3 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
P64_1, P64_2, P64_3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
P64_4, P64_5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5
MIX_1, MIX_2 = 0x165667919E3779F9, 0x9FB21C651E98DF25


def digest(data: int, length: int, secret: int, state: int) -> tuple[Any, Any]:
    """Return the high and the low half; `state` is 64 bytes to work in."""
    if length <= 16:
        return _short(data, length, secret)
    if length <= 240:
        return _middle(data, length, secret)
    return _long(data, length, secret, state)


def _short(data: int, length: int, secret: int) -> tuple[Any, Any]:
    if length > 8:
        return _nine_to_sixteen(data, length, secret)
    if length >= 4:
        value = u64(load32(data)) + (u64(load32(data + length - 4)) << u64(32))
        keyed = value ^ (load64(secret + 16) ^ load64(secret + 24))
        factor = u64(P64_1) + u64(length << 2)
        high, low = high_product(keyed, factor), keyed * factor
        high += low << u64(1)
        low ^= high >> u64(3)
        low = (low ^ (low >> u64(35))) * u64(MIX_2)
        return _avalanche(high), low ^ (low >> u64(28))
    if length == 0:
        high = load64(secret + 80) ^ load64(secret + 88)
        return _avalanche64(high), _avalanche64(load64(secret + 64) ^ load64(secret + 72))
    combined = load8(data) << 16 | load8(data + (length >> 1)) << 24 | load8(data + length - 1) | length << 8
    turned = (combined & 0xFF) << 24 | (combined & 0xFF00) << 8 | (combined >> 8) & 0xFF00 | combined >> 24
    turned = (turned << 13 | turned >> 19) & 0xFFFFFFFF
    low = u64(combined) ^ u64(load32(secret) ^ load32(secret + 4))
    return _avalanche64(u64(turned) ^ u64(load32(secret + 8) ^ load32(secret + 12))), _avalanche64(low)


def _nine_to_sixteen(data: int, length: int, secret: int) -> tuple[Any, Any]:
    end = load64(data + length - 8)
    keyed = load64(data) ^ end ^ load64(secret + 32) ^ load64(secret + 40)
    low, high = keyed * u64(P64_1), high_product(keyed, u64(P64_1))
    low += u64(length - 1) << u64(54)
    end ^= load64(secret + 48) ^ load64(secret + 56)
    high += end + (end & u64(0xFFFFFFFF)) * u64(P32_2 - 1)
    low ^= swap64(high)
    top = high_product(low, u64(P64_2)) + high * u64(P64_2)
    return _avalanche(top), _avalanche(low * u64(P64_2))


def _middle(data: int, length: int, secret: int) -> tuple[Any, Any]:
    low, high = u64(length) * u64(P64_1), u64(0)
    if length <= 128:
        rounds = (length - 1) >> 5
        for turn in range(rounds, -1, -1):
            start = data + 16 * turn
            high, low = _mix32(high, low, start, data + length - 16 * turn - 16, secret + 32 * turn)
    else:
        for turn in range(4):
            start = data + 32 * turn
            high, low = _mix32(high, low, start, start + 16, secret + 32 * turn)
        high, low = _avalanche(high), _avalanche(low)
        for turn in range(4, length >> 5):
            start = data + 32 * turn
            high, low = _mix32(high, low, start, start + 16, secret + 3 + 32 * (turn - 4))
        high, low = _mix32(high, low, data + length - 16, data + length - 32, secret + 103)
    top = low * u64(P64_1) + high * u64(P64_4) + u64(length) * u64(P64_2)
    return u64(0) - _avalanche(top), _avalanche(low + high)


def _long(data: int, length: int, secret: int, state: int) -> tuple[Any, Any]:
    store64(state, u64(P32_3))
    store64(state + 8, u64(P64_1))
    store64(state + 16, u64(P64_2))
    store64(state + 24, u64(P64_3))
    store64(state + 32, u64(P64_4))
    store64(state + 40, u64(P32_2))
    store64(state + 48, u64(P64_5))
    store64(state + 56, u64(P32_1))
    last = (length - 1) >> 6
    for number in range(last):
        stripe(state, data + 64 * number, secret + 8 * (number & 15))
        if number & 15 == 15:
            for place in range(8):
                word = load64(state + 8 * place)
                word = (word ^ (word >> u64(47)) ^ load64(secret + 128 + 8 * place)) * u64(P32_1)
                store64(state + 8 * place, word)
    stripe(state, data + length - 64, secret + 121)
    low = _merge(state, secret + 11, u64(length) * u64(P64_1))
    return _merge(state, secret + 117, ~(u64(length) * u64(P64_2))), low


def _merge(state: int, secret: int, total: Any) -> Any:
    for place in range(4):
        at = 16 * place
        total += _fold(load64(state + at) ^ load64(secret + at), load64(state + at + 8) ^ load64(secret + at + 8))
    return _avalanche(total)


def _mix32(high: Any, low: Any, one: int, other: int, secret: int) -> tuple[Any, Any]:
    low += _fold(load64(one) ^ load64(secret), load64(one + 8) ^ load64(secret + 8))
    low ^= load64(other) + load64(other + 8)
    high += _fold(load64(other) ^ load64(secret + 16), load64(other + 8) ^ load64(secret + 24))
    high ^= load64(one) + load64(one + 8)
    return high, low


def _fold(one: Any, other: Any) -> Any:
    return (one * other) ^ high_product(one, other)


def _avalanche(value: Any) -> Any:
    value = (value ^ (value >> u64(37))) * u64(MIX_1)
    return value ^ (value >> u64(32))


def _avalanche64(value: Any) -> Any:
    value = (value ^ (value >> u64(33))) * u64(P64_2)
    value = (value ^ (value >> u64(29))) * u64(P64_3)
    return value ^ (value >> u64(32))
