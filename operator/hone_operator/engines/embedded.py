"""Hone's own engine, from the runtime image. It checks digests and reads manifests without help."""

from hone_api.containers import EMBEDDED_ENGINE
from hone_api.inferenceservices.spec import InferenceServiceSpec
from hone_api.layout import ADMIN_TOKEN, EMBEDDED_CACHE_SHARE, ENGINE_PORT, POD_SERVED

from hone_operator.engines.artifact_links import escape_variables
from hone_operator.engines.engine import Engine
from hone_operator.engines.resolve import ResolvedModels
from hone_operator.engines.shutdown import DRAIN_SECONDS
from hone_operator.objects.resources import Object
from hone_operator.pods.pod_spec import POD_API_KEY


class EmbeddedEngine(Engine):
    """Hone's engine, which drains itself after SIGTERM."""

    name = "embedded"
    command = (EMBEDDED_ENGINE,)
    verifies_artifacts = True
    reports_digests = True
    cache_share = EMBEDDED_CACHE_SHARE
    hot_swaps_adapters = True

    def build_arguments(self, spec: InferenceServiceSpec, resolved: ResolvedModels) -> list[str]:
        """Return the model's source and digest, the mounted claims, and the options of the server."""
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
            found.append(f"--chat-template={escape_variables(spec.chat_template)}")
        if spec.api_key_secret:
            found += ["--api-key-file", POD_API_KEY]
        return found

    def build_pre_stop_hook(self, spec: InferenceServiceSpec, resolved: ResolvedModels) -> Object | None:
        """Return None: the engine still accepts requests after SIGTERM."""
        return None
