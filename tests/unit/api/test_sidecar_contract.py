"""The adapter sidecar answers where the operator's probes and its poll ask it."""

from pathlib import Path

from hone_api.inferenceservices.spec import InferenceServiceSpec
from hone_operator.inferenceservice import adapter_sidecar
from hone_server.adapter_sidecar.engine_client import EngineClient
from hone_server.adapter_sidecar.main import _answer_request
from hone_server.adapter_sidecar.reconciler import AdapterReconciler

SPEC = InferenceServiceSpec.model_validate({"model": {"name": "org/base"}, "resources": {"gpus": 1}})


def test_the_sidecar_answers_where_the_operator_asks(tmp_path: Path) -> None:
    reconciler = AdapterReconciler(tmp_path / "adapters.json", tmp_path, EngineClient(1, "token", None))
    container = adapter_sidecar.build_sidecar_container(SPEC, None, "runtime:test", {}, [])
    pod = {
        "metadata": {"uid": "1"},
        "spec": {"initContainers": [container]},
        "status": {"podIP": "10.0.0.1"},
    }
    [url] = adapter_sidecar.build_poll_urls([pod], needs_key=True).values()
    paths = [container[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe")]
    for path in [*paths, "/" + url.split("/", 3)[3]]:
        assert _answer_request(reconciler, path).status != 404, path
    assert _answer_request(reconciler, "/other").status == 404
