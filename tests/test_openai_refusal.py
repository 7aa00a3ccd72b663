"""How refusals are read: in every form, whose fault they are, and when to come again."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from engine.openai_refusal import Refusal, Trouble, read_refusal, retry_after_s, trouble

NOON = datetime(2026, 5, 4, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"error": {"message": "no", "code": "c", "param": "p"}}', Refusal("no", "c", "p")),
        (b'{"error": {"message": "no", "code": 404, "param": null}}', Refusal("no", "404", "")),
        (b'{"error": "no"}', Refusal("no")),
        (b'{"message": "no"}', Refusal("no")),
        (b'{"detail": "no"}', Refusal("no")),
        (b'["no"]', Refusal("['no']")),
        (b'{"other": 1}', Refusal()),
        (b"<html>no</html>", Refusal()),
        (b"", Refusal()),
    ],
)
def test_a_refusal_is_read_in_every_form(body: bytes, expected: Refusal) -> None:
    assert read_refusal(body) == expected


@pytest.mark.parametrize(
    ("status", "refusal", "expected"),
    [
        (400, Refusal("too long"), "prompt"),
        (404, Refusal("no such tool"), "prompt"),
        (404, Refusal("The model `m-7b` does not exist."), "model"),
        (400, Refusal("The model `m-7b` is too small for this prompt"), "prompt"),
        (404, Refusal("Not Found"), "path"),
        (404, Refusal("Invalid URL (POST /chat/completions)"), "path"),
        (404, Refusal("Unknown request URL: POST /x. m-7b", "unknown_url"), "path"),
        (405, Refusal("Method Not Allowed"), "path"),
        (301, Refusal(), "path"),
        (401, Refusal(), "key"),
        (403, Refusal(), "key"),
        (402, Refusal(), "quota"),
        (429, Refusal("empty", "insufficient_quota"), "quota"),
        (429, Refusal(), "closed"),
        (503, Refusal(), "transient"),
        (407, Refusal(), "proxy"),
        (400, Refusal("use the new name", "unsupported_parameter", "max_tokens"), "limit"),
        (400, Refusal("1 alone", "unsupported_value", "temperature"), "setting"),
        (400, Refusal("too many", "invalid_value", "max_tokens"), "prompt"),
        (400, Refusal("no regex", "unknown_parameter", "structured_outputs"), "prompt"),
        (429, Refusal("Request too large for m-7b on tokens per min (TPM): Limit 10, Requested 12"), "prompt"),
        (408, Refusal(), "transient"),
        (500, Refusal(), "transient"),
        (599, Refusal(), "transient"),
    ],
)
def test_a_refusal_is_somebodys_fault(status: int, refusal: Refusal, expected: Trouble) -> None:
    assert trouble(status, refusal, model="m-7b") == expected


def test_an_endpoint_that_says_when_to_come_again_blames_no_prompt() -> None:
    assert trouble(503, Refusal(), model="m", says_when=True) == "closed"
    assert trouble(500, Refusal(), model="m", says_when=True) == "transient"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("3", 3.0),
        ("0.25", 0.25),
        ("-1", 0.0),
        ("Mon, 04 May 2026 12:00:05 GMT", 5.0),
        ("Mon, 04 May 2026 14:00:05 +0200", 5.0),
        ("Mon, 04 May 2026 12:00:05 -0000", 5.0),
        ("Mon, 04 May 2026 11:00:00 GMT", 0.0),
        ("soon", None),
        ("inf", None),
        ("nan", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, expected: float | None) -> None:
    assert retry_after_s(value, now=NOON) == expected
