"""`spec.tracking` of a FineTuneJob: the experiment trackers that get the curves of training."""

from typing import Annotated

from pydantic import ConfigDict, Field

from hone_api.common import ApiModel, LocalSecretReference, declare_rules, make_rule, make_text_field
from hone_api.remote.sources import Endpoint

# The keys of each tracker's Secret, which are the variables that its library reads. No other key is used.
SECRET_KEYS = {
    "mlflow": ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    "wandb": ("WANDB_API_KEY",),
}

TrackingUri = Annotated[
    str,
    make_text_field(
        r"^https?://[^?#@\s]+$",
        "must be the URL of an MLflow server, such as http://mlflow.tracking.svc:5000, without user and password: "
        "credentials belong in a Secret, which secret names",
        max_length=1024,
    ),
]
TrackedName = Annotated[
    str,
    make_text_field(
        r"^[A-Za-z0-9]([-A-Za-z0-9_./ ]*[A-Za-z0-9])?$",
        "must be letters, digits, '-', '_', '.', '/' and spaces, such as faq-bot",
        max_length=128,
    ),
]
ProjectName = Annotated[
    str,
    make_text_field(
        r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
        "must be letters, digits, '-', '_' and '.', such as faq-bot",
        max_length=128,
    ),
]


class MLflowOptions(ApiModel):
    """An MLflow server."""

    uri: TrackingUri = Field(description="The server.", examples=["http://mlflow.tracking.svc:5000"])
    experiment: TrackedName | None = Field(
        None, description="Experiment, created if it does not exist; left out: MLflow's Default.", examples=["faq-bot"]
    )
    secret: LocalSecretReference | None = Field(
        None,
        description="Secret with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN.",
        examples=[{"name": "mlflow"}],
    )


class WandbOptions(ApiModel):
    """Weights & Biases."""

    model_config = ConfigDict(
        json_schema_extra=declare_rules(
            make_rule(
                "has(self.secret) || !has(self.baseUrl)", "baseUrl needs an API key: set secret, or remove baseUrl"
            )
        )
    )

    project: ProjectName = Field(description="Project.", examples=["faq-bot"])
    entity: ProjectName | None = Field(None, description="User or team; left out: the key's own.", examples=["my-team"])
    base_url: Endpoint | None = Field(
        None, description="A server of your own; left out: wandb.ai.", examples=["https://wandb.example.com"]
    )
    secret: LocalSecretReference | None = Field(
        None,
        description="Secret with WANDB_API_KEY; left out: nothing is sent, and `wandb sync` uploads logs/wandb later.",
        examples=[{"name": "wandb"}],
    )


class TrackioOptions(ApiModel):
    """Trackio, whose database is written to logs/trackio next to the artifact."""

    project: ProjectName = Field(description="Project.", examples=["faq-bot"])


class TrackingOptions(ApiModel):
    """The trackers, each of which gets the curves, the settings and tags of the run."""

    model_config = ConfigDict(
        json_schema_extra=declare_rules(
            make_rule("has(self.mlflow) || has(self.wandb) || has(self.trackio)", "set mlflow, wandb or trackio")
        )
    )

    mlflow: MLflowOptions | None = Field(None, description="MLflow.", examples=[{"uri": "http://mlflow:5000"}])
    wandb: WandbOptions | None = Field(None, description="Weights & Biases.", examples=[{"project": "faq-bot"}])
    trackio: TrackioOptions | None = Field(None, description="Trackio.", examples=[{"project": "faq-bot"}])

    @property
    def names(self) -> list[str]:
        """The trackers that are set."""
        return [name for name in type(self).model_fields if getattr(self, name)]

    @property
    def secrets(self) -> dict[str, str]:
        """The Secret of each tracker that has one."""
        found = {"mlflow": self.mlflow and self.mlflow.secret, "wandb": self.wandb and self.wandb.secret}
        return {name: secret.name for name, secret in found.items() if secret}
