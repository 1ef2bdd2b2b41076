"""Secrets in MANIFEST that `kubectl apply` would refuse are reported without their values."""

from pathlib import Path

import pytest
from hone_api.reasons import INVALID_SPEC, HoneError
from hone_trainer.inputs.manifest import load_inputs
from hone_trainer.main import parse_options

JOB = """
---
apiVersion: hone.dev/v1alpha1
kind: FineTuneJob
metadata: {name: x, namespace: ns}
spec:
  model: {name: a/b}
  dataset: {uri: "%s", secret: {name: s}}
"""


def fail(folder: Path, manifest: str) -> HoneError:
    (folder / "job.yaml").write_text(manifest)
    options = parse_options(["run", str(folder / "job.yaml"), "--output", str(folder / "out")])
    with pytest.raises(HoneError) as caught:
        load_inputs(options)  # type: ignore[arg-type]
    assert caught.value.reason is INVALID_SPEC
    assert "TOPSECRET" not in f"{caught.value.message} {caught.value.remedy}"
    return caught.value


@pytest.mark.parametrize(
    "data",
    [
        "data: TOPSECRET",
        "stringData: TOPSECRET",
        "stringData: [TOPSECRET]",
        "data: {token: TOPSECRET!}",
        "data: {token: [TOPSECRET]}",
    ],
)
def test_the_values_of_a_secret_are_not_shown(tmp_path: Path, data: str) -> None:
    secret = f"apiVersion: v1\nkind: Secret\nmetadata: {{name: s}}\n{data}\n"
    assert "Secret s" in fail(tmp_path, secret + JOB % "s3://data/x").message


@pytest.mark.parametrize("uri", ["https://user:TOPSECRET@host/x", "https://host/x?sig=TOPSECRET"])
def test_credentials_in_a_uri_are_not_shown(tmp_path: Path, uri: str) -> None:
    assert "spec.dataset.uri" in fail(tmp_path, JOB % uri).message
