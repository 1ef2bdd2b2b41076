"""Connections through the proxies that the environment names, as curl, pip and the hub's client use them.

HTTPS_PROXY, HTTP_PROXY and ALL_PROXY name a proxy by the scheme of the URL, NO_PROXY the hosts without one: names with
all that is below them, addresses, and networks such as 10.0.0.0/8. This machine is never reached through a proxy. User
and password of a proxy are sent to it, and appear in no message and no log.
"""

import ipaddress
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies_environment

import urllib3
from hone_api.reasons import INVALID_SPEC, HoneError
from urllib3.exceptions import ProxyError

PROXY_AUTHENTICATION_REQUIRED = 407


class Proxy(NamedTuple):
    """A proxy without its credentials, and `user:password` apart from it."""

    url: str
    login: str | None


def find_proxy(url: str, proxies: Mapping[str, str]) -> Proxy | None:
    """Return the proxy for a URL; None where it is reached without one.

    `proxies` are the variables by scheme, as urllib names them: http, https, all, and no for NO_PROXY.
    Raises HoneError InvalidSpec for a proxy that is no URL of HTTP.
    """
    target = urlsplit(url)
    host = (target.hostname or "").rstrip(".")
    found = proxies.get(target.scheme) or proxies.get("all")
    if not found or not host or is_loopback(host) or _is_excluded(host, target.port, proxies.get("no", "")):
        return None
    address = urlsplit(found if "://" in found else f"http://{found}")
    if address.scheme not in ("http", "https") or not address.hostname:
        raise HoneError(
            INVALID_SPEC,
            f"The proxy for {target.scheme}:// has the scheme {address.scheme}, and http and https are supported",
            remedy=f"Set {target.scheme.upper()}_PROXY to http://HOST:PORT, or put {host} into NO_PROXY.",
        )
    login = None
    if address.username is not None:
        login = f"{unquote(address.username)}:{unquote(address.password or '')}"
    return Proxy(f"{address.scheme}://{address.netloc.rpartition('@')[2]}", login)


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost" or host.endswith(".localhost")


def _is_excluded(host: str, port: int | None, excluded: str) -> bool:
    """Return whether NO_PROXY names a host."""
    for entry in (part.strip().lower() for part in excluded.split(",")):
        if entry == "*":
            return True
        name, colon, own_port = entry.rpartition(":")
        if colon and own_port.isdigit() and "]" not in own_port and name.count(":") == 0:
            if int(own_port) != port:
                continue
            entry = name
        with suppress(ValueError):
            if ipaddress.ip_address(host) in ipaddress.ip_network(entry.strip("[]"), strict=False):
                return True
            continue
        entry = entry.removeprefix("*").lstrip(".")
        if entry and (host.lower() == entry or host.lower().endswith(f".{entry}")):
            return True
    return False


class Connections(urllib3.PoolManager):
    """Connections of urllib3 that choose, for each request, the proxy of the environment or none."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._options = options
        self._managers: dict[Proxy, urllib3.ProxyManager] = {}
        self._managers_lock = threading.Lock()

    def urlopen(self, method: str, url: str, *arguments: Any, **options: Any) -> Any:
        """Request a URL. Raises what urllib3 raises, ProxyError where the proxy refuses, HoneError InvalidSpec."""
        proxy = find_proxy(url, getproxies_environment())
        if proxy is None:
            return super().urlopen(method, url, *arguments, **options)
        response = self._find_manager(proxy).urlopen(method, url, *arguments, **options)
        if response.status == PROXY_AUTHENTICATION_REQUIRED:
            response.close()
            raise ProxyError(f"the proxy answers with status {PROXY_AUTHENTICATION_REQUIRED}", OSError())
        return response

    def _find_manager(self, proxy: Proxy) -> urllib3.ProxyManager:
        with self._managers_lock:
            if proxy not in self._managers:
                headers = urllib3.make_headers(proxy_basic_auth=proxy.login) if proxy.login else None
                self._managers[proxy] = urllib3.ProxyManager(proxy.url, proxy_headers=headers, **self._options)
            return self._managers[proxy]
