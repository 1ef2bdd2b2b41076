"""The only catalogue of failures, from which conditions, events, exit codes and documentation are made."""

from hone_api.errors import HoneError as HoneError
from hone_api.errors import Reason as Reason
from hone_api.exit_codes import INTERRUPTED_EXIT_CODE
from hone_api.remote.reasons import DESTINATION_MISSING as DESTINATION_MISSING
from hone_api.remote.reasons import DESTINATION_OCCUPIED as DESTINATION_OCCUPIED
from hone_api.remote.reasons import DESTINATION_REFUSED as DESTINATION_REFUSED
from hone_api.remote.reasons import SOURCE_CHANGED as SOURCE_CHANGED
from hone_api.remote.reasons import STORE_UNAUTHORIZED as STORE_UNAUTHORIZED
from hone_api.remote.reasons import STORE_UNREACHABLE as STORE_UNREACHABLE

INVALID_SPEC = Reason(
    "InvalidSpec",
    64,
    "The manifest contradicts itself or the contract.",
    "Correct the field that the message names; `hone validate FILE` checks a file without a cluster.",
)
DATASET_COLUMN_MISSING = Reason(
    "DatasetColumnMissing",
    65,
    "The dataset lacks a column that its format needs.",
    "Name the dataset's own column in spec.dataset.columns, or set spec.dataset.format.",
)
DATASET_EMPTY = Reason(
    "DatasetEmpty",
    65,
    "The dataset has no rows to train on.",
    "Check spec.dataset.split, maxSamples and the file.",
)
DATASET_INVALID = Reason(
    "DatasetInvalid",
    65,
    "A row or file of the dataset can't be read.",
    "Correct the file and line that the message names.",
)
CHAT_TEMPLATE_MISSING = Reason(
    "ChatTemplateMissing",
    65,
    "The rows are messages, and the tokenizer has no chat template.",
    "Use an instruction-tuned model, or give spec.dataset.chatTemplate, or turn the rows into text or prompt and "
    "completion.",
)
ALL_ROWS_TRUNCATED = Reason(
    "AllRowsTruncated",
    65,
    "No row keeps a token to learn from within training.maxLength.",
    "Raise spec.training.maxLength.",
)
MODEL_NOT_FOUND = Reason(
    "ModelNotFound",
    66,
    "The base model does not exist at the place in the manifest.",
    "Check spec.model: name and revision on the hub, or claim and path, or uri.",
)
MODEL_INVALID = Reason(
    "ModelInvalid",
    66,
    "The base model can't be loaded, is of the wrong kind, or has changed since training began.",
    "Check that spec.model holds a complete causal language model, as transformers saves it, and its tokenizer.",
)
DATASET_NOT_FOUND = Reason(
    "DatasetNotFound",
    66,
    "The dataset does not exist at the place in the manifest.",
    "Check spec.dataset: name, config, revision and split on the hub, or claim and path, or ConfigMap and key, or uri.",
)
HUB_UNAUTHORIZED = Reason(
    "HubUnauthorized",
    67,
    "The hub refused access.",
    "Accept the licence on the model's page and give a token with read access in spec.tokenSecret.",
)
NON_FINITE_LOSS = Reason(
    "NonFiniteLoss",
    68,
    "The loss, the gradients or the weights became NaN or infinite.",
    "Lower spec.training.learningRate, set maxGradNorm, or train in bfloat16 rather than float16.",
)
MODEL_TOO_LARGE = Reason(
    "ModelTooLarge",
    69,
    "The device has less memory than training, or serving, is estimated to need.",
    "Set what the message names; `hone plan FILE` shows the estimate and which GPUs it fits.",
)
OUT_OF_MEMORY = Reason(
    "OutOfMemory",
    69,
    "The device has too little memory for this run.",
    "Lower spec.training.perDeviceTrainBatchSize or maxLength, turn on activationCheckpointing, or use method lora.",
)
GPU_NOT_USABLE = Reason(
    "GpuNotUsable",
    69,
    "The pod asks for GPUs, and its container can't use them.",
    "Let the container's user open /dev/kfd and /dev/dri/renderD*: set spec.pod.supplementalGroups, or the chart's "
    "value runtime.supplementalGroups, to the group of these files on the nodes (`stat -c %g /dev/kfd`). Or use an "
    "image whose torch is built for these GPUs and the node's driver.",
)
INTERNAL_ERROR = Reason(
    "InternalError",
    70,
    "Something failed that has no name yet.",
    "If it comes again, report it with the traceback in the folder logs of the output; --verbose shows it, too.",
)
HUB_UNREACHABLE = Reason(
    "HubUnreachable",
    71,
    "The hub could not be reached.",
    "Check the network and proxy, or put the model and dataset on a claim.",
)
DISK_FULL = Reason(
    "DiskFull",
    74,
    "A volume is full.",
    "Free some of it, lower spec.checkpoint.saveTotalLimit, or enlarge the claim with `kubectl patch pvc NAME --patch "
    '\'{"spec": {"resources": {"requests": {"storage": "SIZE"}}}}\'` where its StorageClass has '
    "allowVolumeExpansion: true; the next start continues from the newest checkpoint.",
)
INTERRUPTED = Reason(
    "Interrupted",
    INTERRUPTED_EXIT_CODE,
    "The trainer was interrupted and saved a checkpoint.",
    "Nothing to do: the next start continues from the checkpoint.",
)
ARTIFACT_MISSING = Reason(
    "ArtifactMissing",
    66,
    "There is no complete artifact where one should be.",
    "Wait for the FineTuneJob to succeed, or check the claim and path.",
)
ARTIFACT_CORRUPT = Reason(
    "ArtifactCorrupt",
    65,
    "A file of the artifact differs from its manifest.",
    "Run the FineTuneJob again, or restore the file.",
)
ADAPTER_MISMATCH = Reason(
    "AdapterMismatch",
    65,
    "The adapter was trained on another base model, or is of a kind that the engine can't load.",
    "Serve the adapter on the base model that its manifest names.",
)
MERGE_MISMATCH = Reason(
    "MergeMismatch",
    68,
    "The merged model does not answer as the base model with the adapter does.",
    "Serve the adapter on its base instead, and report this; of a job, start it again with spec.output.save: adapter, "
    "which saves what is trained already.",
)
MODEL_UNSUPPORTED = Reason(
    "ModelUnsupported",
    66,
    "The engine can't serve models of this architecture or quantization.",
    "Serve it with another engine (spec.engine: vllm, sglang or embedded), or with another version (spec.pod.image).",
)
HOST_OUT_OF_MEMORY = Reason(
    "HostOutOfMemory",
    None,
    "The container was killed for exceeding its memory limit.",
    "Raise spec.resources.memory.",
)
IMAGE_PULL_FAILED = Reason(
    "ImagePullFailed",
    None,
    "The node can't pull the container image.",
    "Check spec.pod.image and spec.pod.imagePullSecrets.",
)
UNSCHEDULABLE = Reason(
    "Unschedulable",
    None,
    "No node takes the pod.",
    "Lower spec.resources, or add nodes; the scheduler's message names what is missing.",
)
SCALING_UP = Reason(
    "ScalingUp",
    None,
    "No node takes the pod yet, and the cluster's autoscaler adds one.",
    "Nothing to do: the pod starts when the node is ready.",
)
VOLUME_NOT_BOUND = Reason(
    "VolumeNotBound",
    None,
    "The PersistentVolumeClaim is not bound to a volume.",
    "Read why with `kubectl describe pvc NAME`. Where the StorageClass of a FineTuneJob's output provisions no volume, "
    "name one that does in spec.output.storage.storageClassName and apply the job under another metadata.name, which "
    "makes a new claim.",
)
VOLUME_ACCESS_DENIED = Reason(
    "VolumeAccessDenied",
    67,
    "The user of the container can't read or write a volume.",
    "Give the user or group that the message names access to the folder: with `chown` or `chmod` on the storage, with "
    "mountPermissions in the StorageClass of csi-driver-nfs, or with the group that owns the folder in "
    "spec.pod.supplementalGroups.",
)
CLAIM_DIFFERS = Reason(
    "ClaimDiffers",
    None,
    "The claim for the output exists and differs from spec.output.storage; it is used as it is.",
    'Enlarge it with `kubectl patch pvc NAME --patch \'{"spec": {"resources": {"requests": {"storage": '
    '"SIZE"}}}}\'` where its StorageClass has allowVolumeExpansion: true; for another class or access mode, set it in '
    "spec.output.storage and apply the job under another metadata.name, which makes a new claim.",
)
POD_REJECTED = Reason(
    "PodRejected",
    None,
    "The kubelet of the node that the scheduler chose did not admit the pod.",
    "Nothing to do after a reboot of the node: another pod is made, and backoffLimit does not count it. If it lasts, "
    "look at the device plugin's pod on the node, or run `kubectl cordon NODE` so that another node is chosen.",
)
EVICTED_FOR_USE = Reason(
    "EvictedForUse",
    None,
    "The node ran short of what the pod used more of than it asked for.",
    "Set spec.resources.memory, or spec.resources.requests.ephemeral-storage, to what the pod uses.",
)
SIDECAR_RUNNING = Reason(
    "SidecarRunning",
    None,
    "The trainer has ended, and another container of its pod still runs, which keeps the pod and its GPUs.",
    "Keep the container out of Hone's pods: `sidecar.istio.io/inject: 'false'` in spec.pod.labels for Istio, "
    "`linkerd.io/inject: disabled` in spec.pod.annotations for Linkerd, "
    "`vault.hashicorp.com/agent-pre-populate-only: 'true'` in spec.pod.annotations for Vault. Or let it be injected as "
    "an init container with restartPolicy: Always, which ends with the trainer "
    "(`config.alpha.linkerd.io/proxy-enable-native-sidecar: 'true'` in spec.pod.annotations for Linkerd).",
)
POD_NOT_STARTED = Reason(
    "PodNotStarted",
    None,
    "The node can't start the container, or the pod could not be made.",
    "Look at the kubelet's or the admission's message.",
)
VOLUME_IN_USE = Reason(
    "VolumeInUse",
    None,
    "The volume is attached to another node, and can't be to two.",
    "Wait until the pod that uses it has ended, or use a claim with accessModes [ReadWriteMany].",
)
QUOTA_EXCEEDED = Reason(
    "QuotaExceeded",
    None,
    "A ResourceQuota or LimitRange of the namespace does not allow it.",
    "Lower spec.resources where the message names such a resource, remove what else uses the quota, or ask for a "
    "larger one. Hone then tries again.",
)
BACKOFF_LIMIT_EXCEEDED = Reason(
    "BackoffLimitExceeded",
    None,
    "The trainer failed more often than spec.backoffLimit allows.",
    "Correct what the message names, then delete the FineTuneJob and apply it again: it continues from the newest "
    "checkpoint.",
)
DEADLINE_EXCEEDED = Reason(
    "DeadlineExceeded",
    None,
    "The Job was active for longer than spec.activeDeadlineSeconds allows.",
    "Delete the FineTuneJob and apply it again with a longer activeDeadlineSeconds: it continues from the newest "
    "checkpoint.",
)
EVICTED = Reason(
    "Evicted",
    None,
    "The pod was removed from its node: the node was drained, tainted, short of something, or shut down.",
    "Nothing to do: a new pod continues from the newest checkpoint, and backoffLimit does not count it.",
)
PREEMPTED = Reason(
    "Preempted",
    None,
    "The pod made room for one of higher priority.",
    "Nothing to do: a new pod continues from the newest checkpoint, and backoffLimit does not count it. A higher "
    "spec.pod.priorityClassName protects it.",
)
NODE_LOST = Reason(
    "NodeLost",
    None,
    "The pod's node no longer reports, or is gone.",
    "Repair the node, or run `kubectl delete node NODE` when it is off for good: only then is it certain that its "
    "trainer has ended, and a new one continues from the newest checkpoint.",
)
STALLED = Reason(
    "Stalled",
    None,
    "The trainer answers, and has made no step for far longer than a step takes.",
    "Look at the pod's log and at the GPUs of its node; deleting the pod starts another from the newest checkpoint.",
)
TRAINER_SILENT = Reason(
    "TrainerSilent",
    None,
    "The trainer's pod runs, and does not answer.",
    "Look at the pod's log, its node, and whether a NetworkPolicy keeps the operator from port 8080; deleting the pod "
    "starts another from the newest checkpoint.",
)
NAME_CONFLICT = Reason(
    "NameConflict",
    None,
    "Something else has the name that a child of the object would have.",
    "Rename the object, or remove what has the name if nobody needs it.",
)
FINE_TUNE_JOB_FAILED = Reason(
    "FineTuneJobFailed",
    None,
    "The FineTuneJob whose artifact is to be served has failed.",
    "Delete the FineTuneJob and apply it again, corrected: the service continues after its success. Or name another "
    "FineTuneJob.",
)
CHILD_HIDDEN = Reason(
    "ChildHidden",
    None,
    "A policy or webhook changes a label by which Hone finds the objects that it makes.",
    "Exclude objects with the label app.kubernetes.io/managed-by=hone from the policy or webhook that sets it, and "
    "delete the object that the message names, which Hone then makes again.",
)
CHILD_REFUSED = Reason(
    "ChildRefused",
    None,
    "The API server, a policy or an admission webhook refuses an object that Hone makes.",
    "Allow it in the policy, webhook, quota or role that the message names; Hone tries again with growing pauses.",
)
CHILD_INVALID = Reason(
    "ChildInvalid",
    None,
    "Kubernetes refuses an object that Hone makes as invalid: a field of the spec has a value that it does not take.",
    "Correct the field of spec.pod or spec.resources that the message names; Hone tries again when the object changes.",
)
CHILD_CONTESTED = Reason(
    "ChildContested",
    None,
    "Something else in the cluster changes or deletes an object of Hone's each time Hone has restored it.",
    "Find what writes it (`kubectl get KIND NAME --show-managed-fields -o yaml`) and exclude Hone's objects from it; "
    "until then Hone restores the object ever more rarely, at least every 5 minutes.",
)
CHILD_LEAVING = Reason(
    "ChildLeaving",
    None,
    "An object of the same name is still being deleted.",
    "Wait, or find out what keeps its finalizers, which the message names.",
)
API_FAILING = Reason(
    "ApiFailing",
    None,
    "The API server, or an admission webhook that it asks, fails each time.",
    "If the message names a webhook, repair the service behind it or remove its configuration (`kubectl get "
    "validatingwebhookconfigurations,mutatingwebhookconfigurations`); Hone tries again with growing pauses.",
)
OPERATOR_ERROR = Reason(
    "OperatorError",
    None,
    "Hone's operator fails on this object with an error that nobody foresaw; its children stay as they are.",
    "Report it with the traceback in the operator's log. If it came with a change of the object, undo that change.",
)
CLAIM_NOT_SHARED = Reason(
    "ClaimNotShared",
    None,
    "A claim that every engine mounts can't be mounted on several nodes.",
    "Use a claim with accessModes [ReadWriteMany] or [ReadOnlyMany], or set spec.replicas: 1 (where the load decides, "
    "spec.autoscaling.maxReplicas: 1).",
)
DEPLOYMENT_PAUSED = Reason(
    "DeploymentPaused",
    None,
    "Somebody has paused the Deployment of the engines, and a change of the service waits for it.",
    "Run `kubectl rollout resume deployment/NAME`.",
)
LOAD_NOT_SERVED = Reason(
    "LoadNotServed",
    None,
    "The HorizontalPodAutoscaler gets no metric of the engines' load from the cluster.",
    "Let a custom-metrics adapter, such as prometheus-adapter, serve pods/hone_engine_requests; "
    "docs/engines/autoscaling.md has its rule. Until then the number of engines stays.",
)
ENGINE_FAILED = Reason(
    "EngineFailed",
    None,
    "The engine's container ends again and again.",
    "Look at the end of the engine's log in the message, and at the pod's log.",
)
ENGINE_SILENT = Reason(
    "EngineSilent",
    None,
    "An engine's pod is ready, and does not report to the operator which models it has loaded.",
    "Let the operator's pods reach the port that the message names (8081, or 8000 where no adapters are loaded at run "
    "time): allow it in NetworkPolicies, and exempt it from a mesh's STRICT mTLS.",
)

# By exit code; those that only the operator reports are the last ones.
_SORTED = sorted((each for each in globals().values() if isinstance(each, Reason)), key=lambda r: r.exit_code or 256)
CATALOGUE: dict[str, Reason] = {reason.name: reason for reason in _SORTED}
