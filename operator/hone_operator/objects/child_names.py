"""The names of Hone's children, by which later passes find them. Pure."""

# The components, and the names of their containers.
TRAINER, PREPARE, PUSH = "trainer", "prepare", "push"


def make_config_map_name(name: str) -> str:
    return f"{name}-manifest"


def make_job_name(name: str) -> str:
    """Return the name of the training Job, and of the Service by which its pods find each other."""
    return f"{name}-train"


def make_prepare_job_name(name: str) -> str:
    return f"{name}-prepare"


def make_push_job_name(name: str) -> str:
    return f"{name}-push"


def make_adapters_config_map_name(name: str) -> str:
    """Return the name of the ConfigMap that lists the adapters of an InferenceService."""
    return f"{name}-adapters"
