"""Names of paths, ports and headers: on the claim, in a pod, and on the wire."""

ADAPTER, MERGED, MODEL = "adapter", "merged", "model"
CACHE, PREPARED, CHECKPOINTS, LOGS, REPORT = "cache", "prepared", "checkpoints", "logs", "report"
METRICS_LOG = "logs/metrics.jsonl"
# What the experiment trackers were sent, and the ids of their runs.
TRACKING = "logs/tracking"
MANIFEST = "manifest.json"

POD_MANIFEST = "/etc/hone/finetunejob.yaml"
POD_OUTPUT = "/output"
POD_CLAIMS = "/claims"
POD_CONFIG_MAPS = "/configmaps"
POD_SECRETS = "/secrets"
POD_CACHE = "/cache"

# Set in pods that have no credentials: what the preparing pod downloaded from a URI is used as it is.
OFFLINE_VARIABLE = "HONE_OFFLINE"

# Links to the verified files that an engine serves: one to the model, and a folder of links to adapters.
POD_SERVED = "/served"
MODEL_LINK, ADAPTER_LINKS = "model", "adapters"

# A link to the model that a container downloaded from the hub, in the cache at the commit that its revision had.
POD_DOWNLOADED = "/downloaded"
# Why adapters could not be downloaded next to a running engine.
POD_DOWNLOAD_FAILURES = f"{POD_DOWNLOADED}/adapter-failures.json"

# The file in POD_SERVED with the token for the engine's admin routes.
ADMIN_TOKEN = "admin-token"
ADMIN_HEADER = "X-Hone-Admin"

# Variables of engines: the key that clients must send, the file with this key, and the file with the admin token.
API_KEY_ENV = "HONE_API_KEY"
API_KEY_FILE_ENV = "HONE_API_KEY_FILE"
ADMIN_TOKEN_FILE_ENV = "HONE_ADMIN_TOKEN_FILE"

# The adapters that an engine should have, as the operator last wrote them.
POD_ADAPTERS = "/etc/hone/adapters/adapters.json"
# Those of them that are downloaded while the engine runs.
POD_ADAPTER_DOWNLOADS = "/etc/hone/adapters/downloads.json"

TRAINER_PORT = 8080
ENGINE_PORT = 8000
# The engine's port on the pod's loopback when a guard receives its requests on ENGINE_PORT.
GUARDED_PORT = 8001
ADAPTER_SIDECAR_PORT = 8081

# Paths of the adapter sidecar on ADAPTER_SIDECAR_PORT: two probes, and the report that the operator reads.
SIDECAR_STARTED_PATH, SIDECAR_READY_PATH, SIDECAR_REPORT_PATH = "/started", "/ready", "/adapters"

REGISTRY_SCHEME = "oci://"

FINETUNEJOB_LABEL = "hone.dev/finetunejob"
INFERENCESERVICE_LABEL = "hone.dev/inferenceservice"
COMPONENT_LABEL = "app.kubernetes.io/component"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
MANAGER = "hone"


def make_artifact_path(namespace: str, name: str) -> str:
    """Return the folder on the output claim that holds a FineTuneJob's tree."""
    return f"{namespace}/{name}"


def make_remote_folder(revision: str) -> str:
    """Return the folder, below the cache, of what was downloaded from a URI."""
    return f"remote/{revision}"


def make_checkpoint_name(step: int) -> str:
    """Return the name of a checkpoint's folder; names sort by step."""
    return f"step-{step:08d}"


def choose_base_model_name(name: str | None, claim: str | None, path: str | None) -> str:
    """Return a base model's name in an engine's list: its hub name, else the last part of its path, else its claim.

    `path` may be a URI; that of a registry counts without tag and digest.
    """
    if path and path.startswith(REGISTRY_SCHEME):
        path = path.partition("@")[0].rpartition("/")[2].partition(":")[0]
    return name or (path or "").rstrip("/").rpartition("/")[2] or claim or ""


def make_link_name(name: str, digest: str | None) -> str:
    """Return the name of a link below POD_SERVED, with the digest, so that an engine's list shows what it loaded."""
    return f"{name}-{digest.removeprefix('sha256:')[:12]}" if digest else name


# Of the memory that is free after the weights are loaded, for the caches of all models of an embedded engine together.
EMBEDDED_CACHE_SHARE = 0.25

# How the embedded engine can read tool calls, by vLLM's names.
EMBEDDED_TOOL_PARSERS = ("hermes", "llama3_json", "mistral")
