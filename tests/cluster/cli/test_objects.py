"""`hone list`, `describe`, `logs`, `suspend`, `resume` and `delete` on a cluster."""

import json

from hone_command import Object, job, run
from kube import Cluster, condition


def test_a_finished_job_is_listed_described_and_its_log_printed(hone: Cluster, lab: str, finished: Object) -> None:
    digest = finished["status"]["artifact"]["digest"]
    code, out, err = run(hone, "list", "-n", lab, "-o", "json")
    assert code == 0, err
    found = {(each["kind"], each["name"]): each for each in json.loads(out)["items"]}[("FineTuneJob", "done")]
    assert (found["phase"], found["digest"], found["model"]) == ("Succeeded", digest, "models:tiny")
    assert lab in run(hone, "list", "-A")[1]

    code, out, err = run(hone, "describe", "ftj/done", "-n", lab)
    assert code == 0, err
    for part in (
        "attempt 1: pod done-train-",
        "the job ended: Succeeded",
        "job/done-train",
        "persistentvolumeclaim/done",
    ):
        assert part in out, out
    assert "not shown" not in out

    code, plain, err = run(hone, "logs", "done", "-n", lab)
    assert code == 0, err
    assert "container trainer" in err
    assert plain.strip()
    code, followed, err = run(hone, "logs", "done", "-n", lab, "-f")
    assert code == 0, err
    assert followed == plain


def test_a_waiting_job_is_suspended_resumed_and_deleted(hone: Cluster, lab: str) -> None:
    hone.create(job("greedy", resources={"gpus": 0, "cpu": "9999"}), namespace=lab)
    hone.wait("persistentvolumeclaim", "greedy", lambda found: found, lab)
    code, _, err = run(hone, "suspend", "greedy", "-n", lab)
    assert code == 0, err
    hone.wait("finetunejob", "greedy", condition("Suspended"), lab)
    code, _, err = run(hone, "logs", "greedy", "-n", lab)
    assert code == 1
    assert "FineTuneJob greedy has no pod: its stage is Suspended" in err
    assert run(hone, "resume", "greedy", "-n", lab)[0] == 0
    hone.wait("finetunejob", "greedy", condition("Suspended", "False"), lab)

    hone.create(job("other", output={"claim": {"name": "greedy"}}, suspend=True), namespace=lab)
    code, _, err = run(hone, "delete", "greedy", "-n", lab, "--with-claim", "--yes")
    assert code == 1
    assert "claim greedy is used by FineTuneJob other" in err
    assert run(hone, "delete", "ftj/other", "-n", lab, "--yes")[0] == 0
    hone.wait_gone("finetunejob", "other", lab)
    code, _, err = run(hone, "delete", "greedy", "-n", lab, "--with-claim", "--yes")
    assert code == 0, err
    hone.wait_gone("finetunejob", "greedy", lab)
    hone.wait_gone("persistentvolumeclaim", "greedy", lab)
