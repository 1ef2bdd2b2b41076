"""The examples of docs/pods.md, and the Jobs that they lead to."""

from pathlib import Path
from typing import Any

import yaml
from hone_api.finetunejobs.spec import FineTuneJob
from hone_operator.finetunejob import jobs

PAGE = Path(__file__).parents[2] / "docs/pods.md"
EXAMPLES = [yaml.safe_load(part.partition("```")[0]) for part in PAGE.read_text().split("```yaml\n")[1:]]
JOBS = {one["metadata"]["name"]: one for one in EXAMPLES if one["kind"] == "FineTuneJob"}


def job_of(manifest: dict[str, Any], *, prepares: bool = False) -> dict[str, Any]:
    metadata = manifest["metadata"] | {"namespace": "default", "uid": "3f1c7a52-0000-4000-8000-000000000000"}
    owner, job = manifest | {"metadata": metadata}, FineTuneJob.model_validate(manifest)
    if prepares:
        return jobs.build_prepare_job(owner, job, "hone:1", None)
    return jobs.build_train_job(owner, job, "hone:1")
