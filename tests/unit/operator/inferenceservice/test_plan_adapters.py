"""Adapters of running engines: which changes replace pods, and which ones only the sidecars carry out."""

import copy
import json
from datetime import timedelta
from typing import Any

import pytest
from adapter_states import FAQ, file_of, make_report, on_one_claim, planned, ready, running
from hone_api.inferenceservices.adapter_sync import make_revision
from hone_operator.inferenceservice.plan import ObservedInferenceService, plan_inferenceservice
from hone_operator.objects.resources import CONFIGMAPS, DEPLOYMENTS, PODS, Object
from hone_operator.reconcile.plan import Apply, Patch
from observed import (
    DIGEST,
    NOW,
    conditions,
    finished_job,
    foreign,
    message,
    observed_service,
    stored,
)

OTHER = "sha256:" + "b" * 64
SECOND = {"name": "second", "fineTuneJob": {"name": "other"}}


def template(*jobs: Object, **spec: Any) -> Object:
    return dict(planned(*jobs, **spec)["Deployment"]["spec"]["template"])


def test_the_config_map_lists_the_desired_adapters() -> None:
    [config_map] = [planned(on_one_claim("faq"), on_one_claim("other", OTHER), adapters=[SECOND])["ConfigMap"]]
    assert config_map["metadata"]["name"] == "chat-adapters"
    assert config_map["metadata"]["ownerReferences"][0]["controller"] is True
    assert json.loads(file_of(config_map)) == {
        "base": "org/base",
        "baseRevision": "c" * 40,
        "adapters": [
            {"name": "faq", "folder": "/claims/artifacts/team/faq", "digest": DIGEST},
            {"name": "second", "folder": "/claims/artifacts/team/other", "digest": OTHER},
        ],
    }
    assert "ConfigMap" not in planned(finished_job(kind="merged"))


@pytest.mark.parametrize(
    ("jobs", "adapters", "rolls"),
    [
        ([FAQ, on_one_claim("other")], [SECOND], False),
        ([FAQ, on_one_claim("other", lora={"r": 64})], [SECOND], False),
        ([on_one_claim("faq", OTHER)], [], False),
        ([FAQ, on_one_claim("other", lora={"r": 65})], [SECOND], True),
        ([FAQ], [{"name": f"a{i}", "claim": {"name": "artifacts", "path": f"a{i}"}} for i in range(3)], False),
        ([FAQ], [{"name": f"a{i}", "claim": {"name": "artifacts", "path": f"a{i}"}} for i in range(4)], True),
        ([FAQ], [{"name": "x", "claim": {"name": "new-claim"}}], True),
        ([on_one_claim("faq", commit="d" * 40)], [], True),
        ([on_one_claim("faq", OTHER, dataset={"name": "org/data", "chatTemplate": "{{ messages }}"})], [], True),
    ],
)
def test_which_changes_of_adapters_roll_the_pods(jobs: list[Object], adapters: list[Object], rolls: bool) -> None:
    before = planned(FAQ)
    after = planned(*jobs, adapters=adapters)
    assert (after["Deployment"]["spec"]["template"] != before["Deployment"]["spec"]["template"]) is rolls
    assert after["ConfigMap"] != before["ConfigMap"]


def with_another_digest(observed: ObservedInferenceService) -> ObservedInferenceService:
    observed.jobs = {"faq": on_one_claim("faq", OTHER)}
    return observed


def loaded(observed: ObservedInferenceService) -> list[tuple[str, str]]:
    return [(model["name"], model["loaded"]) for model in plan_inferenceservice(observed, NOW).status["models"]]


def test_sidecars_report_loaded_models_also_where_clients_need_a_key() -> None:
    observed = running(ready("p1"), ready("p2"), apiKeySecret={"name": "k"})
    found = plan_inferenceservice(observed, NOW)
    assert found.actions == []
    assert found.poll_urls == {f"uid-{name}": "http://10.0.0.7:8081/adapters" for name in ("p1", "p2")}
    assert loaded(observed) == [("org/base", "2/2"), ("faq", "2/2")]
    assert conditions(found.status)["Progressing"] == ("False", "Complete")
    observed.answers["uid-p2"]["adapters"]["faq"]["loaded"] = False
    assert loaded(observed) == [("org/base", "2/2"), ("faq", "1/2")]
    observed.answers.pop("uid-p1")
    assert loaded(observed) == [("org/base", "1/2"), ("faq", "0/2")]


def test_a_retrained_job_changes_the_config_map_and_then_nudges_the_pods() -> None:
    observed = with_another_digest(running(ready("p1"), ready("p2")))
    [applied] = plan_inferenceservice(observed, NOW).actions
    assert isinstance(applied, Apply)
    assert applied.resource is CONFIGMAPS
    observed.adapters_config_map = stored(applied.body)
    revision = make_revision(file_of(applied.body))
    observed.answers["uid-p2"] = make_report(revision, loaded=False, faq=OTHER)
    found = plan_inferenceservice(observed, NOW)
    [nudge] = found.actions
    assert isinstance(nudge, Patch)
    assert (nudge.resource, nudge.name) == (PODS, "p1")
    [mark] = nudge.patch["metadata"]["annotations"].values()
    assert mark.split()[0] == revision
    assert conditions(found.status)["Progressing"] == ("True", "LoadingAdapters")
    assert found.requeue_after_seconds == 5

    observed.pods[0]["metadata"]["annotations"] = {"hone.dev/adapters": mark}
    assert plan_inferenceservice(observed, NOW + timedelta(seconds=4)).actions == []
    assert len(plan_inferenceservice(observed, NOW + timedelta(seconds=5)).actions) == 1
    observed.answers = {uid: make_report(revision, faq=OTHER) for uid in ("uid-p1", "uid-p2")}
    found = plan_inferenceservice(observed, NOW)
    assert found.actions == []
    assert conditions(found.status)["Progressing"] == ("False", "Complete")
    assert loaded(observed)[1] == ("faq", "2/2")


def test_a_refusal_of_a_sidecar_is_in_the_status() -> None:
    observed = running(ready())
    error = {"reason": "AdapterMismatch", "message": "Adapter faq has rank 9, and it is 8", "remedy": "Do this."}
    revision = observed.answers["uid-p1"]["revision"]
    observed.answers["uid-p1"] = make_report(revision, loaded=False, error=error, faq=DIGEST)
    found = plan_inferenceservice(observed, NOW)
    assert conditions(found.status)["Progressing"] == ("False", "AdapterMismatch")
    assert message(found.status, "Progressing") == "Adapter faq has rank 9, and it is 8. Do this."
    assert conditions(found.status)["Available"] == ("True", "EnginesReady")
    starting = observed.pods[0]
    starting["status"]["conditions"][-1]["status"] = "False"
    found = plan_inferenceservice(observed, NOW)
    assert "uid-p1" in found.poll_urls
    assert conditions(found.status)["Progressing"] == ("False", "AdapterMismatch")
    observed.answers["uid-p1"]["revision"] = "an older one"
    assert conditions(plan_inferenceservice(observed, NOW).status)["Progressing"][1] == "RollingOut"


def test_an_adapter_on_a_claim_has_the_digest_that_the_sidecar_reports() -> None:
    observed = running(ready(), adapters=[{"name": "x", "claim": {"name": "artifacts", "path": "x"}}])
    observed.answers["uid-p1"] = make_report(observed.answers["uid-p1"]["revision"], faq=DIGEST, x=OTHER)
    assert plan_inferenceservice(observed, NOW).status["models"][2] == {
        "name": "x",
        "kind": "adapter",
        "digest": OTHER,
        "loaded": "1/1",
    }


def test_a_deleted_or_edited_config_map_is_restored_and_anothers_is_left_alone() -> None:
    observed = running(ready())
    kept = observed.adapters_config_map
    assert kept
    observed.adapters_config_map = None
    assert [action.resource for action in plan_inferenceservice(observed, NOW).actions] == [CONFIGMAPS]
    observed.adapters_config_map = copy.deepcopy(kept)
    observed.adapters_config_map["data"]["adapters.json"] = "{}"
    assert [action.resource for action in plan_inferenceservice(observed, NOW).actions] == [CONFIGMAPS]
    observed.adapters_config_map = foreign(kept)
    found = plan_inferenceservice(observed, NOW)
    assert found.actions == []
    assert conditions(found.status)["Accepted"] == ("False", "NameConflict")


def test_a_claim_that_is_no_longer_needed_stays_mounted_until_it_is_being_deleted() -> None:
    adapters = [{"name": "x", "claim": {"name": "old"}}]
    observed = running(ready(), adapters=adapters)
    observed.owner["spec"].pop("adapters")
    observed = observed_service(
        observed.owner,
        FAQ,
        deployment=observed.deployment,
        adapters_config_map=observed.adapters_config_map,
        service=observed.service,
    )
    assert [action.resource for action in plan_inferenceservice(observed, NOW).actions] == [CONFIGMAPS]
    observed.leaving_claims = ["old"]
    actions = plan_inferenceservice(observed, NOW).actions
    assert [action.resource for action in actions] == [CONFIGMAPS, DEPLOYMENTS]
    assert isinstance(actions[1], Apply)
    assert "/claims/old" not in json.dumps(actions[1].body["spec"]["template"])
