"""A model or dataset in an object store, a registry or behind HTTPS: its URI, and what is needed to read it."""

from typing import Annotated

from pydantic import Field

from hone_api.common import ApiModel, DataKey, LocalSecretReference, ObjectName, RemoteUri, make_rule, make_text_field

Endpoint = Annotated[
    str,
    make_text_field(r"^https?://[^/?#@\s]+/?$", "must be the URL of a host, such as https://minio.storage.svc:9000"),
]
Region = Annotated[str, make_text_field(r"^[a-z0-9-]+$", "must be a region, such as eu-central-1", max_length=63)]


class CaConfigMapKey(ApiModel):
    """One key of a ConfigMap in the object's own namespace."""

    name: ObjectName = Field(description="Name of the ConfigMap.", examples=["private-ca"])
    key: DataKey = Field("ca.crt", description="Key whose value is the certificates.", examples=["ca.crt"])


class CaBundle(ApiModel):
    """Certificates in PEM that servers are verified with."""

    config_map: CaConfigMapKey = Field(description="The key of a ConfigMap that holds them.")


class RemoteSource(ApiModel):
    """The fields of a source that is read from an object store, a registry or over HTTPS."""

    uri: RemoteUri | None = Field(
        None,
        description="Object, or prefix of objects, in an S3 bucket, artifact of an OCI registry (oci://), or file "
        "behind HTTPS. Downloaded before anything else starts.",
        examples=["s3://datasets/faq/"],
    )
    secret: LocalSecretReference | None = Field(
        None,
        description="Secret with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, if needed, AWS_SESSION_TOKEN; for "
        "https: token, or username and password; for oci: .dockerconfigjson, or username and password. Only the "
        "container that downloads has it.",
        examples=[{"name": "bucket-reader"}],
    )
    endpoint: Endpoint | None = Field(
        None,
        description="The S3 server; left out: AWS. For oci: the registry's URL, where that is not https:// and its "
        "name, such as http://registry.example.com:5000.",
        examples=["https://minio.storage.svc:9000"],
    )
    region: Region | None = Field(None, description="The bucket's region; left out: us-east-1.", examples=["eu-west-1"])
    ca_bundle: CaBundle | None = Field(None, description="Certificates, instead of the public ones, to verify with.")


REMOTE_RULES = (
    make_rule(
        "has(self.uri) || !(has(self.secret) || has(self.endpoint) || has(self.region) || has(self.caBundle))",
        "secret, endpoint, region and caBundle belong to uri: set uri, or remove them",
    ),
    make_rule(
        "!has(self.uri) || self.uri.startsWith('s3://') || !has(self.region)",
        "region belongs to s3://: remove it",
    ),
    make_rule(
        "!has(self.uri) || !self.uri.startsWith('https://') || !has(self.endpoint)",
        "endpoint belongs to s3:// and oci://: remove it",
    ),
)
