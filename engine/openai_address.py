"""Where an OpenAI-compatible endpoint is and how it is reached: its address, the key to it, the proxy on the way.

Promises that settings which cannot work are refused, and that `clean` takes the key and every password out of a text.
"""

from __future__ import annotations

import os
import re
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from engine.config import Teacher
from engine.errors import ConfigError

SHOWN_CHARS = 300
"""Longest quotation of an endpoint's own words."""


class Address:
    """The way to one endpoint."""

    def __init__(self, teacher: Teacher) -> None:
        parts = _checked(teacher)
        self.url = teacher.base_url.rstrip("/")
        # A request can prove who it is from in one way only, and who writes it into the address means that one.
        self.key = "" if parts.username else _key(teacher.api_key_env)
        self.proxy = _proxy(parts)

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries."""
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    @property
    def shown(self) -> str:
        """The address as it may be shown."""
        return _masked(self.url)

    @property
    def shown_proxy(self) -> str:
        """The proxy's address as it may be shown, or "" without one."""
        return _masked(self.proxy or "")

    def clean(self, text: str) -> str:
        """Return a text as one short line without the key, which some endpoints repeat."""
        text = text.replace(self.key, "***") if self.key else text
        return " ".join(_masked(text).split())[:SHOWN_CHARS]


def _masked(text: str) -> str:
    """Return a text with the user and password of any address left out."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", text)


def _checked(teacher: Teacher) -> SplitResult:
    if not teacher.model:
        raise ConfigError("teacher.model is empty; give the name under which the endpoint serves the model")
    if teacher.adapter:
        raise ConfigError(
            "teacher.adapter is for backend = 'vllm'; for an endpoint give the adapter's alias as teacher.model"
        )
    try:
        parts = urlsplit(teacher.base_url)
        _ = parts.port
    except ValueError as error:
        raise ConfigError(f"teacher.base_url is no address ({error})") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError("teacher.base_url is no address; it starts with http:// or https:// and a host")
    if parts.query or parts.fragment:
        raise ConfigError(
            "teacher.base_url ends with its path, as paths are added to it; leave out what follows ? or #"
        )
    return parts


def _key(name: str) -> str:
    """Return the key that an environment variable holds, or "" without one."""
    key = os.environ.get(name, "").strip() if name else ""
    if not key.isprintable():
        raise ConfigError(f"the environment variable {name} holds no key: there is a line break or the like in it")
    return key


def _proxy(parts: SplitResult) -> str | None:
    """Return the proxy that the environment names for an address, as curl and requests read it.

    But an address of this machine is never asked of a proxy, which would look for it on its own.
    """
    host = parts.hostname or ""
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or _is_here(host) or proxy_bypass(parts.netloc.rpartition("@")[2]) or _is_within(host, proxies):
        return None
    scheme, _, rest = proxy.rpartition("://")
    if scheme not in ("", "http", "https"):
        raise ConfigError(
            f"the environment names a {scheme} proxy for teacher.base_url, and only http and https proxies can be "
            f"used; set {parts.scheme.upper()}_PROXY to one, or put {host} into NO_PROXY"
        )
    return f"{scheme or 'http'}://{rest}"


def _is_here(host: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def _is_within(host: str, proxies: dict[str, str]) -> bool:
    """Say whether an IP address is in one of the networks (10.0.0.0/8) that NO_PROXY names."""
    try:
        address = ip_address(host)
    except ValueError:
        return False
    named = (name.strip() for name in proxies.get("no", "").split(","))
    return any(address in network for name in named if "/" in name and (network := _network(name)))


def _network(name: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(name, strict=False)
    except ValueError:
        return None
