"""Follow every remedy that Hone can print literally: then the failure is gone."""

import re
from typing import Any

import pytest
import remedy_fields
import remedy_platforms
import remedy_services
from hone_api.reasons import CATALOGUE, HoneError
from hone_api.schema.validation import validate_object
from observed import job_object, service_object
from remedy_catalogue import OF_CATALOGUE
from remedy_others import WORLDS
from remedy_sentences import operator_remedies, pattern
from remedy_states import Field, World, put

BASES: dict[str, dict[str, Any]] = {
    "FineTuneJob": job_object()["spec"] | {"resources": {"gpus": 0}},
    "InferenceService": service_object()["spec"],
}
BY_FIELDS = [*remedy_fields.FIELDS, *remedy_services.FIELDS, *remedy_platforms.FIELDS, *OF_CATALOGUE]
ALL_WORLDS = [*WORLDS, *remedy_platforms.WORLDS]


def manifest(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    spec = dict(spec)
    name = spec.pop("_name", "faq")
    return job_object(name, **spec) if kind == "FineTuneJob" else service_object(**spec)


def provoked(case: Field | World) -> HoneError:
    found = case.provoke()
    assert found is not None, f"{case.name}: nothing is reported"
    return found


@pytest.mark.parametrize("case", BY_FIELDS, ids=lambda case: case.name)
def test_the_fields_that_a_remedy_names_end_the_failure(case: Field) -> None:
    error, spec = provoked(case), BASES[case.kind] | case.of
    assert validate_object(manifest(case.kind, spec)) == []
    for field, value in case.sets.items():
        written, _, path = field.partition("|")
        assert written in error.remedy or written.replace("[0]", "[]") in error.remedy
        spec = put(spec, path or written, value)
    assert validate_object(manifest(case.kind, spec)) == []
    again = case.state(spec)
    assert again is None, again.format_message()


@pytest.mark.parametrize("case", ALL_WORLDS, ids=lambda case: case.name)
def test_a_remedy_outside_the_object_names_what_to_change_and_that_ends_the_failure(case: World) -> None:
    error = provoked(case)
    for name in case.named:
        assert name in error.format_message()
    assert (case.after is None) == bool(case.why), "give what is so after the remedy, or why nothing here can show it"
    if case.after is not None:
        again = case.state(case.after)
        assert again is None, again.format_message()


REMEDIES = [provoked(case).remedy for case in (*BY_FIELDS, *ALL_WORLDS)]


@pytest.mark.parametrize("text", operator_remedies(), ids=lambda text: text.replace("\0", "_")[:60])
def test_every_remedy_of_the_operator_is_followed(text: str) -> None:
    assert any(pattern(text).search(remedy) for remedy in REMEDIES), "no case of remedy_*.py produces this remedy"


@pytest.mark.parametrize("reason", CATALOGUE.values(), ids=lambda reason: reason.name)
def test_every_remedy_of_the_catalogue_is_followed(reason: Any) -> None:
    text = re.escape(reason.remedy).replace(r"pvc\ NAME", r"pvc\ .+")
    assert any(re.search(text, remedy) for remedy in REMEDIES), "no case of remedy_*.py produces this remedy"
