"""`hone list`, `describe`, `suspend`, `resume` and `delete` against a fake API server, and their pure parts."""

import json
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from fake_cluster import CORE, DIGEST, HONE, FakeCluster, Object, job, pod, service
from hone.errors import ClientError
from hone.objects import deletion, names, suspension, table, timeline, views
from hone_cli.main import main
from hypothesis import given
from hypothesis import strategies as st

Hone = Callable[..., tuple[int, str, str]]
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def make_workload(kind: str, claim: str = "faq") -> Object:
    """Return an object that makes pods with this claim, and has none at the moment."""
    spec: Object = {"template": {"spec": {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]}}}
    if kind == "CronJob":
        spec = {"jobTemplate": {"spec": spec}}
    return {"kind": kind, "metadata": {"name": "other"}, "spec": spec}


class TestNames:
    @pytest.mark.parametrize("prefix", ["ftj", "finetunejob", "FineTuneJobs", "finetunejobs.hone.dev"])
    def test_a_kind_has_the_names_that_kubectl_knows(self, prefix: str) -> None:
        assert names.parse_reference(f"{prefix}/faq") == (names.JOB, "faq")

    @pytest.mark.parametrize(
        ("text", "message"), [("job/faq", "'job' is unknown"), ("ftj/", "is empty"), ("", "is empty")]
    )
    def test_another_reference_is_refused(self, text: str, message: str) -> None:
        with pytest.raises(ClientError, match=message):
            names.parse_reference(text)

    def test_an_ambiguous_name_is_explained(self, fake: FakeCluster, hone: Hone) -> None:
        fake.add("finetunejobs", job("x"))
        fake.add("inferenceservices", service("x"))
        code, out, err = hone("describe", "x")
        assert (code, out) == (1, "")
        assert "x is ambiguous: namespace ns has FineTuneJob and InferenceService x" in err
        assert "Write finetunejob/x or inferenceservice/x." in err
        assert hone("describe", "hisvc/x")[1].startswith("InferenceService x in namespace ns\n")


class TestList:
    def test_both_kinds_are_listed(self, fake: FakeCluster, hone: Hone) -> None:
        progress = {"percent": 40, "eta": 200}
        fake.add("finetunejobs", job())
        fake.add("finetunejobs", job("next", "Training", progress=progress))
        fake.add("inferenceservices", service(url="http://chat.ns.svc/v1", replicas=2, readyReplicas=1))
        code, out, err = hone("list")
        assert (code, err) == (0, "")
        rows = [[cell.strip() for cell in line.split("   ") if cell.strip()] for line in out.splitlines()]
        assert rows[0] == list(table.COLUMNS)
        assert [row[:4] for row in rows[1:]] == [
            ["FineTuneJob", "faq", "Succeeded", "100%"],
            ["FineTuneJob", "next", "Training", "40%, 3m 20s left"],
            ["InferenceService", "chat", "Pending", "1/2"],
        ]
        assert [row[5:] for row in rows[1:]] == [
            ["a/b", "sha256:0123456789ab"],
            ["a/b", "-"],
            ["finetunejob/faq", "http://chat.ns.svc/v1"],
        ]

    def test_json_has_full_values(self, fake: FakeCluster, hone: Hone) -> None:
        fake.add("finetunejobs", job())
        items = json.loads(hone("list", "-o", "json")[1])["items"]
        assert [(item["name"], item["digest"], item["endpoint"]) for item in items] == [("faq", DIGEST, None)]

    def test_all_namespaces_are_listed_with_their_names(self, fake: FakeCluster, hone: Hone) -> None:
        fake.lists["/apis/hone.dev/v1alpha1/finetunejobs"] = [job()]
        code, out, _ = hone("list", "-A")
        assert code == 0
        assert out.splitlines()[0].startswith("NAMESPACE   KIND")
        assert out.splitlines()[1].startswith("ns          FineTuneJob")

    def test_an_empty_namespace_and_a_missing_right_are_named(self, fake: FakeCluster, hone: Hone) -> None:
        assert "No FineTuneJob and no InferenceService in namespace ns" in hone("list")[2]
        fake.refused.add("/apis/hone.dev/v1alpha1/namespaces/ns/inferenceservices")
        code, _, err = hone("list")
        assert code == 1
        assert 'cannot list resource "inferenceservices"' in err

    def test_wrong_usage_has_its_own_exit_code(self, fake: FakeCluster, hone: Hone) -> None:
        assert hone("list", "-A", "-n", "ns")[0] == 2

    @given(st.integers(0, 10**9))
    def test_an_age_is_short(self, seconds: int) -> None:
        created = datetime.fromtimestamp(NOW.timestamp() - seconds, UTC).isoformat()
        assert len(views.format_age({"metadata": {"creationTimestamp": created}}, NOW)) <= 6


class TestDescribe:
    def test_what_happened_is_told_in_order_with_reason_and_remedy(self, fake: FakeCluster, hone: Hone) -> None:
        attempts = [
            {
                "pod": "faq-train-a",
                "startTime": "2026-03-01T10:02:00Z",
                "endTime": "2026-03-01T10:03:00Z",
                "seconds": 60,
                "exitCode": 70,
                "reason": "OutOfMemory",
                "node": "gpu-1",
            }
        ]
        message = "The GPU has too little memory. Set training.perDeviceTrainBatchSize: 1."
        failed = {"type": "Failed", "status": "True", "reason": "OutOfMemory", "message": message}
        conditions = [
            failed | {"lastTransitionTime": "2026-03-01T10:04:00Z"},
            {
                "type": "Accepted",
                "status": "True",
                "reason": "Valid",
                "message": "",
                "lastTransitionTime": "2026-03-01T10:01:00Z",
            },
        ]
        fake.add("finetunejobs", job(stage="Failed", attempts=attempts, conditions=conditions))
        fake.add("pods", pod("faq-train-a", "trainer"), CORE)
        fake.lists[f"{CORE}/events"] = [
            {
                "type": "Warning",
                "reason": "BackOff",
                "message": "again",
                "count": 3,
                "involvedObject": {"kind": "Pod", "name": "faq-train-a"},
                "metadata": {},
                "lastTimestamp": "2026-03-01T10:02:30Z",
            }
        ]
        code, out, _ = hone("describe", "ftj/faq")
        assert code == 0
        times = [line.split()[0] for line in out.splitlines() if line.startswith("  2026-")]
        assert times == sorted(times)
        for part in (
            "created",
            "Accepted is True: Valid",
            "attempt 1: pod faq-train-a started on node gpu-1",
            "! Pod/faq-train-a: BackOff: again (3 times)",
            "attempt 1 ended after 1m 0s: OutOfMemory, exit code 70",
            "pod/faq-train-a",
            f"✗ OutOfMemory: {message}",
        ):
            assert part in out, part

    def test_what_may_not_be_read_is_named(self, fake: FakeCluster, hone: Hone) -> None:
        fake.add("finetunejobs", job())
        fake.refused |= {f"{CORE}/events", f"{CORE}/pods"}
        code, out, _ = hone("describe", "faq")
        assert code == 0
        assert 'not shown: Events: cannot list resource "events"' in out
        assert 'not shown: Pods: cannot list resource "pods"' in out

    def test_a_service_that_does_not_answer_is_explained(self) -> None:
        waits = {
            "type": "ArtifactsResolved",
            "status": "False",
            "reason": "NotYet",
            "message": "FineTuneJob faq trains.",
        }
        lines = timeline.describe_object(service(conditions=[waits]), timeline.Surroundings(), NOW)
        assert lines[-2:] == ["It does not answer:", "  ArtifactsResolved is False: NotYet: FineTuneJob faq trains."]

    def test_pushes_are_shown_with_what_came_of_them(self) -> None:
        pushes = [
            {"address": "oci://r.example.com/faq:v1", "digest": DIGEST, "revision": "sha256:12"},
            {"address": "s3://models/faq/", "reason": "StoreUnauthorized", "message": "The keys\nare wrong."},
            {"address": "hf://me/faq"},
        ]
        failed = {"type": "Pushed", "status": "False", "reason": "StoreUnauthorized", "message": "The keys are wrong."}
        lines = timeline.describe_object(job(pushes=pushes, conditions=[failed]), timeline.Surroundings(), NOW)
        assert [line.split(maxsplit=1)[1] for line in lines if line.startswith("  push:")] == [
            "oci://r.example.com/faq:v1: complete, sha256:12",
            "s3://models/faq/: StoreUnauthorized: The keys are wrong.",
            "hf://me/faq: not pushed yet",
        ]
        assert lines[-1] == "It is not pushed: StoreUnauthorized: The keys are wrong."

    @given(st.text())
    def test_a_time_of_any_form_is_read(self, text: str) -> None:
        views.parse_time(text)


class TestSuspend:
    def test_a_running_job_is_suspended_and_resumed(self, fake: FakeCluster, hone: Hone) -> None:
        fake.add("finetunejobs", job(stage="Training", progress={"step": 7}))
        code, out, _ = hone("suspend", "faq")
        assert (code, fake.calls[-1][2]) == (0, {"spec": {"suspend": True}})
        assert "saves a checkpoint" in out
        fake.lists[next(iter(fake.lists))][0]["spec"]["suspend"] = True
        assert "nothing was changed" in hone("suspend", "ftj/faq")[1]
        assert "resumes from step 7" in hone("resume", "faq")[1]
        assert fake.calls[-1][2] == {"spec": {"suspend": False}}

    def test_an_ended_job_and_a_service_are_refused(self) -> None:
        with pytest.raises(ClientError, match="has ended: its stage is Failed"):
            suspension.plan_change(job(stage="Failed"), suspend=True)
        with pytest.raises(ClientError, match="can't be suspended") as refused:
            suspension.parse_job("hisvc/chat", "suspend")
        assert "--replicas 0" in refused.value.remedy


class TestDelete:
    def test_the_claim_stays_unless_it_is_named(self, fake: FakeCluster, hone: Hone) -> None:
        fake.add("finetunejobs", job())
        fake.add("inferenceservices", service())
        code, _, err = hone("delete", "faq", "--yes")
        assert code == 0
        assert f"Stays:       claim faq, with artifact {DIGEST} in folder ns/faq" in err
        assert "InferenceService chat uses the job" in err
        deleted = [(path, body["preconditions"]) for method, path, body in fake.calls if method == "DELETE"]
        assert deleted == [("/apis/hone.dev/v1alpha1/namespaces/ns/finetunejobs/faq", {"uid": "uid-faq"})]

    def test_an_unused_claim_is_deleted_with_its_job(self, fake: FakeCluster, hone: Hone) -> None:
        fake.add("finetunejobs", job())
        labels = {"hone.dev/finetunejob": "faq"}
        claim = {"kind": "PersistentVolumeClaim", "metadata": {"name": "faq", "uid": "c", "labels": labels}}
        fake.add("persistentvolumeclaims", claim, CORE)
        code, out, err = hone("delete", "faq", "--with-claim", "-y")
        assert code == 0, err
        assert "PersistentVolumeClaim faq was deleted" in out
        fake.add("finetunejobs", job())
        fake.add("persistentvolumeclaims", claim | {"metadata": claim["metadata"] | {"labels": {}}}, CORE)
        code, _, err = hone("delete", "faq", "--with-claim", "-y")
        assert code == 1
        assert "Hone did not make it for this job" in err

    def test_nothing_is_deleted_without_an_answer(self, fake: FakeCluster, hone: Hone) -> None:
        fake.add("finetunejobs", job())
        code, _, err = hone("delete", "faq")
        assert code == 1
        assert "Add --yes." in err
        assert not [call for call in fake.calls if call[0] == "DELETE"]

    @pytest.mark.parametrize(
        ("around", "user"),
        [
            (deletion.Neighbours(services=[service()]), "InferenceService chat"),
            (deletion.Neighbours(services=[service(model={"claim": {"name": "faq"}})]), "InferenceService chat"),
            (
                deletion.Neighbours(services=[service() | {"spec": {"cache": {"claim": {"name": "faq"}}}}]),
                "InferenceService chat",
            ),
            *(
                (deletion.Neighbours(workloads=[make_workload(kind)]), f"{kind} other")
                for kind in ("Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob")
            ),
            (deletion.Neighbours(jobs=[job(), job("b", spec={"model": {"claim": {"name": "faq"}}})]), "FineTuneJob b"),
            (deletion.Neighbours(jobs=[job("b", spec={"output": {"claim": {"name": "faq"}}})]), "FineTuneJob b"),
            (
                deletion.Neighbours(jobs=[job("b", spec={"datasets": [{"name": "c/d"}, {"claim": {"name": "faq"}}]})]),
                "FineTuneJob b",
            ),
            (deletion.Neighbours(jobs=[job("b", spec={"cache": {"claim": {"name": "faq"}}})]), "FineTuneJob b"),
            (
                deletion.Neighbours(services=[service("c", spec={"cache": {"claim": {"name": "faq"}}})]),
                "InferenceService c",
            ),
            (
                deletion.Neighbours(
                    pods=[
                        {
                            "metadata": {"name": "nb"},
                            "spec": {"volumes": [{"persistentVolumeClaim": {"claimName": "faq"}}]},
                        }
                    ]
                ),
                "Pod nb",
            ),
        ],
    )
    def test_a_claim_that_something_uses_stays(self, around: deletion.Neighbours, user: str) -> None:
        with pytest.raises(ClientError, match=f"claim faq is used by {user}"):
            deletion.plan_deletion(job(), around, with_claim=True)

    def test_what_is_over_or_made_by_hone_keeps_no_claim(self) -> None:
        over, own = make_workload("Job"), make_workload("Deployment")
        over["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}
        own["metadata"]["ownerReferences"] = [{"apiVersion": "hone.dev/v1alpha1", "kind": "InferenceService"}]
        leaving = make_workload("Deployment")["spec"]["template"]
        leaving["metadata"] = {"name": "chat-1", "deletionTimestamp": "2026-03-01T10:00:00Z"}
        others = [over, own, make_workload("CronJob", claim="another")]
        around = deletion.Neighbours(workloads=others, pods=[leaving])
        assert deletion.plan_deletion(job(), around, with_claim=True).claim == "faq"

    def test_what_could_not_be_read_is_shown_before_the_question(self, fake: FakeCluster, hone: Hone) -> None:
        fake.add("finetunejobs", job())
        fake.refused.add("/apis/batch/v1/namespaces/ns/cronjobs")
        code, _, err = hone("delete", "faq", "--with-claim", "-y")
        assert code == 0, err
        assert "Is unknown:  whether other objects mount the claim: CronJobs can't be read" in err

    def test_a_claim_that_the_user_named_stays(self) -> None:
        with pytest.raises(ClientError, match=r"spec.output.claim names claim shared"):
            deletion.plan_deletion(
                job(spec={"output": {"claim": {"name": "shared"}}}), deletion.Neighbours(), with_claim=True
            )


def test_a_cluster_without_hone_is_named(fake: FakeCluster, hone: Hone) -> None:
    fake.has_hone = False
    code, _, err = hone("list")
    assert code == 1
    assert "this cluster does not know objects of hone.dev/v1alpha1" in err


def test_a_list_shows_what_may_be_read(fake: FakeCluster, hone: Hone) -> None:
    fake.add("finetunejobs", job())
    fake.refused.add(f"{HONE}/inferenceservices")
    code, out, err = hone("list")
    assert code == 1
    assert "faq" in out
    assert "InferenceServices" in err
    assert "cannot list" in err
    fake.refused.add(f"{HONE}/finetunejobs")
    code, _, err = hone("list")
    assert code == 1
    assert "FineTuneJobs" in err


class TestCompletion:
    def complete(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str) -> list[str]:
        monkeypatch.setenv("_HONE_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(line.count(" ")))
        with pytest.raises(SystemExit):
            main([])
        out, err = capsys.readouterr()
        assert not err
        return out.split()

    @pytest.mark.parametrize(
        ("line", "names"),
        [
            ("hone describe ", ["faq", "next", "chat"]),
            ("hone describe n", ["next"]),
            ("hone describe ftj/f", ["ftj/faq"]),
            ("hone delete hisvc/", ["hisvc/chat"]),
            ("hone pull ", ["faq", "next"]),
            ("hone watch f", ["faq"]),
            ("hone chat ", ["chat"]),
            ("hone describe --namespace other ", []),
            ("hone susp", ["suspend"]),
        ],
    )
    def test_names_are_completed_from_the_cluster(
        self,
        fake: FakeCluster,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        line: str,
        names: list[str],
    ) -> None:
        fake.add("finetunejobs", job())
        fake.add("finetunejobs", job("next"))
        fake.add("inferenceservices", service())
        assert self.complete(monkeypatch, capsys, line) == names

    def test_a_cluster_that_refuses_completes_nothing(
        self, fake: FakeCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        fake.has_hone = False
        assert self.complete(monkeypatch, capsys, "hone describe ") == []
