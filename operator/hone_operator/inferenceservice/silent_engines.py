"""Find engines that have not reported to the operator which models they have loaded.

The kubelet's probes show that an engine runs. The operator asks for the loaded models from another pod, and a
NetworkPolicy, a service mesh or a proxy can block that. Silence is neither success nor failure: it is reported, with
the port, after MAX_SILENCE. inferenceservice/plan.py puts the result into the condition Progressing.
"""

from datetime import datetime, timedelta
from typing import Any

from hone_api.layout import ADAPTER_SIDECAR_PORT, ENGINE_PORT
from hone_api.reasons import ENGINE_SILENT, HoneError

from hone_operator.inferenceservice.adapter_sidecar import has_adapter_sidecar
from hone_operator.objects.resources import Object
from hone_operator.objects.timestamps import format_timestamp

# The kubelet's probes have succeeded already, so after several polls without an answer none will come.
MAX_SILENCE = timedelta(minutes=2)


def find_unanswered_pods(pods: list[Object], answers: dict[str, Any]) -> list[Object]:
    """Return the polled pods that have not answered yet, sorted by name."""
    return sorted(
        (pod for pod in pods if pod["metadata"]["uid"] not in answers), key=lambda pod: pod["metadata"]["name"]
    )


def explain_silence(pods: list[Object], last_answer_at: dict[str, datetime], now: datetime) -> HoneError | None:
    """Return what to report of the first pod that has not answered for too long; None where there is none.

    `pods`: the polled ones. `last_answer_at`: when each last answered, or when polling began.
    """
    silent = [pod for pod in pods if now - last_answer_at.get(pod["metadata"]["uid"], now) > MAX_SILENCE]
    if not silent:
        return None
    first = min(silent, key=lambda pod: str(pod["metadata"]["name"]))
    port = ADAPTER_SIDECAR_PORT if has_adapter_sidecar(first) else ENGINE_PORT
    since = format_timestamp(last_answer_at[first["metadata"]["uid"]])
    message = (
        f"{len(silent)} of {len(pods)} engines do not answer the operator: pod {first['metadata']['name']} is ready, "
        f"and its port {port} has given no answer since {since}, so which models it has loaded is unknown"
    )
    remedy = (
        f"Let the operator's pods reach port {port} of the engines' pods: allow it in the namespace's NetworkPolicies, "
        f"and in a mesh with STRICT mTLS exempt the port (Istio: portLevelMtls {port} PERMISSIVE in a "
        "PeerAuthentication)."
    )
    return HoneError(ENGINE_SILENT, message, remedy=remedy)
