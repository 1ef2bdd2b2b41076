"""README.md of an artifact's folder: a model card for the hub, see https://huggingface.co/docs/hub/model-cards

Input is the job, its metrics and the base model's licence; `storage.artifact` writes the text into each folder.
"""

import json
from pathlib import Path
from typing import Any

import yaml
from hone_api.artifacts.manifest import BaseModelReference
from hone_api.finetunejobs.sources import DatasetSource
from hone_api.finetunejobs.spec import FineTuneJob, FineTuneJobSpec
from hone_api.layout import ADAPTER
from huggingface_hub import EvalResult, ModelCardData, metadata_load

from hone_trainer.inputs.named_datasets import describe_source

# The metrics that do not depend on the machine.
LEARNED = ("trainLoss", "evalLossBefore", "evalLossAfter", "perplexityBefore", "perplexityAfter", "numTokens")
# What to import, and the class that loads the folder, by library.
LOADING = {
    "peft": ("from peft import AutoPeftModelForCausalLM\n", "AutoPeftModelForCausalLM"),
    "transformers": ("", "AutoModelForCausalLM"),
}


def make_model_card(
    job: FineTuneJob,
    base: BaseModelReference,
    license: dict[str, str],
    metrics: dict[str, float],
    fingerprint: str,
    folder: str,
) -> str:
    """Return the card of an artifact's folder, with the front matter that the hub reads; `license` is the base model's.

    The card omits how long training took, so that the same training gives the same digest.
    """
    spec, library = job.spec, "peft" if folder == ADAPTER else "transformers"
    rows = "\n".join(f"| {name} | {metrics[name]:g} |" for name in LEARNED if name in metrics)
    where = f"[{base.name}](https://huggingface.co/{base.name})" if base.name else base.uri or f"claim {base.claim}"
    path = f", {base.path}" if base.path else ""
    imported, loader = LOADING[library]
    names = "AutoTokenizer" if imported else f"{loader}, AutoTokenizer"
    return f"""---
{make_front_matter(job, base, license, metrics, library).to_yaml()}
---

# {job.name}

Fine-tuned from {where}{path}{f" at commit {base.revision}" if base.name and base.revision else ""} by
Hone, method {spec.method}.
Dataset fingerprint: `{fingerprint}`.

| metric | value |
|---|---|
{rows}

## Load

```python
{imported}from transformers import {names}

model = {loader}.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
```

## Serve

`hone serve DIR`, where DIR is the folder with `manifest.json` that this one lies in; in a cluster:

```yaml
apiVersion: hone.dev/v1alpha1
kind: InferenceService
metadata: {{name: {job.name}}}
spec:
  model: {{fineTuneJob: {{name: {job.name}}}}}
```

## Trained with

```json
{json.dumps(_select_settings(spec), indent=2)}
```
"""


def _select_settings(spec: FineTuneJobSpec) -> dict[str, Any]:
    wire = spec.to_wire()
    return {name: wire.get(name) for name in ("datasets" if spec.datasets else "dataset", "lora", "training")}


def make_front_matter(
    job: FineTuneJob, base: BaseModelReference, license: dict[str, str], metrics: dict[str, float], library: str
) -> ModelCardData:
    """Return what the hub shows and searches. A merged model counts as a finetune: a merge has several bases there."""
    spec = job.spec
    further: dict[str, Any] = {**license}
    if base.name:
        further["base_model_relation"] = "adapter" if library == "peft" else "finetune"
    measured = {"loss": metrics.get("evalLossAfter"), "perplexity": metrics.get("perplexityAfter")}
    evaluated = [source for source in spec.dataset_sources if source.has_evaluation]
    results = [
        _result(evaluated, metric, float(f"{value:.6g}")) for metric, value in measured.items() if value is not None
    ]
    return ModelCardData(
        base_model=base.name,
        datasets=[source.name for source in spec.dataset_sources if source.name] or None,
        library_name=library,
        pipeline_tag="text-generation",
        tags=["hone", "trl", "sft", spec.method],
        metrics=[result.metric_type for result in results] or None,
        eval_results=results or None,
        model_name=job.name,
        **further,
    )


def _result(evaluated: list[DatasetSource], metric: str, value: float) -> EvalResult:
    if len(evaluated) > 1:
        return EvalResult(
            task_type="text-generation",
            task_name="Text Generation",
            dataset_type="custom",
            dataset_name=" and ".join(describe_source(source) for source in evaluated),
            metric_type=metric,
            metric_value=value,
        )
    dataset = evaluated[0]
    share = f"{dataset.eval_fraction:g} of the rows, kept out of training" if dataset.eval_fraction else "evaluation"
    return EvalResult(
        task_type="text-generation",
        task_name="Text Generation",
        dataset_type=dataset.name or "custom",
        dataset_name=dataset.name or share,
        dataset_config=dataset.config,
        dataset_split=(dataset.eval_split or f"{dataset.split} ({share})") if dataset.name else None,
        metric_type=metric,
        metric_value=value,
    )


def read_license(folder: Path | None) -> dict[str, str]:
    """Return license, license_name and license_link, as far as the README.md of the base model's folder gives them."""
    readme = folder / "README.md" if folder else None
    if readme is None or not readme.is_file():
        return {}
    try:
        found: Any = metadata_load(readme) or {}
    except (yaml.YAMLError, ValueError):  # not a model card: it gives no licence
        return {}
    return {
        name: found[name] for name in ("license", "license_name", "license_link") if isinstance(found.get(name), str)
    }
