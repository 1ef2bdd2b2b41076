"""The script in the pod of `hone doctor --deep`: it writes JSON as its termination message.

Arguments: the file for the message, the hub's address, then default images. It opens device files, and sends requests
without credentials. A termination message is part of the pod's status, so reading it needs no right to read logs.
Imports the standard library only.
"""

import http.client
import json
import os
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from glob import glob
from typing import Any

SECONDS = 15
# The kubelet keeps 4096 bytes of a termination message.
LONGEST_ERROR = 200
MANIFESTS = (
    "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, "
    "application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json"
)


def open_device(path: str) -> dict[str, Any] | None:
    """Return owner, mode and the errno of opening a device file; None: there is none."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        return {"path": path, "error": error.errno or 0}
    found = {"path": path, "mode": status.st_mode & 0o7777, "owner": status.st_uid, "group": status.st_gid, "error": 0}
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        found["error"] = error.errno or 0
    return found


def request(url: str, method: str, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers with lowercase names, and up to 1 MiB of the body. Raises OSError without an answer."""
    asked = urllib.request.Request(url, method=method, headers={"User-Agent": "hone-doctor", **headers})
    try:
        with urllib.request.urlopen(asked, timeout=SECONDS) as answer:
            return answer.status, {key.lower(): value for key, value in answer.headers.items()}, answer.read(1 << 20)
    except urllib.error.HTTPError as error:
        return error.code, {key.lower(): value for key, value in error.headers.items()}, b""


def reach(url: str) -> dict[str, Any]:
    """Return the status of a server's answer, or why there is no answer."""
    try:
        return {"status": request(url, "HEAD", {})[0]}
    except (OSError, ValueError, http.client.HTTPException) as error:
        return {"error": str(error)[:LONGEST_ERROR]}


def split_image(image: str) -> tuple[str, str, str]:
    """Return registry, name, and tag or digest, as container runtimes read a reference."""
    rest, _, digest = image.partition("@")
    first, slash, others = rest.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        registry, rest = first, others
    else:
        registry, rest = "docker.io", rest if slash else f"library/{rest}"
    name, _, tag = rest.partition(":")
    return ("registry-1.docker.io" if registry == "docker.io" else registry), name, digest or tag or "latest"


def resolve_image(image: str) -> dict[str, Any]:
    """Return the status of the registry's answer to a request for the manifest, or why there is no answer."""
    registry, name, reference = split_image(image)
    url = f"https://{registry}/v2/{name}/manifests/{reference}"
    try:
        status, headers, _ = request(url, "HEAD", {"Accept": MANIFESTS})
        challenge = dict(re.findall(r'(\w+)="([^"]*)"', headers.get("www-authenticate", "")))
        if status == 401 and challenge.get("realm", "").startswith("https://"):
            query = urllib.parse.urlencode(
                {"service": challenge.get("service", ""), "scope": f"repository:{name}:pull"}
            )
            given = json.loads(request(f"{challenge['realm']}?{query}", "GET", {})[2] or b"{}")
            token = given.get("token") or given.get("access_token")
            if token:
                status = request(url, "HEAD", {"Accept": MANIFESTS, "Authorization": f"Bearer {token}"})[0]
        return {"status": status}
    except (OSError, ValueError, AttributeError, http.client.HTTPException) as error:
        return {"error": str(error)[:LONGEST_ERROR]}


def main(message: str, hub: str, images: list[str]) -> None:
    """Write what this pod has and can reach."""
    try:
        with open("/sys/module/amdgpu/version") as file:
            driver = file.read().strip() or None
    except OSError:
        driver = None
    found = {
        "user": os.geteuid(),
        "groups": sorted({os.getegid(), *os.getgroups()}),
        "kfd": open_device("/dev/kfd"),
        "render": [open_device(path) for path in sorted(glob("/dev/dri/renderD*"))],
        "driver": driver,
        "hub": reach(hub),
        "images": {image: resolve_image(image) for image in images},
    }
    with open(message, "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
