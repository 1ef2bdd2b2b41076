"""The parts of Kubernetes' own OpenAPI schema that spec.pod and spec.resources use, read from a real API server.

`make pod-schema` starts an API server and writes them to crds/hone_api/pods/pod_schema.json. Descriptions are left out,
which keeps the CustomResourceDefinitions small, and so are fields that Hone does not offer: see LEFT_OUT.
`hone_api.pods.pod_schema` makes structural schemas from the file.
"""

import json
import ssl
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from apiserver import ADMIN, ROOT, ApiServer, api_server

FILE = ROOT / "crds/hone_api/pods/pod_schema.json"
PATH = "/openapi/v3/api/v1"
ROOTS = ("PodSpec", "Container")
SECONDS_TO_PUBLISH = 60

# Of these objects only the named fields are kept.
OFFERED = {
    "PodSpec": (
        "affinity",
        "automountServiceAccountToken",
        "dnsConfig",
        "dnsPolicy",
        "hostAliases",
        "hostNetwork",
        "initContainers",
        "runtimeClassName",
        "securityContext",
        "shareProcessNamespace",
        "terminationGracePeriodSeconds",
        "topologySpreadConstraints",
        "volumes",
    ),
    "ObjectMeta": ("annotations", "labels"),
}

LEFT_OUT = {
    # Volumes of plug-ins that Kubernetes has removed or deprecated in favour of CSI drivers.
    "Volume": (
        *("awsElasticBlockStore", "azureDisk", "azureFile", "cephfs", "cinder", "flexVolume", "flocker"),
        *("gcePersistentDisk", "gitRepo", "glusterfs", "photonPersistentDisk", "portworxVolume", "quobyte", "rbd"),
        *("scaleIO", "storageos", "vsphereVolume"),
    ),
    # Fields of Windows.
    "PodSecurityContext": ("windowsOptions",),
    "SecurityContext": ("windowsOptions",),
    # Fields that Kubernetes 1.31 does not have, the oldest version that Hone supports.
    "EnvVarSource": ("fileKeyRef",),
    "Lifecycle": ("stopSignal",),
    "VolumeProjection": ("clusterTrustBundle", "podCertificate"),
    # No terminal is attached, no block device is opened, and claims of devices belong to the pod.
    "Container": ("resizePolicy", "restartPolicyRules", "stdin", "stdinOnce", "tty", "volumeDevices"),
    "ResourceRequirements": ("claims",),
    # No field refers to another namespace, whose users decide who may read it.
    "TypedObjectReference": ("namespace",),
    # Deprecated aliases.
    "PersistentVolumeClaimSpec": ("dataSource",),
}

_KEPT = ("type", "format", "enum", "x-kubernetes-list-type", "x-kubernetes-list-map-keys")
_SCALARS = {"Quantity", "IntOrString"}


def read_openapi(server: ApiServer) -> dict[str, Any]:
    """Return the OpenAPI document of the API server's core group, which it publishes moments after its start."""
    request = urllib.request.Request(f"{server.url}{PATH}", headers={"Authorization": f"Bearer {ADMIN}"})
    deadline = time.monotonic() + SECONDS_TO_PUBLISH
    while True:
        try:
            with urllib.request.urlopen(request, context=ssl._create_unverified_context()) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except urllib.error.HTTPError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def extract(openapi: dict[str, Any]) -> dict[str, Any]:
    """Return the definitions that ROOTS need, by their short names."""
    definitions = {name.rpartition(".")[2]: of for name, of in _core(openapi["components"]["schemas"]).items()}
    found: dict[str, Any] = {}
    waiting = list(ROOTS)
    while waiting:
        name = waiting.pop()
        if name in found or name in _SCALARS:
            continue
        of = definitions[name]
        left_out = LEFT_OUT.get(name, ())
        offered = OFFERED.get(name, of["properties"].keys() - set(left_out))
        properties = {field: _reduce(of["properties"][field], waiting) for field in sorted(offered)}
        required = [field for field in of.get("required", []) if field in properties]
        found[name] = {"properties": properties} | ({"required": required} if required else {})
    return dict(sorted(found.items()))


def _core(schemas: dict[str, Any]) -> dict[str, Any]:
    """Return the definitions of the core group and of the API machinery that it uses."""
    return {name: of for name, of in schemas.items() if ".apimachinery." in name or ".core.v1." in name}


def _reduce(node: dict[str, Any], waiting: list[str]) -> dict[str, Any]:
    reference = node.get("$ref") or next((part["$ref"] for part in node.get("allOf", [])), None)
    if reference:
        name = reference.rpartition(".")[2]
        waiting.append(name)
        return {"$ref": name}
    found = {key: node[key] for key in _KEPT if key in node}
    for inner in ("items", "additionalProperties"):
        if inner in node:
            found[inner] = _reduce(node[inner], waiting)
    return found


def text(openapi: dict[str, Any]) -> str:
    """Return the content of FILE."""
    return json.dumps(extract(openapi), indent=1, sort_keys=True) + "\n"


def main() -> int:
    with tempfile.TemporaryDirectory() as folder, api_server(Path(folder)) as server:
        FILE.write_text(text(read_openapi(server)))
    print(f"wrote {FILE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
