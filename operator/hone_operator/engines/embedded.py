"""Hone's own engine, from the runtime image. It checks digests and reads manifests by itself."""

from hone_api.inferenceservice import InferenceServiceSpec
from hone_api.layout import ENGINE_PORT

from hone_operator.draining import DRAIN_SECONDS
from hone_operator.podspec import POD_API_KEY
from hone_operator.resolve import Resolved

NAME = "embedded"
COMMAND = ["hone-server"]
KEY_VARIABLE: str | None = None
PROVES = True
DRAINS = True
TELLS = True
HOT = False


def arguments(spec: InferenceServiceSpec, resolved: Resolved) -> list[str]:
    weights, own = resolved.weights, resolved.own
    main = own or weights
    found = [own.folder if own else weights.source]
    if weights.revision and not weights.is_folder:
        found += ["--revision", weights.revision]
    if own or weights.is_folder:
        found += ["--name", main.name]
    if main.digest:
        found += ["--expect", f"{main.name}={main.digest}"]
    for claim, path in resolved.claims.items():
        found += ["--claim", f"{claim}={path}"]
    for adapter in resolved.adapters:
        found += ["--adapter", f"{adapter.name}={adapter.folder}"]
        if adapter.digest:
            found += ["--expect", f"{adapter.name}={adapter.digest}"]
    found += ["--port", str(ENGINE_PORT), "--drain-seconds", str(DRAIN_SECONDS)]
    if spec.max_model_len:
        found += ["--max-model-len", str(spec.max_model_len)]
    if spec.api_key_secret:
        found += ["--api-key-file", POD_API_KEY]
    return found


def environment(resolved: Resolved) -> dict[str, str]:
    return {}


def largest_rank(spec: InferenceServiceSpec, resolved: Resolved) -> int | None:
    return None
