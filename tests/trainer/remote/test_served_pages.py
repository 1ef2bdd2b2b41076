"""Portals and applications that answer with a page, and status 200, in place of a file that they don't have."""

from http.server import BaseHTTPRequestHandler

import pytest
from faulty_server import Reply, Store, files_of
from hone_api.reasons import DATASET_NOT_FOUND, MODEL_NOT_FOUND, HoneError
from hone_trainer.remote.fetch import fetch
from hone_trainer.remote.locations import Kind, Location

pytestmark = pytest.mark.usefixtures("quick")

PAGE = b"\n<!DOCTYPE html><html><body>{{ what }} was not found</body></html>"
INDEX = b'{"weight_map": {"a": "model-1.safetensors"}}'


def failure_of(location: Location) -> HoneError:
    with pytest.raises(HoneError) as caught:
        fetch(location, None)
    return caught.value


def answer_with_pages(store: Store, files: dict[str, bytes], media_type: str = "application/octet-stream") -> None:
    """Answer as an application with one page does: with that page for every file that there is not."""

    def reply(request: BaseHTTPRequestHandler) -> Reply:
        found = files.get(request.path.rpartition("/")[2])
        return 200, {"Content-Type": "text/html; charset=utf-8" if found is None else media_type}, found or PAGE

    store.reply = reply


@pytest.mark.parametrize(
    "weights", [{"model.safetensors.index.json": INDEX, "model-1.safetensors": b"xx"}, {"model.safetensors": b"x"}]
)
@pytest.mark.parametrize("media_type", ["application/octet-stream", "text/html"])
def test_a_page_in_place_of_a_file_that_a_model_lacks_is_none_of_its_files(
    store: Store, weights: dict[str, bytes], media_type: str
) -> None:
    files = {"config.json": b"{}", "tokenizer.json": b"{}", **weights}
    answer_with_pages(store, files, media_type)
    assert files_of(fetch(Location("model", f"{store.url}/tiny/"), None)) == files


@pytest.mark.parametrize(("kind", "path"), [("dataset", "a.txt"), ("dataset", "a.jsonl"), ("model", "tiny/")])
def test_a_page_in_place_of_the_source_is_named(store: Store, kind: Kind, path: str) -> None:
    answer_with_pages(store, {})
    failure = failure_of(Location(kind, f"{store.url}/{path}"))
    assert failure.reason in (DATASET_NOT_FOUND, MODEL_NOT_FOUND)
    assert "answers with a page in HTML" in failure.message
    assert f"spec.{kind}.secret" in failure.remedy


def test_rows_that_a_server_calls_a_page_are_read(store: Store) -> None:
    answer_with_pages(store, {"a.jsonl": b'{"text": "<html>"}'}, "text/html")
    assert files_of(fetch(Location("dataset", f"{store.url}/a.jsonl"), None)) == {"a.jsonl": b'{"text": "<html>"}'}


def test_a_page_in_place_of_a_registry_is_named(store: Store) -> None:
    answer_with_pages(store, {})
    failure = failure_of(Location("dataset", f"oci://{store.url.removeprefix('http://')}/team/faq:v1"))
    assert "has a manifest that is none of an OCI artifact" in failure.message
    assert "Check spec.dataset.uri" in failure.remedy
