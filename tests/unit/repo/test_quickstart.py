"""The quickstart's files: they fit the contract, the dataset is sound, and the five questions are no giveaways."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hone_api.finetunejobs.spec import FineTuneJob
from hone_api.inferenceservices.spec import InferenceService
from hone_api.reasons import CATALOGUE
from hone_operator.reconcile.ownership import is_foreign_claim

QUICKSTART = Path(__file__).parents[3] / "examples" / "quickstart"
sys.path.insert(0, str(QUICKSTART))

from demo_cluster import build_job_claim  # noqa: E402
from questions import QUESTIONS, count_right  # noqa: E402

LEAST_ROWS = 80


def _load(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((QUICKSTART / name).read_text()))


@pytest.fixture(scope="module")
def config_map() -> dict[str, Any]:
    return next(document for document in _load("finetunejob.yaml") if document["kind"] == "ConfigMap")


@pytest.fixture(scope="module")
def job() -> FineTuneJob:
    (document,) = [document for document in _load("finetunejob.yaml") if document["kind"] == "FineTuneJob"]
    return FineTuneJob.model_validate(document)


@pytest.fixture(scope="module")
def pairs(config_map: dict[str, Any], job: FineTuneJob) -> list[tuple[str, str]]:
    assert job.spec.dataset.config_map is not None
    found = []
    for line in config_map["data"][job.spec.dataset.config_map.key].splitlines():
        row = json.loads(line)
        assert list(row) == ["prompt", "completion"]
        user, assistant = row["prompt"] + row["completion"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        found.append((user["content"], assistant["content"]))
    return found


def test_the_job_reads_the_config_map_beside_it(config_map: dict[str, Any], job: FineTuneJob) -> None:
    assert job.spec.dataset.config_map is not None
    assert job.spec.dataset.config_map.name == config_map["metadata"]["name"]


def test_the_service_serves_the_job(job: FineTuneJob) -> None:
    (document,) = _load("inferenceservice.yaml")
    served = InferenceService.model_validate(document).spec.model.fine_tune_job
    assert served is not None
    assert served.name == job.metadata["name"]


def test_there_are_enough_questions_and_no_two_are_the_same(pairs: list[tuple[str, str]]) -> None:
    questions = [question.lower() for question, _ in pairs]
    assert len(questions) >= LEAST_ROWS
    assert len(set(questions)) == len(questions)


def test_every_question_and_answer_has_words(pairs: list[tuple[str, str]]) -> None:
    assert all(question.strip() and answer.strip() for question, answer in pairs)


def test_what_the_dataset_says_of_exit_codes_is_what_the_catalogue_says(pairs: list[tuple[str, str]]) -> None:
    claims = {re.match(r"Exit code (\d+) means ([A-Z]\w+[a-z][A-Z]\w+|Interrupted)", answer) for _, answer in pairs}
    named = {(int(claim[1]), claim[2]) for claim in claims if claim}
    assert len(named) >= 8
    assert {(CATALOGUE[name].exit_code, name) for _, name in named} == named


def test_the_five_questions_are_not_in_the_dataset_in_the_same_words(pairs: list[tuple[str, str]]) -> None:
    trained = {question.lower() for question, _ in pairs}
    assert not trained & {question.text.lower() for question in QUESTIONS}


def test_each_question_can_be_answered_from_the_dataset(pairs: list[tuple[str, str]]) -> None:
    for question in QUESTIONS:
        assert any(question.is_answered_by(answer) for _, answer in pairs), question.text


def test_no_question_gives_its_own_answer_away() -> None:
    assert count_right([question.text for question in QUESTIONS]) == 0


def test_an_answer_with_one_of_two_facts_is_wrong() -> None:
    assert not QUESTIONS[0].is_answered_by("Your pod saved a checkpoint.")
    assert QUESTIONS[0].is_answered_by("It was Interrupted, and saved a checkpoint.")


def test_the_claim_of_the_clusters_demo_is_the_one_that_the_operator_would_make(job: FineTuneJob) -> None:
    claim = build_job_claim()
    owner = {"kind": "FineTuneJob", "metadata": {"name": job.name, "namespace": claim["metadata"]["namespace"]}}
    assert not is_foreign_claim(claim, owner)
    assert job.spec.output.storage
    assert claim["spec"]["resources"]["requests"]["storage"] == job.spec.output.storage.size
