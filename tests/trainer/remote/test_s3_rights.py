"""Users of a real S3 server whose policy lacks a right."""

import json
import subprocess
from pathlib import Path

import pytest
from hone_api.reasons import STORE_UNAUTHORIZED, HoneError
from hone_trainer.push.s3_store import S3Destination
from hone_trainer.remote.fetch import fetch
from hone_trainer.remote.locations import Location
from s3server.gateway import BUCKET, SECRET, Gateway, build

pytestmark = pytest.mark.usefixtures("quick")

USER = {"AWS_ACCESS_KEY_ID": "limited", "AWS_SECRET_ACCESS_KEY": "of-the-test"}


@pytest.fixture(scope="module")
def limited(gateway: Gateway) -> Gateway:
    """Return a server with another user, who may do what the bucket's policy allows."""
    owner = ["--access", SECRET["AWS_ACCESS_KEY_ID"], "--secret", SECRET["AWS_SECRET_ACCESS_KEY"]]
    user = ["--access", USER["AWS_ACCESS_KEY_ID"], "--secret", USER["AWS_SECRET_ACCESS_KEY"], "--role", "user"]
    admin = [str(build()), "admin", *owner, "--endpoint-url", gateway.url, "create-user", *user]
    subprocess.run(admin, check=True, capture_output=True)
    gateway.put("faq/a.jsonl", b"{}")
    return gateway


def allow(server: Gateway, *rights: str) -> None:
    resources = [f"arn:aws:s3:::{BUCKET}", f"arn:aws:s3:::{BUCKET}/*"]
    statements = [
        {
            "Effect": "Allow",
            "Principal": {"AWS": [USER["AWS_ACCESS_KEY_ID"]]},
            "Action": [right],
            "Resource": [resources[0] if right.startswith("s3:ListBucket") else resources[1]],
        }
        for right in rights
    ]
    server.client.set_bucket_policy(BUCKET, json.dumps({"Version": "2012-10-17", "Statement": statements}))


@pytest.mark.parametrize(("allowed", "lacking"), [("s3:GetObject", "s3:ListBucket"), ("s3:ListBucket", "s3:GetObject")])
def test_a_download_names_the_right_that_lacks(limited: Gateway, allowed: str, lacking: str) -> None:
    location = Location("dataset", f"s3://{BUCKET}/faq/", limited.url, secret=USER)
    allow(limited, allowed)
    with pytest.raises(HoneError) as caught:
        fetch(location, None)
    assert caught.value.reason is STORE_UNAUTHORIZED
    assert f"the right {lacking} on bucket {BUCKET}, in spec.dataset.secret" in caught.value.remedy
    allow(limited, allowed, lacking)
    assert (fetch(location, None).folder / "a.jsonl").read_bytes() == b"{}"


@pytest.mark.parametrize(
    ("allowed", "lacking"),
    [(["s3:GetObject"], "s3:ListBucket"), (["s3:GetObject", "s3:ListBucket"], "s3:PutObject")],
)
def test_a_push_names_the_right_that_lacks(limited: Gateway, allowed: list[str], lacking: str, tmp_path: Path) -> None:
    allow(limited, *allowed)
    destination = S3Destination(
        Location("push", f"s3://{BUCKET}/out/", limited.url, secret=USER, spec_field="spec.output.push[0]")
    )
    with pytest.raises(HoneError) as caught:
        destination.put("a.txt", b"one", destination.list_held().get("a.txt"))
    assert caught.value.reason is STORE_UNAUTHORIZED
    assert f"the right {lacking} on bucket {BUCKET}, in spec.output.push[0].secret" in caught.value.remedy
