"""Download models and adapters from URIs in an init container, so that the engine has none of the credentials.

In: the sources of the spec. Out: the container, and the volumes that it shares with the engine: the cache, and links to
the folders in it. It runs hone_trainer.models.uri_download. `hub_download` does the same for a model on the hub.
"""

import json
from dataclasses import dataclass, field

from hone_api.containers import URI_DOWNLOAD, build_module_command
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


@dataclass(frozen=True)
class UriDownload:
    """A model or adapter at a URI. `field`: of the spec. `link`: becomes a link to its folder in the cache."""

    source: ArtifactUri
    field: str
    link: str


@dataclass
class UriDownloads:
    """What a container of Hone downloads before the engine starts."""

    downloads: list[UriDownload] = field(default_factory=list)

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

    def build_containers(self, spec: InferenceServiceSpec, volumes: Volumes, image: str) -> list[Object]:
        """Return the init container, if something is to be downloaded, and add the Secrets to the pod's volumes.

        It has the user's variables and mounts (a proxy), and may use as much memory as the engine, which starts later.
        """
        if not self.downloads:
            return []
        own = Volumes()
        arguments = self._mount_inputs(own)
        for download in self.downloads:
            source = download.source.model_dump(mode="json", by_alias=True, exclude_none=True, include=_SOURCE_FIELDS)
            request = {"field": download.field, "link": download.link, "source": source}
            # The kubelet expands variables in arguments.
            arguments += ["--download", json.dumps(request, sort_keys=True).replace("$", "\\u0024")]
        variables = build_environment({"HOME": "/tmp", "USER": "hone"}, spec.pod)
        variables = [variable for variable in variables if variable["name"] != "HF_HOME"]
        written = [
            {name: value for name, value in mount.items() if name != "readOnly"}
            for mount in volumes.mounts
            if mount["mountPath"] in (POD_CACHE, POD_DOWNLOADED)
        ]
        volumes.volumes += own.volumes
        container: Object = {
            "name": CONTAINER,
            "image": image,
            "command": build_module_command(URI_DOWNLOAD),
            "args": arguments,
            "env": [*variables, {"name": "HF_HOME", "value": POD_CACHE}],
            "resources": build_resource_requirements(spec.resources, 0),
            "volumeMounts": [*written, *own.mounts, {"name": "tmp", "mountPath": "/tmp"}, *spec.pod.volume_mounts],
            "securityContext": build_container_security(),
            "terminationMessagePolicy": "FallbackToLogsOnError",
        }
        return [container | ({"envFrom": spec.pod.env_from} if spec.pod.env_from else {})]

    def _mount_inputs(self, own: Volumes) -> list[str]:
        """Mount the Secrets and certificates of sources, and return the arguments with their paths."""
        sources = [download.source for download in self.downloads]
        return own.add_inputs(
            (source.secret.name for source in sources if source.secret),
            (source.ca_bundle.config_map.name for source in sources if source.ca_bundle),
            prefix="source-",
        )
