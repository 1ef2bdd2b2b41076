"""Secrets and certificates that come into a running pod, as the kubelet writes them, and downloads that need them.

A mounted Secret is a folder of links to `..data`, which is a link to the folder of the present version. The kubelet
writes the next version, and replaces `..data` in one step. A Secret that does not exist yet is a version without files.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path

import pytest
from go_fixtures import skip_without_programs
from hone_api.inferenceservices.adapter_downloads import DownloadFailures, RequestedDownload, RequestedDownloads
from hone_trainer.models.adapter_downloads import FIRST_RETRY_SECONDS, AdapterDownloader, download_adapter
from hone_trainer.push.oci_push import ArtifactPusher
from hone_trainer.remote import fetch as fetching
from hone_trainer.remote.locations import Location
from ociserver.registry import LOGIN, RegistryServer, find_missing_program
from s3server.gateway import Authority

FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights"}


class MountedVolume:
    """The folder of a Secret or ConfigMap in a pod, which `write` changes in the kubelet's steps."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._version = folder, 0
        folder.mkdir(parents=True)
        self.write({})

    def write(self, content: Mapping[str, str]) -> None:
        self._version += 1
        version = self.folder / f"..2026_12_01_00_00_00.{self._version}"
        version.mkdir()
        for key, value in content.items():
            (version / key).write_text(value)
        data, former = self.folder / "..data", (self.folder / "..data").resolve()
        (self.folder / "..data_tmp").symlink_to(version.name)
        os.replace(self.folder / "..data_tmp", data)
        for key in content:
            if not (self.folder / key).is_symlink():
                (self.folder / key).symlink_to(f"..data/{key}")
        for link in self.folder.iterdir():
            if not link.name.startswith("..") and link.name not in content:
                link.unlink()
        if former != data and former.is_dir():
            shutil.rmtree(former)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    skip_without_programs(find_missing_program())
    return Authority(tmp_path_factory.mktemp("authority") / "of-server")


@pytest.fixture(scope="module")
def registry(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    """Yield a registry over HTTPS that requires user and password."""
    with RegistryServer(tmp_path_factory.mktemp("registry"), authority, has_login=True) as server:
        yield server


class Sidecar:
    """The downloads of one adapter in a running pod."""

    def __init__(self, root: Path, uri: str, endpoint: str) -> None:
        self.secret = MountedVolume(root / "secrets/login")
        self.certificates = MountedVolume(root / "certificates/ca")
        self.link, self._failures, self._now = root / "links/faq", root / "failures.json", 0.0
        certificates = {"configMap": {"name": "ca", "key": "ca.crt"}}
        source = {"uri": uri, "endpoint": endpoint, "secret": {"name": "login"}, "caBundle": certificates}
        request = RequestedDownload.model_validate({"field": "spec.adapters[0]", "link": self.link, "source": source})
        file = root / "downloads.json"
        file.write_text(RequestedDownloads(downloads=[request]).model_dump_json(by_alias=True, exclude_none=True))
        download = partial(download_adapter, secrets=root / "secrets", config_maps=root / "certificates")
        self._executor = ThreadPoolExecutor(1)
        self._downloader = AdapterDownloader(file, root / "links", self._failures, download, self._executor)

    def try_again(self) -> str:
        """Try the download after the pause that follows a failure. Return the failure; empty without one."""
        self._now += 10 * FIRST_RETRY_SECONDS
        self._downloader.step(self._now)
        wait([future for _, _, future in self._downloader._running.values()])
        self._downloader.step(self._now)
        failures = DownloadFailures.model_validate_json(self._failures.read_bytes()).failures
        return failures[self.link].message if self.link in failures else ""


@pytest.fixture
def sidecar(registry: RegistryServer, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sidecar:
    monkeypatch.setattr(fetching.constants, "HF_HOME", str(tmp_path / "cache"))
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    uri = f"oci://{registry.host}/adapters/faq:v1"
    location = Location("model", uri, registry.url, secret=LOGIN, ca_file=authority.certificates)
    ArtifactPusher(location, print).push({name: tmp_path / name for name in FILES})
    return Sidecar(tmp_path / "pod", uri, registry.url)


def test_a_secret_that_is_created_after_its_pod_is_used(sidecar: Sidecar, authority: Authority) -> None:
    certificates = {"ca.crt": authority.certificates.read_text()}
    missing = "spec.adapters[0].secret.name is login, and its pod has no such Secret"
    assert sidecar.try_again() == missing
    sidecar.certificates.write(certificates)
    assert sidecar.try_again() == missing
    sidecar.secret.write(LOGIN)
    assert sidecar.try_again() == ""
    assert {path.name: path.read_bytes() for path in sidecar.link.iterdir()} == FILES


def test_a_changed_secret_is_used_and_a_deleted_one_is_named(sidecar: Sidecar, authority: Authority) -> None:
    sidecar.certificates.write({"ca.crt": authority.certificates.read_text()})
    sidecar.secret.write({"username": "reader", "password": "of-last-year", "token": "of-another-kind"})
    assert "refused access with the credentials of the Secret" in sidecar.try_again()
    sidecar.secret.write({})
    assert "its pod has no such Secret" in sidecar.try_again()
    sidecar.secret.write(LOGIN)
    assert sidecar.try_again() == ""


def test_certificates_that_are_created_after_their_pod_are_used(sidecar: Sidecar, authority: Authority) -> None:
    sidecar.secret.write(LOGIN)
    assert "caBundle.configMap.key is ca.crt, and ConfigMap ca lacks it" in sidecar.try_again()
    sidecar.certificates.write({"ca.crt": authority.certificates.read_text()})
    assert sidecar.try_again() == ""
    assert sidecar.link.is_dir()
