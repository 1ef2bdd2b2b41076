"""`hone logs` against a fake API server, and its pure parts."""

from collections.abc import Callable

import pytest
from fake_cluster import CORE, FakeCluster, Object, job, pod, service
from hone.errors import ClientError
from hone.kube import logs
from hone.objects import log_target
from hone.objects.log_target import Continuation, Stage
from hypothesis import given
from hypothesis import strategies as st

Hone = Callable[..., tuple[int, str, str]]


class TestLogs:
    def test_the_newest_pod_of_the_rank_is_chosen(self) -> None:
        index = {"app.kubernetes.io/component": "trainer", "batch.kubernetes.io/job-completion-index": "1"}
        pods = [
            pod("old", "trainer"),
            pod("new", "trainer", "2026-03-01T11:00:00Z"),
            pod("second", "trainer", metadata={"name": "second", "labels": index}),
            pod("prepare", "prepare", "2026-03-01T12:00:00Z"),
        ]
        body = job(spec={"resources": {"gpus": 2, "nodes": 2}})
        choose = log_target.choose_target
        assert choose(body, pods, rank=0, is_previous=False).pod == "new"
        assert choose(body, pods, rank=3, is_previous=False).pod == "second"
        assert choose(body, pods, rank=0, is_previous=True).pod == "old"
        assert choose(body, pods[3:], rank=0, is_previous=False).container == "prepare"
        with pytest.raises(ClientError, match="ranks 0 to 3"):
            choose(body, pods, rank=4, is_previous=False)
        with pytest.raises(ClientError, match="no pod before second"):
            choose(body, pods, rank=2, is_previous=True)

    def test_a_stage_has_its_own_log(self, fake: FakeCluster, hone: Hone) -> None:
        fake.add("finetunejobs", job())
        for name, component in (("p", "prepare"), ("t", "trainer"), ("s", "push")):
            fake.add("pods", pod(name, component), CORE)
            fake.logs[name] = [(f"log of {name}\n".encode(), None)]
        for arguments, name, others in (
            ((), "t", "--stage prepare and --stage push"),
            (("--stage", "prepare"), "p", "--stage train and --stage push"),
            (("--stage", "push"), "s", "--stage prepare and --stage train"),
        ):
            code, out, err = hone("logs", "faq", *arguments)
            assert (code, out) == (0, f"log of {name}\n")
            assert f"there are logs of {others}" in err

    @pytest.mark.parametrize(
        ("body", "stage", "rank", "message"),
        [
            (job(), "push", 0, "has no pod that pushes: spec.output.push is empty"),
            (job(stage="Training", spec={"output": {"push": [{}]}}), "push", 0, "its stage is Training, and it pushes"),
            (job(stage="Training"), "prepare", 0, "has no pod of --stage prepare: its stage is Training"),
            (job(), "push", 3, "--rank 3: only trainers have ranks, and --stage is push"),
            (service(), "push", 0, "an InferenceService has no stages"),
        ],
    )
    def test_a_missing_log_of_a_stage_is_explained(self, body: Object, stage: str, rank: int, message: str) -> None:
        with pytest.raises(ClientError, match=message):
            log_target.choose_target(body, [], rank=rank, is_previous=False, stage=Stage(stage))

    def test_an_init_container_that_failed_is_chosen(self) -> None:
        status = {
            "phase": "Pending",
            "containerStatuses": [{"name": "engine", "state": {"waiting": {"reason": "PodInitializing"}}}],
            "initContainerStatuses": [{"name": "check", "state": {"terminated": {"exitCode": 1}}}],
        }
        found = log_target.choose_target(service(), [pod("e", "engine", status=status)], rank=0, is_previous=False)
        assert (found.pod, found.container) == ("e", "check")

    @pytest.mark.parametrize(
        ("body", "pods", "message"),
        [
            (job(stage="Suspended"), [], "has no pod: its stage is Suspended"),
            (job(spec={"ttlSecondsAfterFinished": 5}), [], "spec.ttlSecondsAfterFinished removed its pods"),
            (service(), [], "has no engine pod: its phase is Pending"),
            (
                job(stage="Pending"),
                [
                    pod(
                        "p",
                        "trainer",
                        status={"conditions": [{"type": "PodScheduled", "status": "False", "message": "no GPU"}]},
                    )
                ],
                "pod p has no log yet: it has no node: no GPU",
            ),
        ],
    )
    def test_a_missing_log_is_explained(self, body: Object, pods: list[Object], message: str) -> None:
        with pytest.raises(ClientError, match=message):
            log_target.choose_target(body, pods, rank=0, is_previous=False)

    def test_a_log_that_was_cut_is_continued(
        self, fake: FakeCluster, hone: Hone, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(logs, "RETRY_SECONDS", 0)
        lines = [
            f"2026-03-01T10:00:0{second}.{part}00000000Z line {second}.{part}\n"
            for second in range(3)
            for part in range(3)
        ]
        full = "".join(lines).encode()
        fake.add("finetunejobs", job(stage="Training"))
        fake.add("pods", pod("faq-train-a", "trainer"), CORE)
        fake.logs["faq-train-a"] = [
            (full, len(lines[0]) * 4),
            (full[len(lines[0]) * 3 :], 200),
            (full[len(lines[0]) * 6 :], None),
        ]
        path = f"{CORE}/pods/faq-train-a"
        fake.objects[path] = pod("faq-train-a", "trainer", status={"phase": "Succeeded"})
        code, out, err = hone("logs", "faq", "-f")
        assert code == 0, err
        assert out == "".join(f"line {second}.{part}\n" for second in range(3) for part in range(3))
        assert "Pod faq-train-a, container trainer:" in err
        since = [query.get("sinceTime") for _, called, query in fake.calls if called.endswith("/log")]
        assert since == [None, "2026-03-01T10:00:01Z", "2026-03-01T10:00:02Z"]

    @given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.lists(st.integers(0, 20), max_size=6))
    def test_no_line_is_lost_or_repeated_wherever_a_log_is_cut(self, steps: list[int], cuts: list[int]) -> None:
        moments, now = [], 0
        for step in steps:
            now += step
            moments.append(now)
        lines = [f"2026-03-01T10:00:{m // 2:02}.{m % 2}00000000Z {n}" for n, m in enumerate(moments)]
        position, seen = Continuation(), []
        for cut in [*cuts, len(lines)]:
            since = position.since
            left = [line for line in lines if since is None or line[:19] >= since[:19]]
            end = max(0, min(len(left), cut)) if cut != len(lines) else len(left)
            seen += list(position.take(left[:end]))
        assert seen == [str(number) for number in range(len(lines))]

    @given(st.lists(st.binary(max_size=40)))
    def test_lines_do_not_depend_on_the_pieces(self, pieces: list[bytes]) -> None:
        text = b"".join(pieces)
        expected = [line.decode(errors="replace") for line in text.split(b"\n")]
        assert list(logs.split_lines(pieces)) == (expected if expected[-1] else expected[:-1])
