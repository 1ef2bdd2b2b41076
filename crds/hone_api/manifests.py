"""Reading manifest files: YAML or JSON, one document or many."""

import re
from pathlib import Path
from typing import Any

import yaml

from hone_api.reasons import INVALID_SPEC, HoneError


def load_documents(path: Path) -> list[dict[str, Any]]:
    """Every object in a file. Raises HoneError InvalidSpec naming file and line when it can't be read."""
    try:
        with path.open(encoding="utf-8") as file:
            documents = [document for document in yaml.load_all(file, _Loader) if document is not None]
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


class _Loader(yaml.SafeLoader):
    """YAML as kubectl reads it: 2e-4 is a number, a date is a string, and a key may stand once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)$"),
    list("-+.0123456789"),
)
