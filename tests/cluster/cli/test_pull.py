"""`hone pull` and `hone report` on a cluster: the pod, the exec stream, and interruptions."""

import random
import signal
import time
from pathlib import Path

from hone_api.artifacts.proof import prove
from hone_command import Object, run, start
from kube import Cluster

KILLS = 3
READERS = "hone.dev/reader=done"


def test_an_artifact_is_pulled_whenever_it_was_killed(
    hone: Cluster, lab: str, finished: Object, tmp_path: Path
) -> None:
    root = tmp_path / "done"
    for _ in range(KILLS):
        with start(hone, "pull", "done", str(root), "-n", lab) as started:
            time.sleep(2 + random.random() * 4)
            started.send_signal(random.choice([signal.SIGINT, signal.SIGTERM, signal.SIGKILL]))
    code, out, err = run(hone, "pull", "done", str(root), "-n", lab)
    assert code == 0, err
    digest = finished["status"]["artifact"]["digest"]
    assert digest in out
    proof = prove(root)
    assert proof is not None
    assert proof.manifest.digest == digest
    assert not list(root.rglob("*.partial"))
    code, _, err = run(hone, "pull", "done", str(root), "-n", lab)
    assert code == 0, err


def test_a_report_is_saved_and_no_pod_is_left(hone: Cluster, lab: str, finished: Object, tmp_path: Path) -> None:
    before = {pod["metadata"]["name"] for pod in hone.list("pods", lab, READERS)}
    place = tmp_path / "report.html"
    code, _, err = run(hone, "report", "done", "-n", lab, "--output", str(place))
    assert code == 0, err
    assert "</html>" in place.read_text()
    left = [pod for pod in hone.list("pods", lab, READERS) if not pod["metadata"].get("deletionTimestamp")]
    assert {pod["metadata"]["name"] for pod in left} <= before
