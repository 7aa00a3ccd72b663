"""How an endpoint is reached: proxies of the environment, and what is shown of secrets."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import pytest
from asking import SAMPLING, prompts
from endpoint import Endpoint
from rough import Proxy

from engine.backend import answer_all
from engine.config import Teacher
from engine.errors import ConfigError, EndpointError
from engine.openai_address import Address
from engine.openai_backend import OpenAIBackend
from engine.rows import Completion

CREDENTIALS = b64encode(b"me:hunter2").decode()
VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("base_url", "environment", "proxy"),
    [
        ("http://teacher.invalid/v1", {}, None),
        ("http://teacher.invalid/v1", {"HTTP_PROXY": "http://proxy:3128"}, "http://proxy:3128"),
        ("http://teacher.invalid/v1", {"http_proxy": "proxy:3128"}, "http://proxy:3128"),
        ("http://teacher.invalid/v1", {"HTTPS_PROXY": "http://proxy:3128"}, None),
        ("https://teacher.invalid/v1", {"HTTPS_PROXY": "http://me:pw@proxy:3128"}, "http://me:pw@proxy:3128"),
        ("https://teacher.invalid/v1", {"HTTP_PROXY": "http://proxy:3128"}, None),
        ("https://teacher.invalid/v1", {"ALL_PROXY": "https://proxy:3128"}, "https://proxy:3128"),
        ("http://teacher.invalid/v1", {"HTTP_PROXY": "http://proxy", "NO_PROXY": "teacher.invalid"}, None),
        ("http://teacher.invalid/v1", {"HTTP_PROXY": "http://proxy", "NO_PROXY": "a.invalid, .invalid"}, None),
        ("http://me:pw@teacher.invalid/v1", {"HTTP_PROXY": "http://proxy", "NO_PROXY": "teacher.invalid"}, None),
        ("http://teacher.invalid:81/v1", {"HTTP_PROXY": "http://proxy", "NO_PROXY": "teacher.invalid:81"}, None),
        ("http://teacher.invalid/v1", {"HTTP_PROXY": "http://proxy", "NO_PROXY": "*"}, None),
        ("http://teacher.invalid/v1", {"HTTP_PROXY": "http://proxy", "NO_PROXY": "other.invalid"}, "http://proxy"),
        ("http://10.1.2.3/v1", {"HTTP_PROXY": "http://proxy", "NO_PROXY": "nonsense/x,10.0.0.0/8"}, None),
        ("http://11.1.2.3/v1", {"HTTP_PROXY": "http://proxy", "NO_PROXY": "10.0.0.0/8"}, "http://proxy"),
        ("http://127.0.0.1:8000/v1", {"HTTP_PROXY": "http://proxy"}, None),
        ("http://localhost:8000/v1", {"HTTP_PROXY": "http://proxy", "ALL_PROXY": "socks5://proxy"}, None),
        ("http://[::1]:8000/v1", {"HTTP_PROXY": "http://proxy"}, None),
    ],
)
def test_the_proxy_is_the_environments(
    base_url: str, environment: dict[str, str], proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Address(Teacher(model="m", base_url=base_url)).proxy == proxy


def test_a_proxy_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://me:hunter2@proxy:1080")
    with pytest.raises(ConfigError, match=r"socks5 proxy .*set HTTPS_PROXY .* teacher.invalid into NO_PROXY") as caught:
        Address(Teacher(model="m", base_url="https://teacher.invalid/v1"))
    assert "hunter2" not in str(caught.value)


async def ask(base_url: str) -> list[Completion]:
    settings: dict[str, Any] = {"backend": "openai", "model": "teacher", "base_url": base_url, "timeout_s": 5.0}
    async with OpenAIBackend(Teacher(**settings), SAMPLING) as teacher:
        return await answer_all(teacher, prompts(5))


async def test_requests_go_through_the_proxy_with_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Endpoint() as endpoint, Proxy(endpoint) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://me:hunter2@{proxy.address}")
        answers = await ask("http://teacher.invalid/v1")
        assert not [answer for answer in answers if answer.error]
        assert len(endpoint.seen) == 5
        assert all(head.split()[1].startswith("http://teacher.invalid/v1/") for head in proxy.asked)
        assert all(f"Proxy-Authorization: Basic {CREDENTIALS}" in head for head in proxy.asked)
        reached = len(proxy.asked)
        await ask(endpoint.url)
        assert len(proxy.asked) == reached, "an endpoint on this machine is asked directly"


@pytest.mark.parametrize(
    ("scheme", "answer", "words"),
    [
        (
            "https",
            "403 Forbidden",
            "the proxy http://ADDRESS lets nothing through to https://teacher.invalid/v1 .403 F",
        ),
        ("https", "502 Bad Gateway", "https://teacher.invalid/v1 does not answer .the proxy answers 502 Bad Gateway"),
        ("http", "407 Proxy Authentication Required", "the proxy http://ADDRESS lets nothing through .*407 Proxy Auth"),
    ],
)
async def test_what_a_proxy_refuses_is_said_of_the_proxy(
    scheme: str, answer: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Endpoint() as endpoint:
        async with Proxy(endpoint, answer=f"HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n".encode()) as proxy:
            monkeypatch.setenv(f"{scheme}_proxy", f"http://me:hunter2@{proxy.address}")
            with pytest.raises(EndpointError, match=words.replace("ADDRESS", proxy.address)) as caught:
                await ask(f"{scheme}://teacher.invalid/v1")
            verb, target, *_ = proxy.asked[0].split()
            assert (verb, target) == (
                ("CONNECT", "teacher.invalid:443") if scheme == "https" else ("GET", "http://teacher.invalid/v1/models")
            )
        assert "hunter2" not in str(caught.value)
        with pytest.raises(EndpointError, match=f"the proxy {proxy.address}: Connection refused"):
            await ask(f"{scheme}://teacher.invalid/v1")
