"""`spec.output.push` of a FineTuneJob: the places outside the cluster that the artifact is copied to."""

from typing import Annotated

from pydantic import ConfigDict, Field

from hone_api.common import (
    ApiModel,
    LocalSecretReference,
    SecretKey,
    declare_rules,
    make_rule,
    make_text_field,
    require_exactly_one,
)
from hone_api.layout import REGISTRY_SCHEME
from hone_api.remote.sources import CaBundle, Endpoint, Region

MOST_DESTINATIONS = 8

HubRepositoryName = Annotated[
    str,
    make_text_field(
        r"^[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*$",
        "must be a repository on the hub with its owner, such as owner/name",
        max_length=193,
    ),
]
BucketUri = Annotated[
    str,
    make_text_field(
        r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^?#\s]*)?$",
        "must be s3://BUCKET/FOLDER, without user, password, query and fragment: credentials belong in a Secret, "
        "which secret names",
        max_length=1024,
    ),
]


RegistryReference = Annotated[
    str,
    make_text_field(
        r"^[A-Za-z0-9.-]+(:[0-9]+)?/[a-z0-9]+([._/-]+[a-z0-9]+)*:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$",
        "must be REGISTRY/REPOSITORY:TAG, such as registry.example.com/models/faq:v1: no https://, and no digest, "
        "which is known after the push",
        max_length=512,
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
    """One destination: exactly one of `hub`, `uri` and `oci`."""

    model_config = ConfigDict(
        json_schema_extra=declare_rules(
            make_rule(
                require_exactly_one("hub", "uri", "oci"),
                "set exactly one of hub (a repository on the hub), uri (a bucket) and oci (a registry)",
            ),
            make_rule(
                "!has(self.hub) || !(has(self.secret) || has(self.endpoint) || has(self.caBundle))",
                "secret, endpoint and caBundle belong to uri and oci: remove them; the hub's token belongs in "
                "hub.tokenSecret",
            ),
            make_rule("has(self.uri) || !has(self.region)", "region belongs to uri: remove it"),
        )
    )

    hub: HubRepository | None = Field(None, description="A model repository on the hub.")
    uri: BucketUri | None = Field(
        None,
        description="A folder of an S3 bucket. A replaced artifact must be of a job of the same name.",
        examples=["s3://models/faq/"],
    )
    oci: RegistryReference | None = Field(
        None,
        description="An artifact of ModelPack in an OCI registry. A replaced tag must be of a job of the same name.",
        examples=["registry.example.com/models/faq:v1"],
    )
    secret: LocalSecretReference | None = Field(
        None,
        description="Secret with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, if needed, AWS_SESSION_TOKEN; for oci: "
        ".dockerconfigjson, or username and password. Only the pushing pod has it.",
        examples=[{"name": "bucket-writer"}],
    )
    endpoint: Endpoint | None = Field(
        None,
        description="The S3 server; left out: AWS. For oci: the registry's URL, where that is not https:// and its "
        "name.",
        examples=["https://minio.storage.svc:9000"],
    )
    region: Region | None = Field(None, description="The bucket's region; left out: us-east-1.", examples=["eu-west-1"])
    ca_bundle: CaBundle | None = Field(None, description="Certificates, instead of the public ones, to verify with.")

    @property
    def address(self) -> str:
        """The destination as one URI, as `hone push` takes it and the status shows it."""
        if self.hub:
            return f"hf://{self.hub.repo}"
        return f"{REGISTRY_SCHEME}{self.oci}" if self.oci else str(self.uri)


PushDestinations = Annotated[list[PushDestination], Field(max_length=MOST_DESTINATIONS)]
