"""The names that the report's tables use for the fields of report.json, and what each means.

In: the path of a field, such as `lengths p50`. Out: a label with its unit, and an explanation for the list at the end
of the page. The explanations of dataset and estimate are the descriptions of the contract's models.
"""

from dataclasses import dataclass

from hone_api.artifacts.dataset_report import Lengths, MixedDataset, SplitReport
from hone_api.artifacts.memory_estimate import Estimate
from pydantic import BaseModel
from pydantic.alias_generators import to_camel


@dataclass(frozen=True)
class Term:
    """A field's label, its explanation, and the page of the documentation about it."""

    label: str
    explanation: str
    page: str


def _describe(model: type[BaseModel], prefix: str, page: str, labels: dict[str, str]) -> dict[str, Term]:
    """Return the terms of a model's fields, with their descriptions as explanations."""
    return {
        f"{prefix}{to_camel(name)}": Term(label, model.model_fields[name].description or "", page)
        for name, label in labels.items()
    }


REPORT, DATASET, MEMORY = "docs/report.md", "docs/training.md", "docs/memory.md"
DATASET_LABELS = {
    "rows": "Rows",
    "tokens": "Tokens",
    "trained_tokens": "Tokens that the loss is computed on",
    "truncated_rows": "Truncated rows",
    "truncated_tokens": "Truncated tokens",
    "empty_rows": "Rows without a token to learn",
    "dropped_rows": "Dropped rows",
    "duplicate_rows": "Duplicate rows",
    "kept_rows": "Rows trained on, after packing",
}
LENGTH_LABELS = {
    "p50": "Tokens per row, median",
    "p95": "Tokens per row, 95th percentile",
    "max": "Tokens per row, longest",
}
MIXED_LABELS = {
    "weight": "Weight",
    "used_rows": "Mixed rows",
    "used_tokens": "Mixed tokens",
    "share": "Share of the tokens",
}
ESTIMATE_LABELS = {
    "processes": "Training processes",
    "batch": "Rows per step and process",
    "length": "Tokens per row",
    "peak": "Step with the highest memory",
    "weights": "Weights",
    "gradients": "Gradients",
    "optimizer_states": "Optimizer states",
    "activations": "Activations",
    "logits": "Logits and loss",
    "communication": "Communication buffers",
    "allowance": "Allowance",
    "total": "Total, estimated",
}
TERMS = {
    "evalLoss": Term("Evaluation loss", "Mean loss on rows that were not trained on; lower is better.", REPORT),
    "perplexity": Term("Perplexity", "e to the power of the evaluation loss; lower is better.", REPORT),
    **_describe(SplitReport, "", DATASET, DATASET_LABELS),
    **_describe(Lengths, "lengths ", DATASET, LENGTH_LABELS),
    **_describe(MixedDataset, "mixed ", DATASET, MIXED_LABELS),
    "maxLength": Term(
        "Limit of a row, in tokens", "spec.training.maxLength: longer rows are truncated or dropped.", DATASET
    ),
    **_describe(Estimate, "estimate ", MEMORY, ESTIMATE_LABELS),
    "measured deviceMemoryAllocated": Term(
        "Peak of allocated GPU memory, measured", "The most that PyTorch's tensors took on one device.", MEMORY
    ),
    "measured deviceMemoryReserved": Term(
        "Peak of reserved GPU memory, measured",
        "The most that PyTorch's allocator held on one device, unused blocks included.",
        MEMORY,
    ),
    "measured processMemory": Term(
        "Peak of process memory, measured",
        "The largest resident set of the training process, libraries included.",
        MEMORY,
    ),
    "digest": Term(
        "Digest of the artifact", "SHA-256 over the names, sizes and hashes of all files in it.", "docs/concepts.md"
    ),
    "datasetFingerprint": Term(
        "Fingerprint of the dataset", "Hash of the rows' content; it differs when any row differs.", "docs/concepts.md"
    ),
}
