"""How an OpenAI-compatible endpoint says no, and whose fault that is.

Promises that what is nobody's fault for long, what is the endpoint's, the prompt's and a setting's are told apart.
Knows nothing of sockets or retries.
"""

from __future__ import annotations

import email.utils
import math
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
import orjson

Trouble = Literal["transient", "closed", "prompt", "key", "model", "path", "quota", "proxy", "setting", "limit"]
"""Whose fault a refusal is: nobody's for long, the endpoint's, this prompt's, or a setting's (then no prompt can be
answered); `limit` is a matter of a name.
"""
SETTING_REFUSED = ("unsupported_parameter", "unsupported_value", "unknown_parameter")
"""What OpenAI says of a setting that a model does not take."""
SETTINGS = ("temperature", "top_p", "top_k", "stop", "seed", "stream", "stream_options", "chat_template_kwargs")
"""What every request of a run says in the same way."""


class Spent(msgspec.Struct, frozen=True):
    """Tokens that the endpoint counted for what nobody gets."""

    prompt_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.prompt_tokens + other.prompt_tokens, self.output_tokens + other.output_tokens)


NOTHING = Spent()


class TransientError(Exception):
    """The endpoint failed on a prompt in a way that may pass; `retry_after_s` is what it asked to wait."""

    def __init__(self, reason: str, retry_after_s: float | None = None, *, spent: Spent = NOTHING) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s
        self.spent = spent


class ClosedError(TransientError):
    """The endpoint took a request of nobody's, so no prompt was asked; it may later.

    `too_many`: it is there, and takes fewer requests than it was sent.
    """

    def __init__(self, reason: str, retry_after_s: float | None = None, *, too_many: bool = False) -> None:
        super().__init__(reason, retry_after_s)
        self.too_many = too_many


class RefusedError(Exception):
    """The endpoint answers, and will not answer this prompt."""

    def __init__(self, reason: str, *, spent: Spent = NOTHING) -> None:
        super().__init__(reason)
        self.spent = spent


class LimitNameError(RefusedError):
    """The endpoint knows the limit of an answer by its new name only."""


class Refusal(msgspec.Struct, frozen=True):
    """The body of an error, in whichever of the usual forms it came."""

    message: str = ""
    code: str = ""
    param: str = ""


def read_refusal(body: bytes) -> Refusal:
    """Read an error body: OpenAI's object, a bare string, FastAPI's `detail`, or any text."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        return Refusal()
    error = data.get("error", data) if isinstance(data, dict) else data
    return refusal_of(error)


def refusal_of(error: Any) -> Refusal:
    """Read the `error` of a reply or of a stream's event."""
    if not isinstance(error, dict):
        return Refusal(message=str(error))
    message = error.get("message") or error.get("detail") or ""
    return Refusal(message=str(message), code=str(error.get("code") or ""), param=str(error.get("param") or ""))


def trouble(status: int, refusal: Refusal, *, model: str, says_when: bool = False) -> Trouble:
    """Say whose fault an HTTP status other than 2xx is; `says_when`: it came with a Retry-After."""
    if status in (401, 403):
        return "key"
    if status == 407:
        return "proxy"
    if status == 402 or refusal.code == "insufficient_quota":
        return "quota"
    if status == 429 and refusal.message.lower().startswith("request too large"):
        return "prompt"  # OpenAI's word for one that is above the limit of a minute by itself
    if status == 429 or (status == 503 and says_when):
        return "closed"
    if status in (408, 425) or status >= 500:
        return "transient"
    if refusal.code == "unsupported_parameter" and refusal.param == "max_tokens":
        return "limit"
    if refusal.code in SETTING_REFUSED and refusal.param in SETTINGS:
        return "setting"
    if refusal.code == "unknown_url" or (status == 404 and "/chat/completions" in refusal.message):
        return "path"
    if refusal.code == "model_not_found" or refusal.param == "model" or (status == 404 and model in refusal.message):
        return "model"
    nameless = refusal.message.lower() in ("", "not found", "method not allowed")
    return "path" if status < 400 or (status in (404, 405) and nameless) else "prompt"


def retry_after_s(value: str | None, *, now: datetime | None = None) -> float | None:
    """Return the seconds that a Retry-After header asks for (a number or an HTTP date), or None where it says none."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        return _until(value, now or datetime.now(UTC))
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _until(date: str, now: datetime) -> float | None:
    try:
        moment = email.utils.parsedate_to_datetime(date)
    except ValueError:
        return None
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - now).total_seconds())
