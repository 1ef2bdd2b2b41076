"""Engine tgi: arguments and probes of Text Generation Inference, which was archived in March 2026.

https://huggingface.co/docs/text-generation-inference
"""

from hone_api.inferenceservices.spec import InferenceServiceSpec
from hone_api.layout import ENGINE_PORT, GUARDED_PORT

from hone_operator.engines.artifact_links import build_weight_arguments, get_adapter_path, get_model_path
from hone_operator.engines.engine import Engine
from hone_operator.engines.resolve import ResolvedModels


class TgiEngine(Engine):
    """Text Generation Inference."""

    name = "tgi"
    command = ("text-generation-launcher",)
    api_key_env = "API_KEY"

    def build_arguments(self, spec: InferenceServiceSpec, resolved: ResolvedModels) -> list[str]:
        """Return the arguments of text-generation-launcher."""
        host, port = ("127.0.0.1", GUARDED_PORT) if self.is_guarded(spec) else ("0.0.0.0", ENGINE_PORT)
        found = ["--model-id", get_model_path(resolved), "--hostname", host, "--port", str(port)]
        found += build_weight_arguments(resolved.weights)
        if spec.max_model_len:
            found += ["--max-total-tokens", str(spec.max_model_len)]
        if spec.resources.gpus > 1:
            found += ["--num-shard", str(spec.resources.gpus)]
        if adapters := resolved.all_adapters:
            links = ",".join(f"{adapter.name}={get_adapter_path(adapter)}" for adapter in adapters)
            found += ["--lora-adapters", links]
        return found

    def is_guarded(self, spec: InferenceServiceSpec) -> bool:
        """Return whether there is a key: TGI itself compares keys without regard to case, and not on all routes."""
        return spec.api_key_secret is not None

    def build_environment(self, spec: InferenceServiceSpec, resolved: ResolvedModels) -> dict[str, str]:
        """Return the hub's cache: the image sets a variable, which overrides HF_HOME, to a folder that is read-only."""
        return {"HUGGINGFACE_HUB_CACHE": f"{resolved.env['HF_HOME']}/hub"} if "HF_HOME" in resolved.env else {}
