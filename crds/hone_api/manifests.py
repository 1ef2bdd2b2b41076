"""Reading manifest files: YAML or JSON, one document or many."""

from pathlib import Path
from typing import Any

import yaml

from hone_api.finetunejob import FineTuneJob
from hone_api.inferenceservice import InferenceService
from hone_api.reasons import INVALID_SPEC, HoneError

KINDS: dict[str, type[FineTuneJob] | type[InferenceService]] = {
    "FineTuneJob": FineTuneJob,
    "InferenceService": InferenceService,
}


def load_documents(path: Path) -> list[dict[str, Any]]:
    """Every object in a file. Raises HoneError InvalidSpec naming file and line when it can't be read."""
    try:
        with path.open(encoding="utf-8") as file:
            documents = [document for document in yaml.safe_load_all(file) if document is not None]
    except OSError as error:
        raise HoneError(INVALID_SPEC, f"{path} can't be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise HoneError(INVALID_SPEC, f"{path} is not YAML: {' '.join(str(error).split())}") from None
    for document in documents:
        if not isinstance(document, dict):
            raise HoneError(INVALID_SPEC, f"{path} holds {document!r} where a Kubernetes object should be")
    if not documents:
        raise HoneError(INVALID_SPEC, f"{path} holds no object")
    return documents
