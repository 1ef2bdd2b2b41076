"""Downloads through the proxy of the environment, from hosts that only the proxy can reach."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from forward_proxy import ForwardProxy
from hone_api.reasons import INVALID_SPEC, STORE_UNREACHABLE, HoneError
from hone_trainer.push.oci_push import ArtifactPusher
from hone_trainer.remote import download as downloads
from hone_trainer.remote import fetch as fetching
from hone_trainer.remote.fetch import Snapshot, fetch
from hone_trainer.remote.locations import Location
from hone_trainer.runtime.proxies import Proxy, find_proxy
from ociserver.registry import LOGIN, RegistryServer
from s3server.gateway import SECRET, Authority, Gateway

pytestmark = pytest.mark.usefixtures("cache", "no_proxies")

HOST = "store.test"
ROWS = b'{"text": "one"}\n'
PASSWORD = "open:sesame@1"
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the proxies of this machine."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def proxy() -> Iterator[ForwardProxy]:
    server = ForwardProxy({})
    yield server
    server.close()


@pytest.fixture(scope="module")
def named_authority(with_programs: None, tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Return an authority that knows the host behind the proxy."""
    return Authority(tmp_path_factory.mktemp("named") / "authority", f"DNS:{HOST},IP:127.0.0.1")


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def content_of(snapshot: Snapshot) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in snapshot.folder.rglob("*") if path.is_file()}


def test_a_bucket_is_read_through_a_proxy_over_http(
    gateway: Gateway, proxy: ForwardProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.put("proxied/a.jsonl", ROWS)
    proxy.hosts[HOST] = port_of(gateway.url)
    monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.host}")
    location = Location("dataset", "s3://data/proxied/", endpoint=f"http://{HOST}", secret=SECRET)
    assert content_of(fetch(location, None)) == {"a.jsonl": ROWS}
    assert set(proxy.asked) == {f"GET {HOST}"}


def test_a_bucket_and_a_file_are_read_through_a_tunnel(
    with_programs: None,
    named_authority: Authority,
    proxy: ForwardProxy,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    with Gateway(tmp_path / "gateway", named_authority) as gateway:
        gateway.put("proxied/a.jsonl", ROWS)
        proxy.hosts[HOST] = port_of(gateway.url)
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.host}")
        ca_file = named_authority.certificates
        location = Location("dataset", "s3://data/proxied/", endpoint=f"https://{HOST}", secret=SECRET, ca_file=ca_file)
        assert content_of(fetch(location, None)) == {"a.jsonl": ROWS}
        assert set(proxy.asked) == {f"CONNECT {HOST}"}
        gateway.client.make_bucket("public")
        policy = (
            '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": "*", "Action": "s3:*",'
            ' "Resource": ["arn:aws:s3:::public", "arn:aws:s3:::public/*"]}]}'
        )
        gateway.client.set_bucket_policy("public", policy)
        gateway.put("a.jsonl", ROWS, bucket="public")
        file = Location("dataset", f"https://{HOST}/public/a.jsonl", ca_file=ca_file)
        assert content_of(fetch(file, None)) == {"a.jsonl": ROWS}


def test_a_registry_is_written_and_read_through_a_proxy(
    locked_registry: RegistryServer, proxy: ForwardProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    proxy.hosts[HOST] = port_of(locked_registry.url)
    monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.host}")
    location = Location("dataset", f"oci://{HOST}/faq:v1", endpoint=f"http://{HOST}", secret=LOGIN)
    (tmp_path / "a.jsonl").write_bytes(ROWS)
    ArtifactPusher(location, print).push({"a.jsonl": tmp_path / "a.jsonl"})
    assert content_of(fetch(location, None)) == {"a.jsonl": ROWS}
    assert f"PUT {HOST}" in proxy.asked


def test_a_server_on_this_machine_is_reached_without_the_proxy(
    gateway: Gateway, proxy: ForwardProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.put("direct/a.jsonl", ROWS)
    monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.host}")
    fetch(Location("dataset", "s3://data/direct/", endpoint=gateway.url, secret=SECRET), None)
    assert proxy.asked == []


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    make = downloads.Downloader
    monkeypatch.setattr(fetching, "Downloader", lambda *given: make(*given, first_wait_seconds=0.01))


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_login_of_a_proxy_is_sent_to_it_and_shown_nowhere(
    gateway: Gateway,
    secure_gateway: Gateway,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    impatient: None,
    scheme: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    server = gateway if scheme == "http" else secure_gateway
    proxy = ForwardProxy({HOST: port_of(server.url)}, f"me:{PASSWORD}")
    location = Location("dataset", "s3://data/login/", endpoint=f"{scheme}://{HOST}", secret=SECRET)
    gateway.put("login/a.jsonl", ROWS)
    variable = f"{scheme.upper()}_PROXY"
    monkeypatch.setenv(variable, f"http://me:wrong-{PASSWORD.partition('@')[0]}@{proxy.host}")
    with pytest.raises(HoneError) as caught:
        fetch(location, None)
    assert caught.value.reason is STORE_UNREACHABLE
    assert "407" in caught.value.message
    assert "the proxy of the environment refuses access" in caught.value.message
    assert len(proxy.asked) == 1, "a wrong login is not tried again"
    monkeypatch.setenv(variable, f"http://me:{PASSWORD.replace('@', '%40')}@{proxy.host}")
    if scheme == "http":
        assert content_of(fetch(location, None)) == {"a.jsonl": ROWS}
    else:  # the proxy connects, and the certificate is of another name
        with pytest.raises(HoneError, match="TLS failed"):
            fetch(location, None)
    printed = capsys.readouterr()
    shown = f"{caplog.text}{printed.out}{printed.err}{caught.value.format_message()}{caught.value.__cause__!r}"
    assert "open:sesame" not in shown
    assert "sesame" not in shown
    proxy.close()


def test_a_proxy_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, impatient: None) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://me:{PASSWORD.replace('@', '%40')}@127.0.0.1:1")
    with pytest.raises(HoneError) as caught:
        fetch(Location("dataset", "s3://data/login/", endpoint=f"http://{HOST}", secret=SECRET), None)
    assert caught.value.reason is STORE_UNREACHABLE
    assert "the proxy of HTTPS_PROXY or HTTP_PROXY" in caught.value.message
    assert "sesame" not in f"{caught.value.message}{caught.value.__cause__!r}"


@pytest.mark.parametrize(
    ("url", "excluded", "is_used"),
    [
        ("https://store.test/a", "", True),
        ("https://store.test/a", "store.test", False),
        ("https://store.test:9000/a", "store.test:9000", False),
        ("https://store.test/a", "store.test:9000", True),
        ("https://minio.store.test/a", "store.test", False),
        ("https://minio.store.test/a", ".store.test", False),
        ("https://minio.store.test/a", "*.store.test", False),
        ("https://notstore.test/a", "store.test", True),
        ("https://STORE.test/a", "store.TEST", False),
        ("https://store.test/a", "other, *", False),
        ("https://10.1.2.3/a", "10.0.0.0/8", False),
        ("https://11.1.2.3/a", "10.0.0.0/8", True),
        ("https://[fd00::1]/a", "fd00::/8", False),
        ("https://127.0.0.1/a", "", False),
        ("https://127.9.9.9:5000/a", "", False),
        ("https://[::1]:5000/a", "", False),
        ("http://localhost:5000/a", "", False),
        ("http://store.test/a", "", True),
    ],
)
def test_no_proxy_names_hosts_addresses_and_networks(url: str, excluded: str, is_used: bool) -> None:
    found = find_proxy(url, {"all": "http://proxy.test:3128", "no": excluded})
    assert found == (Proxy("http://proxy.test:3128", None) if is_used else None)


def test_a_proxy_is_chosen_by_the_scheme() -> None:
    proxies = {"http": "one.test:3128", "https": "http://me:a%3Ab@two.test:3128/"}
    assert find_proxy("http://store.test/", proxies) == Proxy("http://one.test:3128", None)
    assert find_proxy("https://store.test/", proxies) == Proxy("http://two.test:3128", "me:a:b")
    assert find_proxy("https://store.test/", {}) is None
    with pytest.raises(HoneError) as caught:
        find_proxy("https://store.test/", {"all": "socks5://me:sesame@proxy.test"})
    assert caught.value.reason is INVALID_SPEC
    assert "sesame" not in caught.value.format_message()
