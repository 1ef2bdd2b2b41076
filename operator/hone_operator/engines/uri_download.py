"""Download models and adapters from URIs in a container that alone has the credentials.

In: the sources of the spec. Out: the init container, and the volumes that it shares with the engine: the cache, and
links to the folders in it. It runs hone_trainer.models.uri_download. Adapters of engines that load them at run time are
downloaded by the sidecar of inferenceservice/adapter_downloads.py instead. `hub_download` downloads a model on the hub.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from hone_api.containers import URI_DOWNLOAD, build_module_command
from hone_api.inferenceservices.adapter_sync import make_revision
from hone_api.inferenceservices.spec import ArtifactUri, InferenceServiceSpec
from hone_api.layout import POD_CACHE, POD_DOWNLOADED

from hone_operator.objects.resources import Object
from hone_operator.pods.pod_spec import (
    Volumes,
    build_container_security,
    build_environment,
    build_resource_requirements,
)

CONTAINER = "download-uris"
_SOURCE_FIELDS = {"uri", "secret", "endpoint", "region", "ca_bundle", "digest"}
_MODEL_FIELD = "spec.model"


@dataclass(frozen=True)
class UriDownload:
    """A model or adapter at a URI. `field`: of the spec. `link`: becomes a link to its folder in the cache."""

    source: ArtifactUri
    field: str
    link: str

    @property
    def is_adapter(self) -> bool:
        return self.field != _MODEL_FIELD

    @property
    def revision(self) -> str:
        """Return what the link to an adapter has in its name where another source must not take its place."""
        return make_revision(json.dumps(self._build_source(), sort_keys=True))

    def build_request(self, link: str) -> Object:
        """Return what the downloading program reads."""
        return {"field": self.field, "link": link, "source": self._build_source()}

    def _build_source(self) -> Object:
        return self.source.model_dump(mode="json", by_alias=True, exclude_none=True, include=_SOURCE_FIELDS)


@dataclass
class UriDownloads:
    """What containers of Hone download."""

    downloads: list[UriDownload] = field(default_factory=list)

    @property
    def adapters(self) -> list[UriDownload]:
        return [download for download in self.downloads if download.is_adapter]

    def add(self, volumes: Volumes, spec: InferenceServiceSpec, source: ArtifactUri, spec_field: str, link: str) -> str:
        """Add a source, and mount the cache and the folder of links for the engine. Return the path of the link."""
        mounted = {mount["mountPath"] for mount in volumes.mounts}
        if POD_CACHE not in mounted and spec.cache:
            volumes.add_claim(spec.cache.claim.name, POD_CACHE, read_only=True)
        elif POD_CACHE not in mounted:
            volumes.add_empty_dir("cache", POD_CACHE, read_only=True)
        if POD_DOWNLOADED not in mounted:
            volumes.add_empty_dir("downloaded", POD_DOWNLOADED, read_only=True)
        self.downloads.append(UriDownload(source, spec_field, f"{POD_DOWNLOADED}/{link}"))
        return self.downloads[-1].link

    def build_containers(
        self, spec: InferenceServiceSpec, volumes: Volumes, image: str, *, with_adapters: bool
    ) -> list[Object]:
        """Return the init container, if something is to be downloaded, and add the Secrets to the pod's volumes.

        It may use as much memory as the engine, which starts later.
        """
        downloads = self.downloads if with_adapters else [one for one in self.downloads if not one.is_adapter]
        if not downloads:
            return []
        own = Volumes()
        arguments = own.add_inputs(
            (download.source.secret.name for download in downloads if download.source.secret),
            (download.source.ca_bundle.config_map.name for download in downloads if download.source.ca_bundle),
            prefix="source-",
        )
        for download in downloads:
            # The kubelet expands variables in arguments.
            request = json.dumps(download.build_request(download.link), sort_keys=True)
            arguments += ["--download", request.replace("$", "\\u0024")]
        volumes.volumes += own.volumes
        container = build_download_container(CONTAINER, URI_DOWNLOAD, spec, volumes, own.mounts, image)
        resources = build_resource_requirements(spec.resources, 0)
        return [container | {"args": arguments, "resources": resources}]


def build_download_container(
    name: str, module: str, spec: InferenceServiceSpec, volumes: Volumes, inputs: Iterable[Object], image: str
) -> Object:
    """Return a container that writes what the engine only reads: the cache and the links.

    It has the user's variables and mounts (a proxy). inputs: its mounts of Secrets and certificates.
    """
    variables = build_environment({"HOME": "/tmp", "USER": "hone"}, spec.pod)
    variables = [variable for variable in variables if variable["name"] != "HF_HOME"]
    written = [
        {name: value for name, value in mount.items() if name != "readOnly"}
        for mount in volumes.mounts
        if mount["mountPath"] in (POD_CACHE, POD_DOWNLOADED)
    ]
    container: Object = {
        "name": name,
        "image": image,
        "command": build_module_command(module),
        "env": [*variables, {"name": "HF_HOME", "value": POD_CACHE}],
        "volumeMounts": [*written, *inputs, {"name": "tmp", "mountPath": "/tmp"}, *spec.pod.volume_mounts],
        "securityContext": build_container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    return container | ({"envFrom": spec.pod.env_from} if spec.pod.env_from else {})
