"""`spec.output` of a FineTuneJob."""

from typing import Literal

from pydantic import ConfigDict, Field

from hone_api.common import ApiModel, ClaimReference, ObjectName, Quantity, declare_rules, make_rule
from hone_api.finetunejobs.push import PushDestinations


class ClaimStorage(ApiModel):
    """The claim that is made for the artifact."""

    size: Quantity = Field("50Gi", description="Size of the claim.", examples=["50Gi"])
    storage_class_name: ObjectName | None = Field(None, description="StorageClass; left out: the cluster's default.")
    access_modes: list[Literal["ReadWriteOnce", "ReadWriteOncePod", "ReadWriteMany"]] = Field(
        ["ReadWriteOnce"],
        min_length=1,
        max_length=3,
        description="Access modes. Serving on other nodes while training runs needs ReadWriteMany.",
    )


class OutputOptions(ApiModel):
    """Where the artifact goes, and in what form."""

    model_config = ConfigDict(
        json_schema_extra=declare_rules(
            make_rule(
                "!(has(self.claim) && has(self.storage))",
                "set claim (a claim that exists) or storage (a claim that Hone makes), not both",
            )
        )
    )

    save: Literal["adapter", "merged", "both"] | None = Field(
        None,
        description="For methods lora and qlora: the adapter, the unquantized base with the adapter merged into it, "
        "or both; left out: adapter. Method full always saves the full model.",
        examples=["adapter"],
    )
    claim: ClaimReference | None = Field(
        None, description="A claim that exists; left out: one is made, named after the job."
    )
    storage: ClaimStorage | None = Field(None, description="The claim that is made.")
    push: PushDestinations = Field(
        [],
        description="Places that the artifact is copied to once it is complete. They may change at any time.",
        examples=[[{"uri": "s3://models/faq/", "secret": {"name": "bucket-writer"}}, {"hub": {"repo": "my-org/faq"}}]],
    )
