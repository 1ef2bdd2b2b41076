"""`status` of a FineTuneJob."""

from typing import Annotated, Literal

from pydantic import Field

from hone_api.artifacts.manifest import ArtifactKind, BaseConfig
from hone_api.artifacts.memory_estimate import Estimate
from hone_api.artifacts.trainer_reports import Parameters, Progress, TrackerReports
from hone_api.common import ApiModel, Conditions
from hone_api.figures import Figures
from hone_api.finetunejobs.push import MOST_DESTINATIONS

Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


class Artifact(ApiModel):
    """The artifact on its claim."""

    kind: ArtifactKind = Field(description="What was saved.")
    claim: str = Field(description="The PersistentVolumeClaim.")
    path: str = Field(description="Folder on the claim; manifest.json lies in it.")
    digest: str = Field(description="sha256 over the digests of all files, as in manifest.json.")
    base_model: str = Field(description="The base model.")
    base_revision: str | None = Field(None, description="The commit of the base model, when it came from the hub.")
    base_config: BaseConfig | None = Field(None, description="What decides which engine takes the base model.")


class Push(ApiModel):
    """What came of the push to one destination."""

    address: str = Field(
        description="The destination: s3://BUCKET/FOLDER, hf://OWNER/NAME or oci://REGISTRY/REPOSITORY:TAG."
    )
    endpoint: str | None = Field(None, description="The server of the address, where the destination names one.")
    digest: str | None = Field(None, description="Digest of the artifact that is complete there.")
    revision: str | None = Field(None, description="The commit on the hub, or the digest in the registry.")
    reason: str | None = Field(None, description="Why the last push failed, in UpperCamelCase.")
    message: str | None = Field(None, description="Why, in a sentence, and what to do.")


class Attempt(ApiModel):
    """One pod of the trainer, from its start to its end."""

    pod: str = Field(description="Name of the pod.")
    uid: str = Field(description="Its uid.")
    node: str | None = Field(None, description="The node it ran on.")
    start_time: Time = Field(description="When the trainer started.")
    end_time: Time | None = Field(None, description="When it ended.")
    seconds: Annotated[int, Field(ge=0)] = Field(description="How long it ran, as far as gpuSeconds counts it.")
    exit_code: int | None = Field(None, description="Its exit code.")
    reason: str | None = Field(None, description="Why it ended, in UpperCamelCase.")


Stage = Literal["Pending", "Preparing", "Training", "Saving", "Succeeded", "Failed", "Suspended"]


class FineTuneJobStatus(ApiModel):
    """What was observed."""

    stage: Stage | None = Field(None, description="Where the job is in its life.")
    conditions: Conditions = Field(
        [],
        description="Accepted, Prepared, Running, Suspended, Succeeded, Failed, Pushed; for tools Ready, Reconciling "
        "and Stalled, as kstatus defines them.",
    )
    progress: Progress | None = Field(None, description="How far training is.")
    parameters: Parameters | None = Field(None, description="How many parameters there are.")
    estimate: Estimate | None = Field(None, description="The device memory that a process is estimated to need.")
    metrics: Figures = Field(
        {}, description="Final metrics, such as trainLoss, evalLossBefore, evalLossAfter and trainRuntime (seconds)."
    )
    tracking: TrackerReports | None = Field(
        None, description="Each tracker of spec.tracking: its run, and how much it has not received."
    )
    artifact: Artifact | None = Field(None, description="The result, once it is complete.")
    pushes: list[Push] = Field(
        [], max_length=MOST_DESTINATIONS, description="The destinations of spec.output.push, in their order."
    )
    attempts: list[Attempt] = Field([], max_length=100, description="The newest pods of the trainer.")
    restarts: Annotated[int, Field(ge=0)] | None = Field(
        None, description="How often the trainer was restarted, for any reason."
    )
    gpu_seconds: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Seconds that GPUs were held by running trainers, times their number, over all attempts."
    )
    start_time: Time | None = Field(None, description="When the first trainer pod started.")
    completion_time: Time | None = Field(None, description="When the job succeeded or failed.")
    observed_generation: int | None = Field(None, description="The metadata.generation that this status speaks of.")
