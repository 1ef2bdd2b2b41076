"""Answers of real servers that are no help: refusals, redirects, consoles, endless lists, and unusable credentials."""

import errno
import hashlib
import json
import traceback
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import urllib3
from faulty_server import SECRET, Reply, Store, bucket, content, error, files_of
from hone_api.reasons import (
    DATASET_INVALID,
    DISK_FULL,
    INVALID_SPEC,
    SOURCE_CHANGED,
    STORE_UNAUTHORIZED,
    STORE_UNREACHABLE,
    HoneError,
    Reason,
)
from hone_trainer.remote import download as downloads
from hone_trainer.remote import https
from hone_trainer.remote.fetch import fetch, open_store
from hone_trainer.remote.locations import Location
from hone_trainer.remote.objects import RemoteObject, TransientError
from hone_trainer.remote.partial import PartialFile

pytestmark = pytest.mark.usefixtures("quick")

HIDDEN = "TOPSECRET"
XML = {"Content-Type": "application/xml"}


def fail(location: Location) -> HoneError:
    """Return the failure of a download. Nothing that it could print contains a secret."""
    with pytest.raises(HoneError) as caught:
        fetch(location, None)
    printed = "".join(traceback.format_exception(caught.value)) + str(caught.value) + str(caught.value.remedy)
    assert HIDDEN not in printed
    return caught.value


def is_list(request: BaseHTTPRequestHandler) -> bool:
    return "list-type" in request.path


def list_page(*entries: tuple[str, object, str], more: str = "") -> Reply:
    rows = "".join(
        f"<Contents><Key>{key}</Key><Size>{size}</Size><ETag>{etag}</ETag></Contents>" for key, size, etag in entries
    )
    return 200, XML, f"<ListBucketResult><Name>data</Name>{more}{rows}</ListBucketResult>".encode()


@pytest.mark.parametrize(
    ("code", "status", "reason", "remedy"),
    [
        ("ExpiredToken", 400, STORE_UNAUTHORIZED, "temporary ones have expired"),
        ("InvalidToken", 400, STORE_UNAUTHORIZED, "credentials that are valid now"),
        ("RequestTimeTooSkewed", 403, STORE_UNAUTHORIZED, "Set the clock of the node"),
        ("KMS.DisabledException", 400, STORE_UNAUTHORIZED, "the key that encrypts"),
        ("AuthorizationHeaderMalformed", 400, STORE_UNAUTHORIZED, "valid credentials"),
        ("InvalidObjectState", 403, DATASET_INVALID, "Restore the objects"),
        ("PermanentRedirect", 301, INVALID_SPEC, "spec.dataset.region"),
        ("InvalidRange", 416, SOURCE_CHANGED, "under a new prefix"),
        ("NotImplemented", 400, INVALID_SPEC, "Check spec.dataset.uri"),
    ],
)
def test_a_code_of_the_store_gets_its_own_remedy(
    store: Store, code: str, status: int, reason: Reason, remedy: str
) -> None:
    store.reply = lambda request: None if is_list(request) else error(code, status)
    failure = fail(bucket(store))
    assert failure.reason is reason
    assert remedy in failure.remedy


@pytest.mark.parametrize(
    ("refused", "sentence", "right"),
    [
        (is_list, "Access Denied", "the right s3:ListBucket on bucket data, in spec.dataset.secret"),
        (lambda request: not is_list(request), "Access Denied", "the right s3:GetObject on bucket data"),
        (
            lambda request: not is_list(request),
            "User u is not authorized to perform: kms:Decrypt on the resource",
            "the right kms:Decrypt on the key that encrypts",
        ),
    ],
)
@pytest.mark.parametrize("is_page", [False, True])
def test_a_refusal_names_the_right_that_lacks(
    store: Store, refused: Callable[[BaseHTTPRequestHandler], bool], sentence: str, right: str, is_page: bool
) -> None:
    body = f"<Error><Code>AccessDenied</Code><Message>{sentence}</Message></Error>"
    reply = (403, {}, f"<p>{sentence}".encode()) if is_page else (403, XML, body.encode())
    store.reply = lambda request: reply if refused(request) else None
    failure = fail(bucket(store))
    assert failure.reason is STORE_UNAUTHORIZED
    assert right in failure.remedy


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "token"])
@pytest.mark.parametrize("value", [f"{HIDDEN}\nmore", f"{HIDDEN}\u2026", f"{HIDDEN}\x00"])
def test_a_credential_that_cant_be_sent_is_not_printed(store: Store, name: str, value: str) -> None:
    uri = f"{store.url}/faq/a.jsonl" if name == "token" else "s3://data/faq/"
    failure = fail(Location("dataset", uri, endpoint=store.url, secret={**SECRET, name: value}))
    assert failure.reason is INVALID_SPEC
    assert f"key {name} of its Secret" in failure.message
    assert not store.headers_seen


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"])
def test_a_credential_of_the_environment_that_cant_be_sent_is_not_printed(
    store: Store, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each, value in (SECRET | {name: f"{HIDDEN}\nmore"}).items():
        monkeypatch.setenv(each, value)
    assert fail(Location("dataset", "s3://data/faq/", endpoint=store.url)).reason is INVALID_SPEC


def test_credentials_that_have_expired_since_leave_what_was_downloaded(store: Store) -> None:
    first = fetch(bucket(store), None)
    store.reply = lambda request: error("ExpiredToken")
    assert fetch(bucket(store), first.revision) == first
    assert fail(bucket(store)).reason is STORE_UNAUTHORIZED


def test_a_line_feed_after_a_credential_is_left_out(store: Store) -> None:
    ended = {name: f"{value}\n" for name, value in SECRET.items()}
    fetch(Location("dataset", "s3://data/faq/", endpoint=store.url, secret=ended), None)
    assert all("Credential=reader/" in headers["authorization"] for headers in map(_lower, store.headers_seen))
    pair = {"username": "a\n", "password": "b\r\n"}
    fetch(Location("dataset", f"{store.url}/faq/deep/b.jsonl", secret=pair), None)
    assert _lower(store.headers_seen[-1])["authorization"] == "Basic YTpi"


@pytest.mark.parametrize("variable", ["AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_SHARED_CREDENTIALS_FILE"])
def test_credentials_of_the_environment_that_cant_be_read_are_reported(
    store: Store, variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "credentials").write_text(HIDDEN)
    is_file = variable.endswith("FILE")
    monkeypatch.setenv(variable, str(tmp_path / "credentials") if is_file else "http://127.0.0.1:1/")
    failure = fail(Location("dataset", "s3://data/faq/", endpoint=store.url))
    assert failure.reason is STORE_UNAUTHORIZED
    assert "credentials of the environment can't be read" in failure.message


def test_an_identity_of_a_pod_that_is_refused_is_reported(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/missing")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::1:role/reader")
    failure = fail(Location("dataset", "s3://data/faq/", endpoint=store.url))
    assert failure.reason is STORE_UNAUTHORIZED
    assert "AWS_WEB_IDENTITY_TOKEN_FILE is set" in failure.message


@pytest.mark.parametrize(
    "target", [f"http://other/x?X-Amz-Signature={HIDDEN}", f"http://user:{HIDDEN}@other/x", f"http://[x/?q={HIDDEN}"]
)
def test_a_redirect_out_of_https_is_refused_without_its_query(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Redirecting:
        def request(self, *_: object, **__: object) -> urllib3.HTTPResponse:
            return urllib3.HTTPResponse(b"", headers={"Location": target}, status=302)

    monkeypatch.setattr(https, "make_pool", lambda *_: Redirecting())
    assert "the server redirects to" in fail(Location("dataset", "https://host/a.jsonl")).message


@pytest.mark.parametrize("target", ["http://127.0.0.1:99999/x", "http://[bad/x", "ftp://127.0.0.1/x", "file:///x"])
def test_a_redirect_to_an_unusable_address_hides_it(store: Store, target: str) -> None:
    store.reply = lambda request: (302, {"Location": f"{target}?X-Amz-Signature={HIDDEN}"}, b"")
    assert "redirects to an address that is no URL" in fail(Location("dataset", f"{store.url}/a.jsonl")).message


@pytest.mark.parametrize(
    "body", [b"<!doctype html><meta charset=utf-8>", b"<html><title>Console</title></html>", b"{}", b"", b"\xff\xfe"]
)
def test_an_endpoint_that_is_no_s3_server_is_named(store: Store, body: bytes) -> None:
    store.reply = lambda request: (200, {"Content-Type": "text/html"}, body)
    failure = fail(bucket(store))
    assert failure.reason is INVALID_SPEC
    assert f"{store.url} answers, and not as an S3 server does" in failure.message
    assert "not of its console" in failure.remedy


@pytest.mark.parametrize("token", ["", "<NextContinuationToken>again</NextContinuationToken>"])
@pytest.mark.parametrize("entries", [[], [("faq/a", 1, "e")]])
def test_a_list_without_an_end_ends(store: Store, token: str, entries: list[tuple[str, object, str]]) -> None:
    more = f"<IsTruncated>true</IsTruncated>{token}"
    store.reply = lambda request: list_page(*entries, more=more)
    failure = fail(bucket(store))
    assert failure.reason is INVALID_SPEC
    assert "lists the same objects again and again" in failure.message


def test_a_list_of_several_pages_is_read_to_its_end(store: Store) -> None:
    def reply(request: BaseHTTPRequestHandler) -> Reply | None:
        if not is_list(request):
            return None
        if "continuation-token=two" in request.path:
            return list_page(("faq/deep/b.jsonl", 100, hashlib.md5(content(2, 100)).hexdigest()))
        more = "<IsTruncated>true</IsTruncated><NextContinuationToken>two</NextContinuationToken>"
        return list_page(("faq/empty.jsonl", 0, hashlib.md5(b"").hexdigest()), more=more)

    store.reply = reply
    assert files_of(fetch(bucket(store), None)) == {"deep/b.jsonl": content(2, 100), "empty.jsonl": b""}


@pytest.mark.parametrize("size", [-1, "many"])
def test_a_size_that_is_none_is_refused(store: Store, size: object) -> None:
    store.reply = lambda request: list_page(("faq/a", size, "e"))
    assert fail(bucket(store)).reason is INVALID_SPEC


def test_a_download_that_no_volume_can_hold_is_refused_at_once(store: Store) -> None:
    store.reply = lambda request: list_page(("faq/a", 10**18, "e"))
    failure = fail(bucket(store))
    assert failure.reason is DISK_FULL
    assert not store.asked


def test_a_full_disk_is_no_failure_of_the_store(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(downloads, "_write", write)
    for location in (bucket(store), Location("dataset", f"{store.url}/faq/a.jsonl")):
        assert fail(location).reason is DISK_FULL


@pytest.mark.parametrize("uri", ["s3://my..bucket/x", "s3://192.168.1.1/x", "s3://data/a/../b", "s3://data/./b/"])
def test_a_uri_that_cant_be_requested_is_refused(store: Store, uri: str) -> None:
    failure = fail(Location("dataset", uri, endpoint=store.url, secret=SECRET))
    assert failure.reason is INVALID_SPEC
    assert uri in failure.message


@pytest.mark.parametrize("endpoint", ["https://bucket.s3.eu-west-1.amazonaws.com", "https://host:99999", "http://h:x"])
def test_an_endpoint_that_cant_be_used_is_refused(endpoint: str) -> None:
    failure = fail(Location("dataset", "s3://data/x", endpoint=endpoint, secret=SECRET))
    assert failure.reason is INVALID_SPEC
    assert "without the bucket" in failure.remedy


def test_an_endpoint_of_the_environment_with_a_password_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"https://user:{HIDDEN}@host")
    assert fail(Location("dataset", "s3://data/x", secret=SECRET)).reason is INVALID_SPEC


def test_tls_to_a_server_without_it_does_not_ask_for_a_certificate(store: Store) -> None:
    failure = fail(Location("dataset", "s3://data/x", endpoint=store.url.replace("http", "https"), secret=SECRET))
    assert failure.reason is STORE_UNREACHABLE
    assert "speaks TLS" in failure.remedy


def test_a_busy_store_after_a_change_is_asked_again(store: Store) -> None:
    lists = []

    def reply(request: BaseHTTPRequestHandler) -> Reply | None:
        if is_list(request):
            lists.append(request.path)
            if len(lists) == 1:
                store.files["faq/a.jsonl"] = content(9)
                return list_page(("faq/a.jsonl", len(content(1)), "e"))
            if len(lists) == 2:
                return error("SlowDown", 503)
        return None

    store.reply = reply
    assert files_of(fetch(bucket(store), None))["a.jsonl"] == content(9)


@pytest.mark.parametrize("shape", ['"{}"', 'W/"{}"', "{}"])
def test_an_etag_may_lose_its_quotes_on_the_way(store: Store, shape: str) -> None:
    data = content(2, 100)
    etag = hashlib.md5(data).hexdigest()

    def reply(request: BaseHTTPRequestHandler) -> Reply:
        if is_list(request):
            return list_page(("faq/a", len(data), etag))
        return 200, {"ETag": shape.format(etag)}, data

    store.reply = reply
    assert files_of(fetch(bucket(store), None)) == {"a": data}


def test_an_etag_that_only_looks_like_an_md5_costs_a_second_download(
    store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    data = content(2, 100)

    def reply(request: BaseHTTPRequestHandler) -> Reply:
        return list_page(("faq/a", len(data), "0" * 32)) if is_list(request) else (200, {"ETag": "0" * 32}, data)

    store.reply = reply
    assert files_of(fetch(bucket(store), None)) == {"a": data}
    assert "the ETag is not taken for its MD5" in capfd.readouterr().err


@pytest.mark.parametrize("status", [403, 405, 501])
def test_a_server_that_refuses_head_is_read(store: Store, status: int) -> None:
    store.reply = lambda request: (status, {}, b"") if request.command == "HEAD" and status != 501 else None
    assert files_of(fetch(bucket(store, "faq/a.jsonl"), None)) == {"a.jsonl": content(1)}
    assert files_of(fetch(Location("dataset", f"{store.url}/faq/a.jsonl"), None)) == {"a.jsonl": content(1)}


def test_a_digest_header_that_is_no_digest_is_ignored(store: Store) -> None:
    headers = {"ETag": '"1"', "Repr-Digest": "sha-256=:nonsense!:"}
    store.reply = lambda request: (200, headers, b"hello")
    assert files_of(fetch(Location("dataset", f"{store.url}/a.jsonl"), None)) == {"a.jsonl": b"hello"}


def test_an_empty_object_next_to_a_prefix_stands_for_the_folder(store: Store) -> None:
    store.files = {"faq": b"", "faq/": b"", "faq/a": b"x"}
    assert files_of(fetch(bucket(store, "faq"), None)) == {"a": b"x"}
    store.files = {"faq": b""}
    assert files_of(fetch(bucket(store, "faq"), None)) == {"faq": b""}


def test_a_folder_behind_https_is_no_dataset(store: Store) -> None:
    assert "HTTPS can't list one" in fail(Location("dataset", f"{store.url}/faq/")).message


def serve_model(store: Store, files: dict[str, bytes], otherwise: int) -> Location:
    def reply(request: BaseHTTPRequestHandler) -> Reply:
        data = files.get(urlsplit(request.path).path.removeprefix("/m/"))
        return (otherwise, {}, b"") if data is None else (200, {"ETag": '"1"'}, data)

    store.reply = reply
    return Location("model", f"{store.url}/m")


@pytest.mark.parametrize("otherwise", [404, 403])
def test_a_bucket_behind_https_may_refuse_what_it_does_not_have(store: Store, otherwise: int) -> None:
    index = json.dumps({"weight_map": {"a": "model-1.safetensors"}}).encode()
    files = {"config.json": b"{}", "model.safetensors.index.json": index, "model-1.safetensors": b"w"}
    assert files_of(fetch(serve_model(store, files, otherwise), None)) == files


@pytest.mark.parametrize("files", [{}, {"config.json": b"{}"}])
def test_a_model_behind_https_whose_weights_are_refused_is_reported(store: Store, files: dict[str, bytes]) -> None:
    assert fail(serve_model(store, files, 403)).reason is STORE_UNAUTHORIZED


def test_a_shard_outside_the_model_is_refused(store: Store) -> None:
    index = json.dumps({"weight_map": {"a": "../../x.safetensors"}}).encode()
    files = {"config.json": b"{}", "model.safetensors.index.json": index, "../../x.safetensors": b"w"}
    location = serve_model(store, files, 404)
    known = store.reply
    store.reply = lambda request: known(request) if "x.saf" not in request.path else (200, {"ETag": '"1"'}, b"w")
    assert "can't be a file below a folder" in fail(location).message


@pytest.mark.parametrize("cut", ["1", "#1", "#", "#12", "12;\n", "\x00\x00#3;"])
def test_a_cut_line_of_the_journal_claims_no_other_piece(tmp_path: Path, cut: str) -> None:
    wanted = RemoteObject("a", "a", 200, '"1"')
    (tmp_path / "a").write_bytes(bytes(200))
    journal = tmp_path / hashlib.sha256(b"a").hexdigest()
    journal.write_text(cut)
    file = PartialFile(wanted, tmp_path, tmp_path, 10)
    descriptor = file.open()
    file.complete(descriptor, (30, 40))
    again = PartialFile(wanted, tmp_path, tmp_path, 10)
    assert (30, 40) not in again.missing
    assert len(again.missing) == 19


def test_a_refused_consumer_is_not_taken_for_the_store(store: Store) -> None:
    """What the body of `with store.read()` raises passes, whatever it is."""
    for opened in (bucket(store, "faq/a.jsonl"), Location("dataset", f"{store.url}/faq/a.jsonl")):
        source = open_store(opened)
        (found,) = source.list_objects()
        for raised in (OSError(errno.EIO, "I/O error"), ValueError("x"), TransientError("x")):
            with pytest.raises(type(raised)) as caught, source.read(found, 0, 10):
                raise raised
            assert caught.value is raised


def _lower(headers: dict[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}
