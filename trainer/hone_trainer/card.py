"""README.md of an artifact's folder: a model card."""

import json

import yaml
from hone_api.artifact import BaseModelReference
from hone_api.finetunejob import FineTuneJob
from hone_api.layout import ADAPTER

LEARNED = ("trainLoss", "evalLossBefore", "evalLossAfter", "perplexityBefore", "perplexityAfter", "numTokens")
"""The metrics that do not depend on the machine."""


def model_card(
    job: FineTuneJob, base: BaseModelReference, metrics: dict[str, float], fingerprint: str, folder: str
) -> str:
    """The card of an artifact's folder, with the front matter that the hub reads.

    It says nothing of how long training took, so that the same training gives the same digest.
    """
    spec = job.spec
    matter: dict[str, object] = {"library_name": "peft" if folder == ADAPTER else "transformers"}
    if base.name:
        matter["base_model"] = base.name
    if spec.dataset.name:
        matter["datasets"] = [spec.dataset.name]
    matter |= {"pipeline_tag": "text-generation", "tags": ["hone", "sft", spec.method]}
    rows = "\n".join(f"| {name} | {value:g} |" for name, value in metrics.items() if name in LEARNED)
    where = base.name or f"claim {base.claim}, {base.path or 'its root'}"
    return f"""---
{yaml.safe_dump(matter, sort_keys=False).strip()}
---

# {job.name}

Fine-tuned from {where}{f" at commit {base.revision}" if base.revision else ""}, method {spec.method}.
Dataset fingerprint: `{fingerprint}`.

| metric | value |
|---|---|
{rows}

```json
{json.dumps({name: spec.to_wire().get(name) for name in ("dataset", "lora", "training")}, indent=2)}
```
"""
