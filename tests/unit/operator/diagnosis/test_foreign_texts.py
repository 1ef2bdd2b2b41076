"""Texts of other programs can have any length, and are cut before they reach patterns, conditions and events."""

import importlib
import json
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

import hone_operator
import pytest
from hone_api.schema.crd import make_schema
from hone_operator.diagnosis import events
from hone_operator.diagnosis.admission import explain_refusal
from hone_operator.diagnosis.unschedulable import explain_unschedulable
from hone_operator.kube.cache import Cache
from hone_operator.kube.client import ApiError
from hone_operator.objects import texts
from hone_operator.objects.resources import FINETUNEJOBS, PODS
from hone_operator.reconcile.conditions import Conditions
from hypothesis import given
from hypothesis import strategies as st
from observed import NOW, job_object

_parse = importlib.import_module("re._parser").parse

LONG = 2_000_000
TEXTS = [sign * LONG for sign in ("x", "1", "é", "\U0001f600", '"', " ")]
MATCHED_AT_ONE_PLACE = {"_SPACE"}


@given(st.text(st.characters(exclude_categories=())), st.integers(3, 50))
def test_a_cut_text_keeps_its_bound_and_its_beginning(text: str, longest: int) -> None:
    found = texts.truncate_text(text, longest)
    if found == text:
        assert len(text.encode("utf-8", "replace")) <= longest
    else:
        assert len(found.encode()) <= longest
        assert found.endswith("…")
        assert text.encode("utf-8", "replace").startswith(found[:-1].encode())


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_of_any_length_is_cut_where_it_comes_from(text: str) -> None:
    assert len(ApiError(422, text).message.encode()) <= texts.MAX_FOREIGN_TEXT_BYTES
    assert len(str(ApiError(422, text))) <= texts.MAX_FOREIGN_TEXT_BYTES + 10
    event = {"message": text, "reason": text, "involvedObject": {"name": text}, "more": text}
    event |= {"metadata": {"creationTimestamp": "2026-03-01T11:00:00Z", "annotations": {"a": text}}}
    assert len(json.dumps(events.reduce_event(event), ensure_ascii=False).encode()) < 8 * texts.MAX_FOREIGN_TEXT_BYTES
    cache, job = Cache(), job_object()
    job["metadata"]["resourceVersion"] = "1"
    cache.put(FINETUNEJOBS, job)
    metadata: Any = {"name": "a", "namespace": "team", "uid": "u", "resourceVersion": "1"}
    metadata |= {"labels": {"hone.dev/finetunejob": "faq"}}
    state = {"waiting": {"reason": text, "message": text}}
    cache.put(PODS, {"metadata": metadata, "spec": {}, "status": {"containerStatuses": [{"state": state}]}})
    [pod] = cache.list_objects(PODS)
    words = pod["status"]["containerStatuses"][0]["state"]["waiting"]
    assert all(len(each.encode()) <= texts.MAX_FOREIGN_TEXT_BYTES for each in words.values())
    assert len(explain_refusal(ApiError(422, text).message).format_message()) < 2 * texts.MAX_FOREIGN_TEXT_BYTES


@pytest.mark.parametrize("status", [409, 422])
def test_a_uid_mismatch_is_found_behind_a_text_that_is_cut(status: int) -> None:
    assert ApiError(status, "x" * LONG + " metadata.uid: uid mismatch").is_of_another
    assert not ApiError(status, "x" * LONG).is_of_another


@pytest.mark.parametrize("text", TEXTS)
def test_conditions_and_their_events_fit_the_limits_of_the_api_server(text: str) -> None:
    conditions = Conditions(job_object(), NOW)
    conditions.set("Ready", False, "Unschedulable", text)
    [condition] = conditions.to_list("Ready")
    assert len(condition["message"].encode()) <= 32768
    [event] = conditions.build_events("Ready")
    assert len(event.message.encode()) <= 1024


def test_a_very_long_number_in_a_schedulers_message_does_not_count_nodes() -> None:
    found = explain_unschedulable(
        {"spec": {"containers": []}}, "9" * 5000 + " node(s) had no available volume zone", None
    )
    assert found.reason.name == "Unschedulable"


def test_no_searched_pattern_begins_with_an_unbounded_repetition() -> None:
    """Such a pattern without a lookbehind takes quadratic time in the length of the text."""
    names = [module.name for module in pkgutil.walk_packages(hone_operator.__path__, "hone_operator.")]
    found = {
        f"{name}.{at}"
        for name in names
        if not name.endswith("__main__")
        for at, pattern in _patterns(importlib.import_module(name))
        if at not in MATCHED_AT_ONE_PLACE and _begins_without_end(_parse(pattern.pattern, pattern.flags))
    }
    assert found == set()


def test_the_check_of_patterns_finds_one() -> None:
    for pattern in (r"\d+ nodes", r"a|[a-z]+ b", r"(?P<n>\w*) x"):
        assert _begins_without_end(_parse(pattern))
    for pattern in (r"(?<!\d)\d+ nodes", r"a[a-z]+", r"^\w+: "):
        assert not _begins_without_end(_parse(pattern))


def _patterns(module: Any) -> Iterator[tuple[str, re.Pattern[Any]]]:
    for at, value in vars(module).items():
        for each in value if isinstance(value, tuple | list) else (value,):
            text = each[0] if isinstance(each, tuple) and each else each
            if isinstance(text, re.Pattern):
                yield at, text
            elif at == "_ADVICE":
                yield at, re.compile(text)


def _begins_without_end(parsed: Any) -> bool:
    """Return whether a match can begin with an unbounded repetition."""
    for kind, value in parsed:
        match str(kind):
            case "BRANCH":
                return any(_begins_without_end(each) for each in value[1])
            case "SUBPATTERN":
                return _begins_without_end(value[3])
            case "MAX_REPEAT" | "MIN_REPEAT":
                if value[1] > 1000:
                    return True
                if _begins_without_end(value[2]):
                    return True
                if value[0]:
                    return False
            case _:
                return False
    return False


@pytest.mark.parametrize(
    ("field", "longest"),
    [
        ("hostAliases[].hostnames[]", 253),
        ("hostAliases[].ip", 45),
        ("dnsConfig.nameservers[]", 45),
        ("dnsConfig.searches[]", 254),
        ("volumes[].persistentVolumeClaim.claimName", 253),
        (
            "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[].matchFields[].key",
            317,
        ),
    ],
)
def test_names_have_the_bounds_that_kubernetes_has(field: str, longest: int) -> None:
    """Check the bound of each name: a refusal repeats names that are too long."""
    of = make_schema("FineTuneJob")["properties"]["spec"]["properties"]["pod"]
    for name in field.replace("[]", ".[]").split("."):
        of = of["items"] if name == "[]" else of["properties"][name]
    assert of["maxLength"] == longest
