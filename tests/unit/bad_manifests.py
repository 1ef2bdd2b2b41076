"""Manifests that are refused: a change to a good one each, with the sentence that the user reads.

`hone validate` (offline) and the API server must both say it.
"""

# ruff: noqa: E501 (a sentence stands in one piece, so that it can be searched for)

import copy
from typing import Any, NamedTuple

REMOVED = object()

URI = (
    "must be s3://BUCKET/KEY, https://HOST/PATH or oci://REGISTRY/REPOSITORY:TAG (or @sha256:DIGEST), without "
    "user, password, query and fragment: credentials belong in a Secret, which secret names"
)
OWN = "is where Hone's pods keep their own files: choose another path, such as /mnt/data"
ABSOLUTE = "must be an absolute path without '.', '..', '//' and ':', such as /etc/ssl/private-ca"

GOOD: dict[str, dict[str, Any]] = {
    "FineTuneJob": {
        "apiVersion": "hone.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "bad"},
        "spec": {
            "model": {"name": "Qwen/Qwen2.5-0.5B-Instruct", "revision": "main"},
            "dataset": {"name": "mlabonne/guanaco-llama2-1k", "columns": {"text": "text"}},
            "method": "lora",
            "lora": {"r": 8, "targetModules": ["q_proj", "v_proj"]},
            "training": {"numTrainEpochs": 1, "learningRate": 2e-4, "extra": {"optimArgs": "x=1"}},
            "output": {"claim": {"name": "results"}, "save": "adapter"},
            "resources": {"gpus": 0, "cpu": 8, "memory": "64Gi"},
            "tokenSecret": {"name": "hf-token"},
            "pod": {
                "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
                "tolerations": [{"key": "gpu", "operator": "Exists"}],
                "supplementalGroups": [109],
                "labels": {"team": "nlp"},
            },
        },
    },
    "InferenceService": {
        "apiVersion": "hone.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": "bad"},
        "spec": {
            "model": {"fineTuneJob": {"name": "llama2-guanaco"}},
            "adapters": [
                {"name": "support", "fineTuneJob": {"name": "support-lora"}},
                {"name": "legal", "claim": {"name": "adapters", "path": "legal"}},
            ],
            "replicas": 2,
            "maxModelLen": 4096,
            "extraArgs": ["--seed=1"],
            "resources": {"gpus": 1},
        },
    },
}


class Bad(NamedTuple):
    """`changes` maps paths such as `spec.adapters.0.name` to new values, or to REMOVED."""

    kind: str
    changes: dict[str, Any]
    sentence: str

    def manifest(self) -> dict[str, Any]:
        return changed(GOOD[self.kind], self.changes)

    def __str__(self) -> str:
        return f"{self.kind}-{','.join(self.changes)}-{self.sentence[-40:]}"


def changed(good: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a manifest with values at paths replaced or removed."""
    manifest = copy.deepcopy(good)
    for path, value in changes.items():
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        place: Any = manifest
        for part in parents:
            place = place[part] if isinstance(place, list) else place.setdefault(part, {})
        if value is REMOVED:
            del place[last]
        else:
            place[last] = value
    return manifest


NAME = (
    "must be a DNS label of at most 52 characters, beginning with a letter, such as my-job: "
    "what Hone makes for the object is named after it"
)
HUB = "must be a name on the hub such as owner/name, neither a URL nor a path"
OBJECT = "must be the name of a Kubernetes object: lower-case letters, digits, '-' and '.', such as my-name"

_JOBS: list[tuple[dict[str, Any], str]] = [
    # the object itself
    ({"kind": "FineTunJob"}, 'no matches for kind "FineTunJob" in version "hone.dev/v1alpha1"'),
    ({"apiVersion": "hone.dev/v1"}, 'no matches for kind "FineTuneJob" in version "hone.dev/v1"'),
    ({"metadata.name": "My_Job"}, "metadata.name: Invalid value: " + NAME),
    ({"metadata.name": "1st"}, "metadata.name: Invalid value: " + NAME),
    ({"metadata.name": "a.b"}, "metadata.name: Invalid value: " + NAME),
    ({"metadata.name": "a" * 53}, "metadata.name: Invalid value: " + NAME),
    ({"metadata.label": {}}, 'unknown field "metadata.label"'),
    ({"spec": REMOVED}, "spec: Required value"),
    ({"spec": "x"}, 'spec: Invalid value: "string": spec in body must be of type object: "string"'),
    ({"specs": {}}, 'unknown field "specs"'),
    # unknown fields
    ({"spec.methd": "lora"}, 'unknown field "spec.methd"'),
    ({"spec.training.learning_rate": 1e-4}, 'unknown field "spec.training.learning_rate"'),
    ({"spec.training.extra.outputDir": "/x"}, 'unknown field "spec.training.extra.outputDir"'),
    ({"spec.dataset.columns.question": "q"}, 'unknown field "spec.dataset.columns.question"'),
    ({"spec.pod.env.0.valueFrom": {"secret": {}}}, 'unknown field "spec.pod.env[0].valueFrom.secret"'),
    ({"spec.pod.hostPID": True}, 'unknown field "spec.pod.hostPID"'),
    ({"spec.pod.restartPolicy": "Always"}, 'unknown field "spec.pod.restartPolicy"'),
    (
        {"spec.pod.affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecutions": {}}}},
        'unknown field "spec.pod.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecutions"',
    ),
    # model
    ({"spec.model": REMOVED}, "spec.model: Required value"),
    (
        {"spec.model.claim": {"name": "m"}},
        "spec.model: Invalid value: set exactly one of name (a model on the hub), claim and uri",
    ),
    ({"spec.model": {}}, "spec.model: Invalid value: set exactly one of name (a model on the hub), claim and uri"),
    (
        {"spec.model": {"claim": {"name": "m"}, "revision": "main"}},
        "spec.model: Invalid value: revision belongs to a model on the hub: set name, or remove it",
    ),
    ({"spec.model.name": "https://hub/a/b"}, 'spec.model.name: Invalid value: "https://hub/a/b": ' + HUB),
    ({"spec.model.name": ""}, 'spec.model.name: Invalid value: "": ' + HUB),
    ({"spec.model.name": "a" * 194}, "spec.model.name: Too long: may not be more than 193 bytes"),
    (
        {"spec.model.revision": "a b"},
        'spec.model.revision: Invalid value: "a b": must be a branch, tag or commit, such as main or v1.0',
    ),
    (
        {"spec.model.dtype": "fp16"},
        'spec.model.dtype: Unsupported value: "fp16": supported values: "auto", "float32", "bfloat16", "float16"',
    ),
    (
        {"spec.model.trustRemoteCode": "yes"},
        'spec.model.trustRemoteCode: Invalid value: "string": spec.model.trustRemoteCode in body must be of type boolean: "string"',
    ),
    ({"spec.model": {"claim": {"path": "x"}}}, "spec.model.claim.name: Required value"),
    ({"spec.model": {"claim": {"name": "A"}}}, 'spec.model.claim.name: Invalid value: "A": ' + OBJECT),
    (
        {"spec.model": {"claim": {"name": "m", "path": "/llama"}}},
        """spec.model.claim.path: Invalid value: "/llama": must be a path relative to the claim's root, such as models/llama: no leading '/'""",
    ),
    (
        {"spec.model": {"claim": {"name": "m", "path": "../llama"}}},
        """spec.model.claim.path: Invalid value: "../llama": must stay on the claim: remove the '..'""",
    ),
    # dataset
    (
        {"spec.dataset": REMOVED},
        "spec: Invalid value: set exactly one of dataset (one dataset) and datasets (several)",
    ),
    (
        {"spec.datasets": [{"name": "c/d"}]},
        "spec: Invalid value: set exactly one of dataset (one dataset) and datasets (several)",
    ),
    (
        {"spec.dataset": REMOVED, "spec.datasets": []},
        "spec.datasets: Invalid value: 0: spec.datasets in body should have at least 1 items",
    ),
    (
        {"spec.dataset": REMOVED, "spec.datasets": [{"name": "c/d"}] * 17},
        "spec.datasets: Too many: 17: must have at most 16 items",
    ),
    (
        {"spec.dataset": REMOVED, "spec.datasets": [{"name": "a/b", "weight": 1}, {"name": "c/d"}]},
        "spec: Invalid value: weight belongs to all of datasets or to none: set it in each of them, or remove it",
    ),
    (
        {"spec.dataset": REMOVED, "spec.datasets": [{"name": "a/b", "weight": 0}]},
        "spec.datasets[0].weight: Invalid value: 0: spec.datasets[0].weight in body should be greater than 0",
    ),
    (
        {"spec.dataset": REMOVED, "spec.datasets": [{"name": "a/b"}, {"name": "c/d", "claim": {"name": "data"}}]},
        "spec.datasets[1]: Invalid value: set exactly one of name (a dataset on the hub), configMap, claim and uri",
    ),
    (
        {
            "spec.dataset": REMOVED,
            "spec.datasets": [{"name": "a/b", "chatTemplate": "x"}, {"name": "c/d", "chatTemplate": "x"}],
        },
        "spec: Invalid value: chatTemplate is for all of datasets: set it in one of them",
    ),
    (
        {"spec.dataset": REMOVED, "spec.datasets": [{"name": "a/b"}], "spec.training.evalSteps": 5},
        "spec: Invalid value: training.evalSteps needs rows to evaluate on: set dataset.evalFraction or evalSplit, or remove it",
    ),
    (
        {"spec.dataset.configMap": {"name": "faq", "key": "train.jsonl"}},
        "spec.dataset: Invalid value: set exactly one of name (a dataset on the hub), configMap, claim and uri",
    ),
    (
        {"spec.dataset": {"claim": {"name": "d"}, "config": "default"}},
        "spec.dataset: Invalid value: config and revision belong to a dataset on the hub: set name, or remove them",
    ),
    (
        {"spec.dataset": {"claim": {"name": "d"}, "revision": "main"}},
        "spec.dataset: Invalid value: config and revision belong to a dataset on the hub: set name, or remove them",
    ),
    (
        {"spec.dataset": {"claim": {"name": "d"}, "split": "test"}},
        "spec.dataset: Invalid value: split belongs to a dataset on the hub, and files are all train: remove it, and name the files in path",
    ),
    ({"spec.dataset": {"configMap": {"name": "faq"}}}, "spec.dataset.configMap.key: Required value"),
    (
        {"spec.dataset": {"configMap": {"name": "faq", "key": "a/b.jsonl"}}},
        """spec.dataset.configMap.key: Invalid value: "a/b.jsonl": must be a key: letters, digits, '-', '_' and '.', such as train.jsonl""",
    ),
    (
        {"spec.dataset": {"uri": "http://host/faq.jsonl"}},
        'spec.dataset.uri: Invalid value: "http://host/faq.jsonl": ' + URI,
    ),
    (
        {"spec.dataset": {"uri": "gs://bucket/faq"}},
        'spec.dataset.uri: Invalid value: "gs://bucket/faq": ' + URI,
    ),
    (
        {"spec.dataset": {"uri": "https://me:secret@host/faq.jsonl"}},
        URI,  # the API server shows the value, `hone validate` does not
    ),
    (
        {"spec.dataset": {"uri": "https://host/faq.jsonl?X-Amz-Signature=1"}},
        URI,  # the API server shows the value, `hone validate` does not
    ),
    (
        {"spec.dataset": {"uri": "oci://host/faq"}},
        'spec.dataset.uri: Invalid value: "oci://host/faq": ' + URI,
    ),
    (
        {"spec.dataset": {"claim": {"name": "d"}, "region": "eu-west-1"}},
        "spec.dataset: Invalid value: secret, endpoint, region and caBundle belong to uri: set uri, or remove them",
    ),
    (
        {"spec.model": {"uri": "https://host/model/", "endpoint": "https://host"}},
        "spec.model: Invalid value: endpoint belongs to s3:// and oci://: remove it",
    ),
    (
        {"spec.output.push": [{"uri": "s3://models/faq", "hub": {"repo": "me/faq"}}]},
        "spec.output.push[0]: Invalid value: set exactly one of hub (a repository on the hub), uri (a bucket) and oci (a registry)",
    ),
    (
        {"spec.output.push": [{"hub": {"repo": "me/faq"}, "secret": {"name": "hub"}}]},
        "spec.output.push[0]: Invalid value: secret, endpoint and caBundle belong to uri and oci: remove them; the hub's token belongs in hub.tokenSecret",
    ),
    (
        {"spec.output.push": [{"oci": "host/faq:v1", "region": "eu-west-1"}]},
        "spec.output.push[0]: Invalid value: region belongs to uri: remove it",
    ),
    (
        {"spec.output.push": [{"hub": {"repo": "faq"}}]},
        'spec.output.push[0].hub.repo: Invalid value: "faq": must be a repository on the hub with its owner, such as owner/name',
    ),
    (
        {"spec.output.push": [{"uri": "https://models/faq"}]},
        'spec.output.push[0].uri: Invalid value: "https://models/faq": must be s3://BUCKET/FOLDER, without user, password, query and fragment: credentials belong in a Secret, which secret names',
    ),
    (
        {"spec.output.push": [{"oci": "oci://host/faq:v1"}]},
        'spec.output.push[0].oci: Invalid value: "oci://host/faq:v1": must be REGISTRY/REPOSITORY:TAG, such as registry.example.com/models/faq:v1: no https://, and no digest, which is known after the push',
    ),
    (
        {"spec.model": {"uri": "oci://host/model:v1", "region": "eu-west-1"}},
        "spec.model: Invalid value: region belongs to s3://: remove it",
    ),
    (
        {"spec.model": {"uri": "s3://models/tiny", "endpoint": "minio:9000"}},
        'spec.model.endpoint: Invalid value: "minio:9000": must be the URL of a host, such as https://minio.storage.svc:9000',
    ),
    (
        {"spec.dataset.format": "chat"},
        'spec.dataset.format: Unsupported value: "chat": supported values: "auto", "text", "prompt-completion", "messages"',
    ),
    (
        {"spec.dataset.split": ""},
        'spec.dataset.split: Invalid value: "": spec.dataset.split in body should be at least 1 chars long',
    ),
    (
        {"spec.dataset.maxSamples": 0},
        "spec.dataset.maxSamples: Invalid value: 0: spec.dataset.maxSamples in body should be greater than or equal to 1",
    ),
    (
        {"spec.dataset.maxSamples": 1.5},
        'spec.dataset.maxSamples: Invalid value: "number": spec.dataset.maxSamples in body must be of type integer: "number"',
    ),
    (
        {"spec.dataset": {"claim": {"name": "d"}, "evalSplit": "test"}},
        "spec.dataset: Invalid value: evalSplit belongs to a dataset on the hub, and files are all train: "
        "set evalFraction instead",
    ),
    (
        {"spec.dataset": {"name": "a/b", "evalSplit": "test", "evalFraction": 0.1}},
        "spec.dataset: Invalid value: set evalSplit (a split to evaluate on) or evalFraction (a share of the rows), "
        "not both",
    ),
    (
        {"spec.dataset.evalFraction": 1},
        "spec.dataset.evalFraction: Invalid value: 1: spec.dataset.evalFraction in body should be less than 1",
    ),
    (
        {"spec.dataset.evalFraction": 0},
        "spec.dataset.evalFraction: Invalid value: 0: spec.dataset.evalFraction in body should be greater than 0",
    ),
    # method and adapter
    ({"spec.method": "loraa"}, 'spec.method: Unsupported value: "loraa": supported values: "lora", "qlora", "full"'),
    (
        {"spec.method": 5},
        'spec.method: Invalid value: "integer": spec.method in body must be of type string: "integer"',
    ),
    (
        {"spec.method": "full"},
        "spec: Invalid value: lora belongs to methods lora and qlora: remove it, or set method: lora",
    ),
    (
        {"spec.method": "full"},
        "spec: Invalid value: output.save belongs to methods lora and qlora, since method full always saves the full model: remove it",
    ),
    (
        {"spec.method": "qlora", "spec.model.dtype": "bfloat16"},
        "spec: Invalid value: model.dtype has no effect with method qlora, which loads the weights in 4 bits: remove it",
    ),
    (
        {"spec.method": "qlora", "spec.training.fp16": True},
        "spec: Invalid value: training.fp16 does not go with method qlora, whose adapters are bfloat16: remove it",
    ),
    (
        {"spec.lora.useDora": "yes"},
        'spec.lora.useDora: Invalid value: "string": spec.lora.useDora in body must be of type boolean: "string"',
    ),
    ({"spec.lora.r": 0}, "spec.lora.r: Invalid value: 0: spec.lora.r in body should be greater than or equal to 1"),
    (
        {"spec.lora.r": 5000},
        "spec.lora.r: Invalid value: 5000: spec.lora.r in body should be less than or equal to 4096",
    ),
    (
        {"spec.lora.loraAlpha": 1e7},
        "spec.lora.loraAlpha: Invalid value: 10000000: spec.lora.loraAlpha in body should be less than or equal to 65536",
    ),
    (
        {"spec.lora.loraDropout": 1.5},
        "spec.lora.loraDropout: Invalid value: 1.5: spec.lora.loraDropout in body should be less than 1",
    ),
    (
        {"spec.lora.bias": "some"},
        'spec.lora.bias: Unsupported value: "some": supported values: "none", "all", "lora_only"',
    ),
    (
        {"spec.lora.targetModules": "q_proj"},
        """spec.lora.targetModules: Invalid value: "q_proj": spec.lora.targetModules in body should match '^all-linear$'""",
    ),
    (
        {"spec.lora.targetModules": []},
        "spec.lora.targetModules: Invalid value: 0: spec.lora.targetModules in body should have at least 1 items",
    ),
    (
        {"spec.lora.targetModules": ["q_proj", 5]},
        'spec.lora.targetModules[1]: Invalid value: "integer": spec.lora.targetModules[1] in body must be of type string: "integer"',
    ),
    (
        {"spec.lora.targetModules": ["m"] * 65},
        "spec.lora.targetModules: Too many: 65: must have at most 64 items",
    ),
    # training
    (
        {"spec.training.learningRate": -1},
        "spec.training.learningRate: Invalid value: -1: spec.training.learningRate in body should be greater than 0",
    ),
    (
        {"spec.training.learningRate": -2e-05},
        "spec.training.learningRate: Invalid value: -2e-05: spec.training.learningRate in body should be greater than 0",
    ),
    (
        {"spec.training.learningRate": "2e-4"},
        'spec.training.learningRate: Invalid value: "string": spec.training.learningRate in body must be of type number: "string"',
    ),
    (
        {"spec.training.numTrainEpochs": 12345678.5},
        "spec.training.numTrainEpochs: Invalid value: 1.23456785e+07: spec.training.numTrainEpochs in body should be less than or equal to 10000",
    ),
    (
        {"spec.training.warmupSteps": 2e9 + 0.5},
        "spec.training.warmupSteps: Invalid value: 2.0000000005e+09: spec.training.warmupSteps in body should be less than or equal to 1e+09",
    ),
    (
        {"spec.training.perDeviceTrainBatchSize": 0},
        "spec.training.perDeviceTrainBatchSize: Invalid value: 0: "
        "spec.training.perDeviceTrainBatchSize in body should be greater than or equal to 1",
    ),
    (
        {"spec.training.optim": "adamw_torch_fuse"},
        'spec.training.optim: Unsupported value: "adamw_torch_fuse": supported values: "adafactor", "adagrad", "adalomo", ',
    ),
    (
        {"spec.training.packingStrategy": "ffd"},
        'spec.training.packingStrategy: Unsupported value: "ffd": supported values: "bfd", "bfd_split", "wrapped"',
    ),
    (
        {"spec.training.bf16": True, "spec.training.fp16": True},
        "spec.training: Invalid value: set bf16 or fp16, not both: bf16 where the device has it",
    ),
    (
        {"spec.training.maxLength": 1},
        "spec.training.maxLength: Invalid value: 1: spec.training.maxLength in body should be greater than or equal to 2",
    ),
    (
        {"spec.training.evalSteps": 10},
        "spec: Invalid value: training.evalSteps needs rows to evaluate on: set dataset.evalFraction or evalSplit, or remove it",
    ),
    (
        {"spec.training.lrSchedulerType": "reduce_lr_on_plateau"},
        "spec: Invalid value: training.lrSchedulerType reduce_lr_on_plateau follows the evaluation loss: set dataset.evalFraction or evalSplit, or take another schedule",
    ),
    # evaluation
    ({"spec.evaluation": {}}, "spec.evaluation.prompts: Required value"),
    (
        {"spec.evaluation": {"prompts": []}},
        "spec.evaluation.prompts: Invalid value: 0: spec.evaluation.prompts in body should have at least 1 items",
    ),
    (
        {"spec.evaluation": {"prompts": ["a"] * 51}},
        "spec.evaluation.prompts: Too many: 51: must have at most 50 items",
    ),
    (
        {"spec.evaluation": {"prompts": [""]}},
        'spec.evaluation.prompts[0]: Invalid value: "": spec.evaluation.prompts[0] in body should be at least 1 chars long',
    ),
    (
        {"spec.evaluation": {"prompts": ["a" * 8193]}},
        "spec.evaluation.prompts[0]: Too long: may not be more than 8192 bytes",
    ),
    (
        {"spec.evaluation": {"prompts": ["a"], "maxNewTokens": 0}},
        "spec.evaluation.maxNewTokens: Invalid value: 0: spec.evaluation.maxNewTokens in body should be greater than or equal to 1",
    ),
    (
        {"spec.evaluation": {"prompts": ["a"], "maxNewTokens": 5000}},
        "spec.evaluation.maxNewTokens: Invalid value: 5000: spec.evaluation.maxNewTokens in body should be less than or equal to 4096",
    ),
    (
        {"spec.training.parallelism": "fsdp", "spec.resources.gpus": 1},
        "spec: Invalid value: training.parallelism fsdp splits the model among several GPUs: set resources.gpus or nodes to 2 or more, or remove it",
    ),
    (
        {"spec.training.parallelism": "fsdp", "spec.resources.gpus": 2, "spec.method": "qlora"},
        "spec: Invalid value: training.parallelism fsdp does not go with method qlora, whose weights in 4 bits can't be split: remove it, or set method: lora",
    ),
    (
        {"spec.training.parallelism": "deepspeed"},
        'spec.training.parallelism: Unsupported value: "deepspeed": supported values: "auto", "ddp", "fsdp"',
    ),
    # output and checkpoints
    (
        {"spec.output.storage": {"size": "10Gi"}},
        "spec.output: Invalid value: set claim (a claim that exists) or storage (a claim that Hone makes), not both",
    ),
    (
        {"spec.output": {"storage": {"size": "10 GB"}}},
        'spec.output.storage.size: Invalid value: "10 GB": must be a quantity such as 8, 500m or 64Gi',
    ),
    (
        {"spec.output": {"storage": {"accessModes": ["ReadOnlyMany"]}}},
        'spec.output.storage.accessModes[0]: Unsupported value: "ReadOnlyMany": '
        'supported values: "ReadWriteOnce", "ReadWriteOncePod", "ReadWriteMany"',
    ),
    (
        {"spec.output.save": "all"},
        'spec.output.save: Unsupported value: "all": supported values: "adapter", "merged", "both"',
    ),
    (
        {"spec.checkpoint.saveSteps": 0},
        "spec.checkpoint.saveSteps: Invalid value: 0: spec.checkpoint.saveSteps in body should be greater than or equal to 1",
    ),
    # resources and pods
    (
        {"spec.resources.gpus": 17},
        "spec.resources.gpus: Invalid value: 17: spec.resources.gpus in body should be less than or equal to 16",
    ),
    (
        {"spec.resources.gpus": -1},
        "spec.resources.gpus: Invalid value: -1: spec.resources.gpus in body should be greater than or equal to 0",
    ),
    (
        {"spec.resources": {"nodes": 2}, "spec.output": {"storage": {"accessModes": ["ReadWriteOnce"]}}},
        "spec: Invalid value: resources.nodes above 1 needs a claim that several nodes can mount: set output.storage.accessModes to [ReadWriteMany], or output.claim",
    ),
    (
        {"spec.resources": {"gpus": 0, "nodes": 2}},
        "spec: Invalid value: resources.nodes above 1 is for GPUs: set resources.gpus to 1 or more",
    ),
    (
        {"spec.resources.nodes": 0},
        "spec.resources.nodes: Invalid value: 0: spec.resources.nodes in body should be greater than or equal to 1",
    ),
    (
        {"spec.activeDeadlineSeconds": 0},
        "spec.activeDeadlineSeconds: Invalid value: 0: spec.activeDeadlineSeconds in body should be greater than or equal to 1",
    ),
    (
        {"spec.ttlSecondsAfterFinished": -1},
        "spec.ttlSecondsAfterFinished: Invalid value: -1: spec.ttlSecondsAfterFinished in body should be greater than or equal to 0",
    ),
    (
        {"spec.resources.gpuResource": "gpu"},
        'spec.resources.gpuResource: Invalid value: "gpu": must be the resource of a device plugin, such as amd.com/gpu',
    ),
    (
        {"spec.resources.memory": "64GB"},
        'spec.resources.memory: Invalid value: "64GB": must be a quantity such as 8, 500m or 64Gi',
    ),
    ({"spec.resources.cpu": -1}, "spec.resources.cpu: Invalid value: -1: must be a quantity such as 8, 500m or 64Gi"),
    (
        {"spec.resources.cpu": True},
        'spec.resources.cpu: Invalid value: "boolean": spec.resources.cpu in body must be of type integer,string: "boolean"',
    ),
    (
        {"spec.pod.env.0.name": "1A"},
        """spec.pod.env[0].name: Invalid value: "1A": must be the name of an environment variable: """
        "letters, digits and '_', not beginning with a digit",
    ),
    ({"spec.pod.env.1.name": "A"}, 'spec.pod.env[1]: Duplicate value: {"name":"A"}'),
    (
        {"spec.pod.env.0.valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        "spec.pod.env[0]: Invalid value: set exactly one of value and valueFrom",
    ),
    (
        {"spec.pod.env.0.name": "MASTER_ADDR"},
        'spec.pod.env[0].name: Invalid value: "MASTER_ADDR": is a variable that Hone sets: remove it',
    ),
    (
        {"spec.pod.env.0": {"name": "PYTHONPATH", "valueFrom": {"configMapKeyRef": {"name": "a", "key": "b"}}}},
        "spec.pod.env[0]: Invalid value: PYTHONPATH must be given as value, since Hone adds a folder to it",
    ),
    *(
        (
            {"spec.pod.volumes": [{"name": "a"}], "spec.pod.volumeMounts": [{"name": "a", "mountPath": path}]},
            f'spec.pod.volumeMounts[0].mountPath: Invalid value: "{path}": {why}',
        )
        for paths, why in (
            (("/output", "/output/logs", "/tmp", "/etc", "/etc/hone/x", "/dev/shm", "/", "/cache/", "/proc/self"), OWN),
            (("data", "/mnt/../output", "//output", "/./output", "/a:b"), ABSOLUTE),
        )
        for path in paths
    ),
    (
        {"spec.pod.volumeMounts": [{"name": "output", "mountPath": "/mnt/data"}]},
        "spec.pod: Invalid value: every name in volumeMounts must be that of an item in volumes: add the volume, or correct the name",
    ),
    (
        {"spec.pod.volumes": [{"name": "shm", "emptyDir": {}}]},
        """spec.pod.volumes[0].name: Invalid value: "shm": is the name of a volume that Hone's pods have""",
    ),
    ({"spec.pod.volumes": [{"emptyDir": {}}]}, "spec.pod.volumes[0].name: Required value"),
    (
        {"spec.pod.volumes": [{"name": "a", "emptyDir": {"sizeLimit": "lots"}}]},
        'spec.pod.volumes[0].emptyDir.sizeLimit: Invalid value: "lots": must be a quantity such as 8, 500m or 64Gi',
    ),
    (
        {"spec.pod.initContainers": [{"name": "trainer", "image": "a"}]},
        """spec.pod.initContainers[0].name: Invalid value: "trainer": is the name of a container that Hone's pods have""",
    ),
    (
        {"spec.pod.imagePullPolicy": "Sometimes"},
        'spec.pod.imagePullPolicy: Unsupported value: "Sometimes": supported values: "Always", "IfNotPresent", "Never"',
    ),
    (
        {"spec.pod.securityContext": {"runAsUser": 0}},
        "spec.pod: Invalid value: securityContext.runAsUser 0 is root: choose another user, or set securityContext.runAsNonRoot: false",
    ),
    (
        {"spec.pod.containerSecurityContext": {"runAsUser": 0}},
        "spec.pod: Invalid value: containerSecurityContext.runAsUser 0 is root: choose another user",
    ),
    (
        {"spec.pod.securityContext": {"supplementalGroups": [1]}},
        "spec.pod: Invalid value: supplementalGroups and securityContext.supplementalGroups are the same: remove one",
    ),
    (
        {"spec.pod.dnsPolicy": "None"},
        "spec.pod: Invalid value: dnsPolicy None needs dnsConfig.nameservers: add them, or remove dnsPolicy",
    ),
    (
        {"spec.pod.terminationGracePeriodSeconds": 30},
        "spec: Invalid value: pod.terminationGracePeriodSeconds is too short to save a checkpoint: set it to 60 or more",
    ),
    (
        {"spec.resources": {"cpu": 1, "requests": {"cpu": 2}}},
        "spec.resources: Invalid value: cpu and requests.cpu are the same: remove one of them",
    ),
    (
        {"spec.resources": {"memory": "1Gi", "limits": {"memory": "2Gi"}}},
        "spec.resources: Invalid value: memory is both the request and the limit: remove it",
    ),
    (
        {"spec.resources.limits": {"amd.com/gpu": 1}},
        "spec.resources: Invalid value: the number of GPUs is the field gpus",
    ),
    *(
        (
            {"spec.resources": found},
            "spec.resources: Invalid value: only cpu, memory and ephemeral-storage may have a request that is not the limit",
        )
        for found in ({"requests": {"rdma/hca": 1}}, {"requests": {"rdma/hca": 1}, "limits": {"rdma/hca": 2}})
    ),
    (
        {"spec.pod.tolerations.0.value": "x"},
        "spec.pod.tolerations[0]: Invalid value: value belongs to operator Equal: remove it, or set operator: Equal",
    ),
    (
        {"spec.pod.tolerations": [{"effect": "NoSchedule"}]},
        "spec.pod.tolerations[0]: Invalid value: without a key the operator must be Exists",
    ),
    (
        {"spec.pod.tolerations.0.tolerationSeconds": 5},
        "spec.pod.tolerations[0]: Invalid value: tolerationSeconds belongs to effect NoExecute: remove it, or set effect: NoExecute",
    ),
    (
        {"spec.pod.labels.team": "a b"},
        """spec.pod.labels[team]: Invalid value: "a b": must be a label's value""",
    ),
    (
        {"spec.pod.supplementalGroups": [-1]},
        "spec.pod.supplementalGroups[0]: Invalid value: -1: spec.pod.supplementalGroups[0] in body should be greater than or equal to 0",
    ),
    ({"spec.tokenSecret": {"key": "token"}}, "spec.tokenSecret.name: Required value"),
    (
        {"spec.backoffLimit": 101},
        "spec.backoffLimit: Invalid value: 101: spec.backoffLimit in body should be less than or equal to 100",
    ),
    # several at once
    ({"spec.method": "x", "spec.lora.r": 0}, 'spec.method: Unsupported value: "x"'),
    ({"spec.method": "x", "spec.lora.r": 0}, "spec.lora.r: Invalid value: 0"),
]

_SERVICES: list[tuple[dict[str, Any], str]] = [
    ({"metadata.name": "Chat"}, "metadata.name: Invalid value: " + NAME),
    ({"spec.replica": 2}, 'unknown field "spec.replica"'),
    ({"spec.adapters.0.path": "x"}, 'unknown field "spec.adapters[0].path"'),
    ({"spec.model": REMOVED}, "spec.model: Required value"),
    (
        {"spec.model.name": "Qwen/Qwen3-0.6B"},
        "spec.model: Invalid value: set exactly one of fineTuneJob, name (a model on the hub), claim and uri",
    ),
    (
        {"spec.model": {}},
        "spec.model: Invalid value: set exactly one of fineTuneJob, name (a model on the hub), claim and uri",
    ),
    (
        {"spec.model.revision": "main"},
        "spec.model: Invalid value: revision belongs to a model on the hub: set name, or remove it",
    ),
    ({"spec.model.fineTuneJob": {}}, "spec.model.fineTuneJob.name: Required value"),
    (
        {"spec.model.fineTuneJob": "llama2-guanaco"},
        'spec.model.fineTuneJob: Invalid value: "string": spec.model.fineTuneJob in body must be of type object: "string"',
    ),
    ({"spec.adapters.1.name": "support"}, 'spec.adapters[1]: Duplicate value: {"name":"support"}'),
    ({"spec.adapters.1.name": REMOVED}, "spec.adapters[1].name: Required value"),
    (
        {"spec.adapters.0.name": "a/b"},
        """spec.adapters[0].name: Invalid value: "a/b": must be letters, digits, '-', '_' and '.', """
        "beginning and ending with a letter or digit",
    ),
    (
        {"spec.adapters.0.claim": {"name": "c"}},
        "spec.adapters[0]: Invalid value: set exactly one of fineTuneJob, claim and uri",
    ),
    (
        {"spec.adapters": [{"name": f"a{i}", "claim": {"name": "c"}} for i in range(33)]},
        "spec.adapters: Too many: 33: must have at most 32 items",
    ),
    (
        {"spec.adapters": {}},
        'spec.adapters: Invalid value: "object": spec.adapters in body must be of type array: "object"',
    ),
    (
        {"spec.engine": "triton"},
        'spec.engine: Unsupported value: "triton": supported values: "auto", "vllm", "sglang", "tgi", "embedded"',
    ),
    (
        {"spec.extraArgs": ["--api-key=secret"]},
        "spec: Invalid value: a key in extraArgs could be read by all who may read the object: set apiKeySecret instead",
    ),
    (
        {"spec.extraArgs": ["--api_key=secret"]},
        "spec: Invalid value: a key in extraArgs could be read by all who may read the object: set apiKeySecret instead",
    ),
    (
        {"spec.extraArgs": ["--admin-api-key=secret"]},
        "spec: Invalid value: a key in extraArgs could be read by all who may read the object: set apiKeySecret instead",
    ),
    (
        {"spec.extraArgs": ["--host=0.0.0.0"], "spec.engine": "sglang"},
        "spec: Invalid value: this engine listens where a sidecar that asks for the key forwards to it: remove --host "
        "and --hostname from extraArgs",
    ),
    (
        {"spec.extraArgs": ["--port", "1"]},
        "spec: Invalid value: the probes and the Service need the engine's port as it is: remove --port from extraArgs",
    ),
    ({"spec.apiKeySecret": {"key": "token"}}, "spec.apiKeySecret.name: Required value"),
    (
        {"spec.tokenSecret": {"name": "hub"}},
        "spec: Invalid value: tokenSecret is for a model that is downloaded from the hub: set model.name, or remove tokenSecret",
    ),
    (
        {"spec.cache": {"claim": {"name": "hub-cache"}}},
        "spec: Invalid value: cache is for what is downloaded: set model.name, or a uri, or remove cache",
    ),
    (
        {"spec.model": {"name": "org/base", "digest": f"sha256:{'0' * 64}"}},
        "spec.model: Invalid value: digest belongs to uri: set uri, or remove it",
    ),
    (
        {"spec.model": {"uri": "s3://models/tiny/", "digest": "sha256:12"}},
        'spec.model.digest: Invalid value: "sha256:12": must be sha256: and 64 hexadecimal digits',
    ),
    (
        {"spec.adapters.0": {"name": "support", "uri": "oci://registry/models/faq"}},
        'spec.adapters[0].uri: Invalid value: "oci://registry/models/faq": ' + URI,
    ),
    (
        {"spec.model": {"name": "org/base"}, "spec.tokenSecret": {"key": "token"}},
        "spec.tokenSecret.name: Required value",
    ),
    (
        {"spec.model": {"name": "org/base"}, "spec.cache": {}},
        "spec.cache.claim: Required value",
    ),
    (
        {"spec.autoscaling": {"maxReplicas": 4, "targetConcurrency": 8}},
        "spec: Invalid value: autoscaling sets the number of engine pods: remove replicas, or remove autoscaling",
    ),
    (
        {"spec.replicas": 1, "spec.autoscaling": {"minReplicas": 5, "maxReplicas": 4, "targetConcurrency": 8}},
        "spec.autoscaling: Invalid value: minReplicas must not be above maxReplicas",
    ),
    (
        {"spec.replicas": 1, "spec.autoscaling": {"maxReplicas": 4}},
        "spec.autoscaling.targetConcurrency: Required value",
    ),
    (
        {"spec.replicas": -1},
        "spec.replicas: Invalid value: -1: spec.replicas in body should be greater than or equal to 0",
    ),
    (
        {"spec.replicas": "2"},
        'spec.replicas: Invalid value: "string": spec.replicas in body must be of type integer: "string"',
    ),
    (
        {"spec.maxModelLen": 8},
        "spec.maxModelLen: Invalid value: 8: spec.maxModelLen in body should be greater than or equal to 16",
    ),
    (
        {"spec.resources.gpus": 0, "spec.toolCallParser": "qwen3_coder"},
        "spec: Invalid value: the embedded engine has the toolCallParser hermes, llama3_json, mistral: set one of these, "
        "remove it (the chat template then decides), or set engine: vllm",
    ),
    (
        {"spec.engine": "embedded", "spec.reasoningParser": "qwen3"},
        "spec: Invalid value: the embedded engine returns what a model thinks as a part of its text: remove "
        "reasoningParser, or set engine: vllm",
    ),
    (
        {"spec.engine": "tgi", "spec.toolCallParser": "hermes"},
        "spec: Invalid value: tgi has one form of tool calls and no reasoning parsers: remove toolCallParser and "
        "reasoningParser, or set engine: vllm",
    ),
    (
        {"spec.engine": "sglang", "spec.chatTemplate": "{{ messages }}"},
        "spec: Invalid value: sglang and tgi take no chat template as a text: remove chatTemplate (with sglang a file of "
        "the image can be named in extraArgs), or set engine: vllm",
    ),
    (
        {"spec.chatTemplate": "/templates/own.jinja"},
        'spec.chatTemplate: Invalid value: "/templates/own.jinja": must be a Jinja template, not a path',
    ),
    (
        {"spec.toolCallParser": "her mes"},
        "spec.toolCallParser: Invalid value: \"her mes\": must be letters, digits, '-', '_' and '.'",
    ),
    (
        {"spec.resources.gpus": 17},
        "spec.resources.gpus: Invalid value: 17: spec.resources.gpus in body should be less than or equal to 16",
    ),
    (
        {"spec.resources.sharedMemory": "lots"},
        'spec.resources.sharedMemory: Invalid value: "lots": must be a quantity such as 8, 500m or 64Gi',
    ),
    (
        {"spec.pod.image": ""},
        'spec.pod.image: Invalid value: "": spec.pod.image in body should be at least 1 chars long',
    ),
]

BAD = [Bad("FineTuneJob", *case) for case in _JOBS] + [Bad("InferenceService", *case) for case in _SERVICES]
