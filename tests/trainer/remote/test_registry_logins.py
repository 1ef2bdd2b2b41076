"""Which login of a docker configuration is for a repository: as Kubernetes decides it for image pull secrets."""

import base64
import json
from pathlib import Path

import pytest
from hone_api.reasons import HoneError
from hone_trainer.remote.locations import Location
from hone_trainer.remote.registry_auth import Authorization, find_login

LOGIN = {"auth": base64.b64encode(b"reader:opensesame").decode()}
OTHER = {"auth": base64.b64encode(b"other:closesesame").decode()}


def find(host: str, repository: str, entries: dict[str, object]) -> str | None:
    secret = {".dockerconfigjson": json.dumps({"auths": entries})}
    location = Location("dataset", f"oci://{host}/{repository}:v1", secret=secret)
    try:
        return find_login(location, host, repository)
    except HoneError:
        return None


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("ghcr.io", "ghcr.io"),
        ("ghcr.io", "https://ghcr.io"),
        ("ghcr.io", "https://ghcr.io/v2/"),
        ("ghcr.io", "ghcr.io/team"),
        ("ghcr.io", "ghcr.io/team/"),
        ("ghcr.io", "https://ghcr.io/v1/team/faq"),
        ("models.azurecr.io", "*.azurecr.io"),
        ("models.azurecr.io", "m*.azurecr.io/team"),
        ("10.0.0.7:5000", "10.0.0.7:5000"),
        ("[fd00::7]:5000", "[fd00::7]:5000"),
        ("docker.io", "https://index.docker.io/v1/"),
        ("docker.io", "index.docker.io/team"),
    ],
)
def test_a_key_is_for_a_host_and_a_part_of_its_repositories(host: str, key: str) -> None:
    assert find(host, "team/faq", {key: LOGIN}) == "reader:opensesame"


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("ghcr.io", "ghcr.io/tea"),
        ("ghcr.io", "ghcr.io/team/faq/deep"),
        ("ghcr.io", "quay.io"),
        ("ghcr.io", "ghcr.io:5000"),
        ("ghcr.io.evil.example", "ghcr.io"),
        ("evil.example", "*.azurecr.io"),
        ("a.b.azurecr.io", "*.azurecr.io"),
        ("azurecr.io", "*.azurecr.io"),
        ("docker.io", "docker.com"),
    ],
)
def test_no_other_registry_gets_the_login(host: str, key: str) -> None:
    assert find(host, "team/faq", {key: LOGIN}) is None


def test_the_most_exact_key_counts() -> None:
    entries: dict[str, object] = {"ghcr.io": OTHER, "ghcr.io/team/faq": {}, "ghcr.io/team": LOGIN, "ghcr.io/x": OTHER}
    assert find("ghcr.io", "team/faq", entries) == "reader:opensesame"


def test_a_line_feed_after_the_password_is_left_out() -> None:
    entry = {"auth": base64.b64encode(b"reader:opensesame\n").decode()}
    assert find("ghcr.io", "team/faq", {"ghcr.io": entry}) == "reader:opensesame"


@pytest.mark.parametrize("names", [{"credsStore": "desktop"}, {"credHelpers": {"ghcr.io": "desktop"}}])
def test_a_helper_that_has_the_login_is_named_once(
    names: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"auths": {"ghcr.io": {}}} | names))
    location = Location("dataset", "oci://ghcr.io/team/faq:v1")
    authorization = Authorization(location, "ghcr.io", "repository:team/faq:pull", lambda *_: None)  # type: ignore
    for _ in range(2):
        assert not authorization.answer(['Basic realm="x"'], None, "https://ghcr.io/v2/")
    assert capsys.readouterr().err.count("docker-credential-desktop has the logins of docker") == 1
