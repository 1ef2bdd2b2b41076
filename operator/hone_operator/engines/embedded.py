"""Hone's own engine, from the runtime image. It checks digests and reads manifests without help."""

from hone_api.containers import EMBEDDED_ENGINE
from hone_api.inferenceservices.spec import InferenceServiceSpec
from hone_api.layout import ADMIN_TOKEN, EMBEDDED_CACHE_SHARE, ENGINE_PORT, POD_SERVED

from hone_operator.engines.artifact_links import literal
from hone_operator.engines.probes import HEALTH
from hone_operator.engines.resolve import Resolved
from hone_operator.engines.shutdown import DRAIN_SECONDS
from hone_operator.objects.resources import Object
from hone_operator.pods.pod_spec import POD_API_KEY

NAME = "embedded"
COMMAND = [EMBEDDED_ENGINE]
KEY_VARIABLE: str | None = None
CLIENT_ROUTES: tuple[str, ...] = ()
CHECK: list[str] | None = None
PROVES = True
TELLS = True
CACHE_SHARE = EMBEDDED_CACHE_SHARE
HOT = True


def arguments(spec: InferenceServiceSpec, resolved: Resolved) -> list[str]:
    weights = resolved.weights
    found = [weights.source]
    if weights.revision and not weights.is_folder:
        found += ["--revision", weights.revision]
    if weights.is_folder:
        found += ["--name", weights.name]
    if weights.digest:
        found += ["--expect", f"{weights.name}={weights.digest}"]
    for claim, path in resolved.claims.items():
        found += ["--claim", f"{claim}={path}"]
    if resolved.all_adapters:
        found += ["--admin-token-file", f"{POD_SERVED}/{ADMIN_TOKEN}"]
    found += ["--port", str(ENGINE_PORT), "--drain-seconds", str(DRAIN_SECONDS)]
    if spec.max_model_len:
        found += ["--max-model-len", str(spec.max_model_len)]
    if spec.tool_call_parser:
        found += ["--tool-call-parser", spec.tool_call_parser]
    if spec.chat_template:
        found.append(f"--chat-template={literal(spec.chat_template)}")
    if spec.api_key_secret:
        found += ["--api-key-file", POD_API_KEY]
    return found


def is_guarded(spec: InferenceServiceSpec) -> bool:
    return False


def started(spec: InferenceServiceSpec, resolved: Resolved) -> Object:
    return HEALTH


def pre_stop(spec: InferenceServiceSpec, resolved: Resolved) -> Object | None:
    return None


def environment(spec: InferenceServiceSpec, resolved: Resolved) -> dict[str, str]:
    return {}


def largest_rank(spec: InferenceServiceSpec, resolved: Resolved) -> int | None:
    return None
