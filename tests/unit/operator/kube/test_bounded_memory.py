"""The memory that large clusters and large objects take in the operator."""

import json
import marshal
import random
import subprocess
import sys
from typing import Any

import pytest
from hone_api.finetunejobs.spec import FineTuneJob
from hone_api.reasons import HoneError
from hone_operator.kube.cache import Cache
from hone_operator.kube.list_pages import ListPage
from hone_operator.objects import bounded_json, sizes
from hone_operator.objects.parsing import parse_object
from hone_operator.objects.resources import FINETUNEJOBS
from hypothesis import example, given
from hypothesis import strategies as st
from observed import job_object

ODD: list[Any] = ["", '"', "\\", "]}", "[{", "ü", "\u2028", "\ud800", None, True, 1e300, -1, [], {}, [[]], {"a": [1]}]


def page(items: object, **more: Any) -> Any:
    return {"apiVersion": "v1", "items": items, "kind": "List", "metadata": {"resourceVersion": "7"}, **more}


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("indent", [None, 1])
def test_a_page_is_split_into_the_objects_that_the_parser_reads(seed: int, indent: int | None) -> None:
    dice = random.Random(seed)
    items = [{"metadata": {"name": dice.choice(ODD)}, "more": dice.sample(ODD, 5)} for _ in range(dice.randrange(4))]
    given = list(page(items).items())
    dice.shuffle(given)
    text = json.dumps(dict(given), indent=indent, ensure_ascii=dice.random() < 0.5)
    found = ListPage(text.encode("utf-8", "surrogatepass"))
    assert list(found.items()) == items
    assert found.metadata == {"resourceVersion": "7"}


@pytest.mark.parametrize("nothing", [{"items": None}, {"items": []}])
def test_a_page_may_be_empty(nothing: Any) -> None:
    found = ListPage(json.dumps(page(None) | nothing).encode())
    assert list(found.items()) == []
    assert found.metadata == {"resourceVersion": "7"}


def test_an_endlessly_nested_object_leaves_the_others_of_its_page() -> None:
    deep = "[" * 5000 + "]" * 5000
    data = json.dumps(page([{"n": 1}, "DEEP", {"n": 3}])).replace('"DEEP"', deep).encode()
    found = ListPage(data)
    assert list(found.items()) == bounded_json.load_bounded_json(data)["items"]
    assert found.metadata == {"resourceVersion": "7"}


@pytest.mark.parametrize("data", [b"", b"[]", b"nothing", b'{"items": [{}', b'{"items": [{} {}]}', b'{"a" 1}'])
def test_data_that_is_not_a_list_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"xpect|Extra|delimiter"):
        list(ListPage(data).items())


@pytest.mark.parametrize("part", ["spec", "annotations", "status"])
def test_an_object_that_is_too_large_is_refused_with_its_size(part: str) -> None:
    job = job_object()
    job["metadata"]["resourceVersion"] = "1"
    large: Any = {"a": [{}] * 400_000} if part != "annotations" else {"a": "x" * 1_200_000}
    if part == "annotations":
        job["metadata"]["annotations"] = large
    else:
        job[part] = {**job.get(part, {}), **large}
    size = len(json.dumps(job, separators=(",", ":")))
    cache = Cache()
    cache.put(FINETUNEJOBS, job)
    kept = cache.get(FINETUNEJOBS, "team", "faq")
    assert kept
    assert len(json.dumps(kept)) < 1000
    assert kept["metadata"]["uid"] == job["metadata"]["uid"]
    refused = parse_object(FineTuneJob, kept)
    assert isinstance(refused, HoneError)
    assert f"the object has {size} bytes" in refused.format_message()


def test_an_object_of_usual_size_is_kept_as_it_is() -> None:
    job = job_object(dataset={"name": "org/data", "chatTemplate": "x" * 100_000})
    job["metadata"]["resourceVersion"] = "1"
    cache = Cache()
    cache.put(FINETUNEJOBS, job)
    assert cache.get(FINETUNEJOBS, "team", "faq") == job


SCRIPT = """
import json, re
from hone_operator import controller
from hone_operator.kube.cache import Cache
from hone_operator.kube.list_pages import ListPage
from hone_operator.diagnosis.nodes import read_node
from hone_operator.objects.resources import INFERENCESERVICES

def peak():
    with open("/proc/self/status") as status:  # of this program alone; ru_maxrss may be that of the test's process
        return int(re.search(r"VmHWM:\\s*([0-9]+)", status.read())[1]) >> 10

before, cache, nodes = peak(), Cache(), []
for number in range(20):
    meta = {"name": str(number), "namespace": "team", "uid": str(number), "resourceVersion": "1"}
    body = {"metadata": meta, "spec": {"pod": {"affinity": {"a": "MANY"}}}}
    many = "[" + "{}," * 430_000 + "{}]"
    data = json.dumps({"items": [body], "metadata": {}}).replace('"MANY"', many).encode()
    for item in ListPage(data).items():
        cache.put(INFERENCESERVICES, item)
for number in range(0, 10_000, 100):
    items = []
    for index in range(number, number + 100):
        labels = {f"feature.node.kubernetes.io/cpu-cpuid.FEATURE{i}": "true" for i in range(60)}
        labels["kubernetes.io/hostname"] = f"node-{index}"
        images = [{"names": [f"registry/team/image-{i}@sha256:{index:064}"] * 2, "sizeBytes": i} for i in range(50)]
        resources = {f"example.com/gpu-{i}": "8" for i in range(12)}
        status = {"allocatable": resources, "capacity": resources, "images": images}
        items.append({"metadata": {"name": f"node-{index}", "labels": labels, "annotations": {"a": "x" * 5000}},
                      "spec": {}, "status": status})
    data = json.dumps({"items": items, "metadata": {}}).encode()
    del items
    nodes += [read_node(item) for item in ListPage(data).items()]
print(before, peak(), len(nodes), len(data) // 100)
"""


def test_ten_thousand_nodes_and_twenty_large_objects_stay_far_below_the_charts_limit() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    before, peak, nodes, bytes_each = map(int, done.stdout.split())
    assert nodes == 10_000
    assert bytes_each > 15_000
    assert peak - before < 200, f"MiB, of {before} before"
    assert peak < 384


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner),
)


@given(VALUES)
@example([None] * 1000)
@example([{}] * 1000)
@example({"": {"": {}}})
@example({"k" * 1000: [[]] * 1000})
def test_no_value_counts_for_more_memory_than_its_bytes_allow(value: Any) -> None:
    assert not sizes.is_larger(value, len(marshal.dumps(value, 2)) * sizes.MAX_MEMORY_PER_ENCODED_BYTE)


@pytest.mark.parametrize("text", ["x" * 1000, "é" * 1000, "x" * 1000 + "\u4e16", "x" * 1000 + "\U0001f600"])
def test_a_text_counts_with_the_memory_that_python_needs_for_it(text: str) -> None:
    assert sizes.measure_memory(text) >= sys.getsizeof(text)
    assert sizes.measure_memory({text: 1}) >= sys.getsizeof(text)
