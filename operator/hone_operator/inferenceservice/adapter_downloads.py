"""The sidecar that downloads adapters from URIs while the engine runs, and alone has their credentials.

In: the adapters at URIs. Out: the ConfigMap's key with the requested downloads, and the container. It runs
hone_trainer.models.adapter_downloads, which leaves links for the sidecar of adapter_sidecar.py. It does not hold up the
engine's start: pods become ready when all adapters of their start have answered.
"""

import json

from hone_api.containers import ADAPTER_DOWNLOADS
from hone_api.inferenceservices.spec import InferenceServiceSpec
from hone_api.layout import POD_ADAPTER_DOWNLOADS, POD_CONFIG_MAPS, POD_SECRETS

from hone_operator.engines.resolve import ResolvedModels
from hone_operator.engines.uri_download import build_download_container
from hone_operator.objects.resources import Object
from hone_operator.pods.pod_spec import Volumes, make_volume_name

CONTAINER = "download-adapters"
VOLUME_PREFIXES = ("adapter-secret-", "adapter-certificates-")


def build_config_data(resolved: ResolvedModels) -> dict[str, str]:
    """Return the ConfigMap's data: the adapters to download; nothing where there are none."""
    if not (adapters := resolved.uri_downloads.adapters):
        return {}
    requests = [download.build_request(f"{download.link}-{download.revision}") for download in adapters]
    return {POD_ADAPTER_DOWNLOADS.rpartition("/")[2]: json.dumps({"downloads": requests}, sort_keys=True, indent=2)}


def build_containers(
    spec: InferenceServiceSpec, resolved: ResolvedModels, mounts: list[Object], image: str, resources: Object
) -> list[Object]:
    """Return the native sidecar, if adapters have a URI, and add the Secrets to the pod's volumes.

    `mounts`: that of the ConfigMap. The container does not name the adapters, which change while it runs.
    """
    if not resolved.uri_downloads.adapters:
        return []
    inputs = _build_inputs(resolved)
    resolved.volumes.volumes += inputs.volumes
    container = build_download_container(
        CONTAINER, ADAPTER_DOWNLOADS, spec, resolved.volumes, [*inputs.mounts, *mounts], image
    )
    return [container | {"restartPolicy": "Always", "resources": resources}]


def _build_inputs(resolved: ResolvedModels) -> Volumes:
    """Return the volumes of the Secrets and certificates.

    They are optional: one that is no longer needed stays mounted until another change, and may be deleted.
    """
    found = Volumes()
    sources = [download.source for download in resolved.uri_downloads.adapters]
    secret_prefix, certificates_prefix = VOLUME_PREFIXES
    for name in sorted({source.secret.name for source in sources if source.secret}):
        found.add_all_of_secret(make_volume_name(secret_prefix, name), name, f"{POD_SECRETS}/{name}")
        found.volumes[-1]["secret"]["optional"] = True
    for name in sorted({source.ca_bundle.config_map.name for source in sources if source.ca_bundle}):
        found.add_config_map(make_volume_name(certificates_prefix, name), name, f"{POD_CONFIG_MAPS}/{name}")
        found.volumes[-1]["configMap"]["optional"] = True
    return found
