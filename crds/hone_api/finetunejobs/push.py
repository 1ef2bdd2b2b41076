"""`spec.output.push` of a FineTuneJob: the places outside the cluster that the artifact is copied to."""

from typing import Annotated

from pydantic import ConfigDict, Field

from hone_api.common import ApiModel, LocalSecretReference, SecretKey, exactly_one, rule, rules, text
from hone_api.remote_sources import CaBundle, Endpoint, Region

MOST_DESTINATIONS = 8

HubRepositoryName = Annotated[
    str,
    text(
        r"^[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*$",
        "must be a repository on the hub with its owner, such as owner/name",
        max_length=193,
    ),
]
BucketUri = Annotated[
    str,
    text(
        r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^?#\s]*)?$",
        "must be s3://BUCKET/FOLDER, without user, password, query and fragment: credentials belong in a Secret, "
        "which secret names",
        max_length=1024,
    ),
]


class HubRepository(ApiModel):
    """A model repository on the hub."""

    repo: HubRepositoryName = Field(
        description="Owner and name of the repository. It is created if it does not exist.", examples=["my-org/faq"]
    )
    private: bool = Field(True, description="Whether a repository that is created is private.")
    token_secret: SecretKey | None = Field(
        None,
        description="The hub token, which may write; left out: that of spec.tokenSecret.",
        examples=[{"name": "hub-writer"}],
    )


class PushDestination(ApiModel):
    """One destination: exactly one of `hub` and `uri`."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(exactly_one("hub", "uri"), "set exactly one of hub (a repository on the hub) and uri (a bucket)"),
            rule(
                "has(self.uri) || !(has(self.secret) || has(self.endpoint) || has(self.region) || has(self.caBundle))",
                "secret, endpoint, region and caBundle belong to uri: remove them; the hub's token belongs in "
                "hub.tokenSecret",
            ),
        )
    )

    hub: HubRepository | None = Field(None, description="A model repository on the hub.")
    uri: BucketUri | None = Field(
        None,
        description="A folder of an S3 bucket. A replaced artifact must be of a job of the same name.",
        examples=["s3://models/faq/"],
    )
    secret: LocalSecretReference | None = Field(
        None,
        description="Secret with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, if needed, AWS_SESSION_TOKEN. Only the "
        "pushing pod has it.",
        examples=[{"name": "bucket-writer"}],
    )
    endpoint: Endpoint | None = Field(
        None, description="The S3 server; left out: AWS.", examples=["https://minio.storage.svc:9000"]
    )
    region: Region | None = Field(None, description="The bucket's region; left out: us-east-1.", examples=["eu-west-1"])
    ca_bundle: CaBundle | None = Field(None, description="Certificates, instead of the public ones, to verify with.")

    @property
    def address(self) -> str:
        """The destination as one URI, as `hone push` takes it and the status shows it."""
        return f"hf://{self.hub.repo}" if self.hub else str(self.uri)


PushDestinations = Annotated[list[PushDestination], Field(max_length=MOST_DESTINATIONS)]
