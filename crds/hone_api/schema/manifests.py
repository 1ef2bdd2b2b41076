"""Parse manifest files, YAML or JSON with one document or many, into objects of JSON's types.

The text is first parsed into nodes, which `_Loader` counts: a file whose aliases expand to millions of values is
refused before any of them is built. Values that kubectl reads differently from YAML 1.1, such as dates and 1:30, are
read as in kubectl. `validation` checks the objects next.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import yaml

from hone_api.reasons import INVALID_SPEC, HoneError

# The API server takes no object of more than 3 MiB.
MOST_BYTES = 4 * 1024 * 1024
# Values in a file, where an alias counts as all that it stands for.
MOST_VALUES = 100_000
MOST_LEVELS = 100

_PREFIX = "tag:yaml.org,2002:"
# What JSON can hold; YAML has sets, dates and binary values as well.
_TAGS = {f"{_PREFIX}{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}
# Texts that YAML reads as texts without quotes.
_PLAIN = re.compile(r"(?!(?:y|n|yes|no|on|off|true|false|null)$)[A-Za-z][\w./-]*", re.IGNORECASE | re.ASCII)


def quote_text(text: str) -> str:
    """Return a text as a manifest must write it to stay a text, as opposed to `true` and `1`."""
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def load_documents(path: Path) -> list[dict[str, Any]]:
    """Return every object in a file. Raises HoneError InvalidSpec naming file and line when it can't be read."""
    text = _read_text(path)
    try:
        found = list(yaml.load_all(text, _Loader))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise HoneError(
            INVALID_SPEC,
            f"{path} is not YAML: line {line} has the character U+{error.character:04X}, which is not allowed",
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        context = f" ({error.context})" if error.context and error.problem else ""
        raise HoneError(INVALID_SPEC, f"{path} is not YAML: {error.problem or error.context}{context}{place}") from None
    except yaml.YAMLError as error:
        raise HoneError(INVALID_SPEC, f"{path} is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise HoneError(INVALID_SPEC, f"{path} is nested too deeply") from None
    except (ValueError, OverflowError):  # the scanner's, for an escape such as \U00110000
        raise HoneError(
            INVALID_SPEC, f"{path} is not YAML: an escape in it, such as \\U…, stands for no character of Unicode"
        ) from None
    documents = [document for document in found if document is not None]
    for document in documents:
        if not isinstance(document, dict):
            raise HoneError(
                INVALID_SPEC, f"{path} holds {_shorten_value(document)} where a Kubernetes object should be"
            )
    if not documents:
        raise HoneError(INVALID_SPEC, f"{path} holds no object")
    return documents


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise HoneError(INVALID_SPEC, f"{path} can't be read: {error.strerror}") from None
    if len(data) > MOST_BYTES:
        raise HoneError(
            INVALID_SPEC,
            f"{path} is larger than {MOST_BYTES // 1024**2} MiB",
            remedy="Give a manifest. Data of this size belongs on a claim, which spec.dataset.claim names.",
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        utf16 = "; it looks like UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise HoneError(
            INVALID_SPEC, f"{path} is not YAML: line {line} is not UTF-8{utf16}", remedy="Save the file as UTF-8."
        ) from None


def _shorten_value(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:59]}…"


class _Loader(yaml.SafeLoader):
    """Reads YAML like kubectl: 2e-4 is a number, a date is a string, and a key may occur once."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._values = 0
        self._level = 0
        # For each complete node, by id: the values that it stands for, its levels, and itself, to keep the id.
        self._sizes: dict[int, tuple[int, int, yaml.Node]] = {}

    def compose_document(self) -> yaml.Node | None:
        self._sizes.clear()
        return super().compose_document()

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        self._level += 1
        node = super().compose_node(parent, index)
        self._level -= 1
        if node is None:
            return None
        if id(node) not in self._sizes:
            if isinstance(event, yaml.AliasEvent):
                raise _make_error("an alias stands for a value that holds the alias", event.start_mark)
            children = [self._sizes[id(child)] for child in _list_children(node)]
            values = 1 + sum(child[0] for child in children)
            levels = 1 + max((child[1] for child in children), default=0)
            self._sizes[id(node)] = (values, levels, node)
        values, levels, _ = self._sizes[id(node)]
        self._values += values if isinstance(event, yaml.AliasEvent) else 1
        if self._level + levels > MOST_LEVELS:
            raise _make_error(f"values are nested in more than {MOST_LEVELS} levels", event.start_mark)
        if self._values > MOST_VALUES:
            raise _make_error(f"the file stands for more than {MOST_VALUES:,} values", event.start_mark)
        return node

    def compose_sequence_node(self, anchor: Any) -> yaml.SequenceNode:
        self._refuse_depth()
        return super().compose_sequence_node(anchor)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        self._refuse_depth()
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == f"{_PREFIX}null" or key.tag not in _TAGS:
                raise _make_error("a key must be a string", key.start_mark)
            if key.tag == f"{_PREFIX}merge":
                continue
            if key.value in seen:
                raise _make_error(f"key {_shorten_value(key.value)} stands twice", key.start_mark)
            seen.add(key.value)
            key.tag = f"{_PREFIX}str"  # as in JSON, where every key is one
        return node

    def _refuse_depth(self) -> None:
        if self._level > MOST_LEVELS:
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            raise _make_error(f"values are nested in more than {MOST_LEVELS} levels", event.start_mark)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag not in _TAGS:
            raise _make_error(
                f"the tag {_shorten_value(node.tag.removeprefix(_PREFIX))} is not one that Kubernetes objects have",
                node.start_mark,
            )
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, IndexError, OverflowError):
            kind = node.tag.removeprefix(_PREFIX)
            raise _make_error(f"{_shorten_value(node.value)} can't be read as {kind}", node.start_mark) from None

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        text: str = super().construct_scalar(node)
        if not any("\ud800" <= char <= "\udfff" for char in text):
            return text
        try:  # JSON writes characters beyond U+FFFF as pairs
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise _make_error("half of a surrogate pair is no character", node.start_mark) from None


def _list_children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return []


def _make_error(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node).replace("_", "")
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    if digits[:1] == "0" and digits[1:2].isdigit():
        return sign * int(digits, 8)
    return sign * int(digits, 0)


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    found: float = loader.construct_yaml_float(node)
    if not math.isfinite(found):
        raise ValueError  # JSON has no such number
    return found


def _add_resolvers() -> None:
    """Set the types of plain scalars: no dates, no numbers of base 60 such as 1:30, and 2e-4 is a number."""
    kept_tags = {f"{_PREFIX}bool", f"{_PREFIX}null", f"{_PREFIX}merge"}
    _Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag in kept_tags]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    whole = re.compile(r"^[-+]?(0b[01_]+|0o?[0-7_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)$")
    _Loader.add_implicit_resolver(f"{_PREFIX}int", whole, list("-+0123456789"))
    decimal = re.compile(
        r"^([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    )
    _Loader.add_implicit_resolver(f"{_PREFIX}float", decimal, list("-+.0123456789"))


_Loader.add_constructor(f"{_PREFIX}int", _construct_int)
_Loader.add_constructor(f"{_PREFIX}float", _construct_float)
_add_resolvers()
