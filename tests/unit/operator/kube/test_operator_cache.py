"""The cache of watched objects, and the comparison of children with the desired ones."""

from typing import Any

import pytest
from hone_operator.kube.cache import Cache
from hone_operator.objects.drift import contains_fields
from hone_operator.objects.resources import (
    CLAIMS,
    CONFIGMAPS,
    FINETUNEJOBS,
    JOBS,
    PODS,
    Key,
    Object,
    Resource,
    build_merge_patch,
)
from hone_operator.watch_handlers import strip_status

OWNER = Key(FINETUNEJOBS, "team", "faq")


def job(version: int, *, uid: str = "u1", name: str = "faq-train") -> Object:
    labels = {"hone.dev/finetunejob": "faq"}
    return {
        "metadata": {
            "name": name,
            "namespace": "team",
            "uid": uid,
            "resourceVersion": str(version),
            "labels": labels,
        }
    }


def version(cache: Cache) -> str | None:
    found = cache.get(JOBS, "team", "faq-train")
    return found["metadata"]["resourceVersion"] if found else None


def test_an_older_version_never_replaces_a_newer_one() -> None:
    cache = Cache()
    assert cache.put(JOBS, job(9))
    assert not cache.put(JOBS, job(9))
    assert not cache.put(JOBS, job(8))
    assert cache.put(JOBS, job(10))
    assert version(cache) == "10"


def test_a_late_deletion_does_not_remove_a_newer_object_of_the_name() -> None:
    cache = Cache()
    cache.put(JOBS, job(9, uid="new"))
    cache.remove(JOBS, job(5, uid="old"))
    assert version(cache) == "9"
    cache.remove(JOBS, job(9, uid="new"))
    assert version(cache) is None
    assert cache.list_children(OWNER, JOBS) == []


def test_children_are_found_by_label() -> None:
    cache = Cache()
    cache.put(JOBS, job(1, name="b"))
    cache.put(JOBS, job(1, name="a"))
    assert [found["metadata"]["name"] for found in cache.list_children(OWNER, JOBS)] == ["a", "b"]


def test_a_child_whose_label_was_edited_has_one_owner() -> None:
    cache = Cache()
    cache.put(JOBS, job(1))
    edited = job(2)
    edited["metadata"]["labels"] = {"hone.dev/finetunejob": "other"}
    cache.put(JOBS, edited)
    assert cache.list_children(OWNER, JOBS) == []
    assert len(cache.list_children(Key(FINETUNEJOBS, "team", "other"), JOBS)) == 1
    cache.remove(JOBS, edited)
    assert cache.list_children(Key(FINETUNEJOBS, "team", "other"), JOBS) == []


def test_a_list_removes_what_a_cut_watch_missed() -> None:
    cache = Cache()
    cache.put(JOBS, job(3, uid="gone"))
    cache.put(JOBS, job(4, uid="other", name="other"))
    cache.put(JOBS, job(9, uid="later", name="later"))
    assert [found["metadata"]["uid"] for found in cache.keep_only(JOBS, "", {"other"}, 5)] == ["gone"]
    assert [found["metadata"]["name"] for found in cache.list_children(OWNER, JOBS)] == ["later", "other"]


def owner(version: int, stage: str, uid: str = "owner") -> Object:
    metadata = {"name": "faq", "namespace": "team", "uid": uid, "resourceVersion": str(version)}
    return {"metadata": metadata, "spec": {"model": {"name": "org/base"}}, "status": {"stage": stage}}


def child(resource: Resource, version: int, phase: str = "") -> Object:
    body = job(version, uid=f"{resource.kind}-{version}", name=f"faq-{resource.plural}")
    return body | {"spec": {"big": "x" * 1000}, "status": {"phase": phase}}


@pytest.mark.parametrize("owner_comes_first", [True, False])
def test_little_is_kept_of_a_finished_jobs_children(owner_comes_first: bool) -> None:
    cache = Cache()
    children = [child(CONFIGMAPS, 1), child(PODS, 2, "Succeeded"), child(JOBS, 3), child(CLAIMS, 4)]
    resources = [CONFIGMAPS, PODS, JOBS, CLAIMS]
    if owner_comes_first:
        cache.put(FINETUNEJOBS, owner(9, "Succeeded"))
    news = [cache.put(*each) for each in zip(resources, children, strict=True)]
    if not owner_comes_first:
        cache.put(FINETUNEJOBS, owner(8, "Saving"))
        assert [len(cache.list_children(OWNER, resource)) for resource in resources] == [1, 1, 1, 1]
        cache.put(FINETUNEJOBS, owner(9, "Succeeded"))
    else:
        assert news == [False, False, True, True]
    assert [len(cache.list_children(OWNER, resource)) for resource in resources] == [0, 0, 1, 1]
    [kept] = cache.list_children(OWNER, JOBS)
    assert kept["metadata"]["uid"] == "Job-3"
    assert "spec" not in kept
    assert cache.list_children(OWNER, CLAIMS) == [children[3]]
    assert cache.get(FINETUNEJOBS, "team", "faq") == owner(9, "Succeeded") | {
        "apiVersion": FINETUNEJOBS.api_version,
        "kind": "FineTuneJob",
    }
    assert (cache.is_finished(OWNER), cache.has(OWNER), cache.list_keys(FINETUNEJOBS)) == (True, True, [OWNER])
    assert cache.list_children(OWNER, JOBS) == cache.list_objects(JOBS, "team")


def test_a_pod_at_work_is_kept_until_it_ends_for_the_next_job_of_the_name() -> None:
    cache = Cache()
    cache.put(FINETUNEJOBS, owner(1, "Failed"))
    cache.put(PODS, child(PODS, 2, "Running"))
    cache.remove(FINETUNEJOBS, owner(1, "Failed"))
    assert not cache.is_finished(OWNER)
    cache.put(FINETUNEJOBS, owner(3, "Pending", uid="next"))
    assert len(cache.list_children(OWNER, PODS)) == 1
    cache.put(FINETUNEJOBS, owner(4, "Failed", uid="next"))
    assert cache.put(PODS, child(PODS, 5, "Succeeded"))
    assert cache.list_children(OWNER, PODS) == []


def test_the_next_job_of_a_finished_ones_name_is_not_finished() -> None:
    cache = Cache()
    cache.put(FINETUNEJOBS, owner(1, "Failed"))
    cache.put(FINETUNEJOBS, owner(3, "Pending", uid="next"))  # no watch reported the deletion between them
    cache.put(PODS, child(PODS, 4, "Succeeded"))
    assert not cache.is_finished(OWNER)
    assert len(cache.list_children(OWNER, PODS)) == 1


def test_a_list_removes_finished_jobs_too() -> None:
    cache = Cache()
    cache.put(FINETUNEJOBS, owner(3, "Succeeded"))
    assert cache.keep_only(FINETUNEJOBS, "team", {"owner"}, 5) == []
    assert [gone["metadata"]["uid"] for gone in cache.keep_only(FINETUNEJOBS, "", set(), 5)] == ["owner"]
    assert not cache.has(OWNER)


@pytest.mark.parametrize(
    ("observed", "desired", "expected"),
    [
        ({"a": 1, "default": 2}, {"a": 1}, True),
        ({"a": 1}, {"a": 2}, False),
        ({}, {"a": {}, "b": None, "c": []}, True),
        ({}, {"a": False}, False),
        ({"l": [{"name": "x", "d": 1}, {"name": "y"}]}, {"l": [{"name": "y"}, {"name": "x"}]}, False),
        ({"l": [{"name": "x"}]}, {"l": [{"name": "z"}]}, False),
        ({"l": ["--a", "1"]}, {"l": ["--a", "1"]}, True),
        ({"l": ["1", "--a"]}, {"l": ["--a", "1"]}, False),
        ({"l": ["--a", "1", "--b"]}, {"l": ["--a", "1"]}, False),
    ],
)
def test_a_child_is_current_when_it_has_all_desired_fields(observed: Any, desired: Any, expected: bool) -> None:
    assert contains_fields(observed, desired) is expected


@pytest.mark.parametrize(
    ("old", "new", "patch"),
    [
        ({"a": 1}, {"a": 1}, {}),
        ({"a": 1, "b": 2}, {"a": 1}, {"b": None}),
        ({"a": {"x": 1, "y": 2}}, {"a": {"x": 1, "y": 3}}, {"a": {"y": 3}}),
        ({"a": [1]}, {"a": [1, 2]}, {"a": [1, 2]}),
        ({}, {"a": {"x": 1}}, {"a": {"x": 1}}),
    ],
)
def test_a_merge_patch_has_only_the_changes(old: Object, new: Object, patch: Object) -> None:
    assert build_merge_patch(old, new) == patch


@pytest.mark.parametrize(
    ("part", "value", "is_news"),
    [
        ("status", {"stage": "Training"}, False),
        ("spec", {"suspend": True}, True),
        ("metadata", {**owner(2, "Pending")["metadata"], "managedFields": [{}]}, False),
        ("metadata", {**owner(2, "Pending")["metadata"], "labels": {"a": "b"}}, True),
        ("metadata", {**owner(2, "Pending")["metadata"], "deletionTimestamp": "2026-03-01T11:00:00Z"}, True),
    ],
)
def test_a_change_of_anything_but_the_status_is_news(part: str, value: Object, is_news: bool) -> None:
    assert (strip_status(owner(1, "Pending")) != strip_status(owner(1, "Pending") | {part: value})) == is_news
