"""The names of Hone's children, by which later passes find them. Pure."""

# The components, and the names of their containers.
TRAINER, PREPARE, PUSH = "trainer", "prepare", "push"


def config_map_name(name: str) -> str:
    return f"{name}-manifest"


def job_name(name: str) -> str:
    """Return the name of the training Job, and of the Service by which its pods find each other."""
    return f"{name}-train"


def prepare_job_name(name: str) -> str:
    return f"{name}-prepare"


def push_job_name(name: str) -> str:
    return f"{name}-push"


def adapters_config_map_name(name: str) -> str:
    """Return the name of the ConfigMap that lists the adapters of an InferenceService."""
    return f"{name}-adapters"
