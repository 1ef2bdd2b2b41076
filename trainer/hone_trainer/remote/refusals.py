"""What the answer of a bucket, a registry or the hub to a write means. Pure.

In: the status, the code and the sentence that a server has answered. Out: a `Verdict`, the same for all of them, and
for a refusal the failure with a remedy. One status has several causes: a full store is 507, or 403 with a sentence. So
the code and the sentence count first, and the sentence is always part of the message.
"""

import json
import re
from enum import Enum
from html import unescape
from typing import Any, NamedTuple

from hone_api.io.terminal import hide_secrets, hide_url_credentials
from hone_api.reasons import DESTINATION_REFUSED, HoneError

# So much of a server's sentence is in a message.
_MOST_CHARACTERS = 300
# Statuses of servers that can't do what was requested, now or later.
_NEVER = (501, 505)
_PASSING_CODES = {"SlowDown", "RequestTimeout", "ServiceUnavailable", "InternalError", "OperationAborted"}
_FULL_CODES = {
    "QuotaExceeded",
    "BucketQuotaExceeded",
    "InsufficientCapacity",
    "StorageFull",
    "XMinioStorageFull",
    "XMinioAdminBucketQuotaExceeded",
}
_TOO_LARGE_CODES = {"EntityTooLarge", "MaxMessageLengthExceeded"}
_READ_ONLY_CODES = {"MethodNotAllowed"}
_PROTECTED_CODES = {"ObjectLocked"}
_FULL = re.compile(
    r"quota|storage limit|exceed\w*\b.{0,60}\b(?:limit|storage|plan)\b|insufficient storage|no space left|storage full",
    re.IGNORECASE,
)
_READ_ONLY = re.compile(r"(?:mode|system|repository|registry|bucket|store)\b.{0,40}\bread.?only|read.?only mode", re.I)
_PROTECTED = re.compile(r"\bimmutable\b|\bretention\b|\bWORM\b|object.?lock|legal hold", re.IGNORECASE)
_XML = {name: re.compile(rf"<{name}>(.*?)</{name}>", re.DOTALL) for name in ("Code", "Message")}
_INVISIBLE = re.compile(r"<(script|style|head)\b.*?</\1>|<!--.*?-->", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"<[^>]*>")


class Verdict(Enum):
    """What an answer means for a push. PASSING alone is tried again."""

    PASSING = "passing"
    UNAUTHORIZED = "unauthorized"
    MISSING = "missing"
    FULL = "full"
    TOO_LARGE = "too large"
    READ_ONLY = "read-only"
    PROTECTED = "protected"
    REFUSED = "refused"


# What a refusal that is not for the credentials needs. `{field}` is the field, or the address, of the destination.
_REMEDIES = {
    Verdict.FULL: "Free space there, or have the quota that the message names raised.",
    Verdict.TOO_LARGE: "Have the largest size of an upload raised at the server, or at a proxy before it (of nginx: "
    "client_max_body_size).",
    Verdict.READ_ONLY: "Name a place that takes writes in {field}: this one is read-only, such as a mirror or a cache.",
    Verdict.PROTECTED: "Name a new place in {field}, or have the rule lifted that protects what is there.",
    Verdict.REFUSED: "Change what the message names at the server, or name another place in {field}.",
}


class Answer(NamedTuple):
    """A server's answer: its status, the code of an error if it has one, and its sentence."""

    status: int
    code: str = ""
    sentence: str = ""

    def __str__(self) -> str:
        text = ": ".join(part for part in (self.code, self.sentence) if part)
        return f"status {self.status}, {text}" if text else f"status {self.status}"


def judge_answer(answer: Answer) -> Verdict:
    """Return what an answer to a write means that is no success."""
    status, code, sentence = answer
    if status in (408, 425, 429) or code in _PASSING_CODES:
        return Verdict.PASSING
    if status == 413 or code in _TOO_LARGE_CODES:
        return Verdict.TOO_LARGE
    if status in (402, 507) or code in _FULL_CODES or _FULL.search(sentence):
        return Verdict.FULL
    if code in _PROTECTED_CODES or _PROTECTED.search(sentence):
        return Verdict.PROTECTED
    if status == 405 or code in _READ_ONLY_CODES or _READ_ONLY.search(sentence):
        return Verdict.READ_ONLY
    if status >= 500 and status not in _NEVER:
        return Verdict.PASSING
    if status in (401, 403):
        return Verdict.UNAUTHORIZED
    if status in (404, 410):
        return Verdict.MISSING
    return Verdict.PROTECTED if status in (409, 412) else Verdict.REFUSED


def make_destination_error(found: str, verdict: Verdict, field: str, remedy: str | None = None) -> HoneError:
    """Return the failure of a destination that refuses the artifact, and not for its credentials."""
    return HoneError(DESTINATION_REFUSED, found, remedy=remedy or _REMEDIES[verdict].format(field=field))


def read_answer(status: int, content: bytes, secrets: tuple[str, ...] = ()) -> Answer:
    """Return an answer from its body: JSON of a registry or the hub, XML of a store, or a page of a proxy.

    Credentials of URLs and `secrets`, which a server may quote, are left out.
    """
    text = content.decode(errors="replace")
    code, sentence = _read_json(text) or _read_xml(text) or ("", _read_page(text))
    return Answer(status, clean_text(code, secrets), clean_text(sentence, secrets))


def _read_json(text: str) -> tuple[str, str] | None:
    try:
        found: Any = json.loads(text)
        if not isinstance(found, dict):
            return None
        if errors := found.get("errors"):
            sentences = [f"{each.get('message') or ''}" for each in errors[:3]]
            return str(errors[0].get("code") or ""), "; ".join(filter(None, sentences))
        sentence = next((found[name] for name in ("error", "message", "details", "detail") if found.get(name)), "")
        return "", sentence if isinstance(sentence, str) else json.dumps(sentence)
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
        return None


def _read_xml(text: str) -> tuple[str, str] | None:
    found = {name: match[1] if (match := pattern.search(text)) else "" for name, pattern in _XML.items()}
    return (unescape(found["Code"]), unescape(found["Message"])) if found["Code"] else None


def _read_page(text: str) -> str:
    return unescape(_TAG.sub(" ", _INVISIBLE.sub(" ", text)))


def clean_text(text: str, secrets: tuple[str, ...] = ()) -> str:
    """Return a server's text for a message: on one line, bounded, without credentials of URLs and without `secrets`."""
    found = hide_secrets(hide_url_credentials(" ".join(text.split())), secrets)
    return found if len(found) <= _MOST_CHARACTERS else f"{found[:_MOST_CHARACTERS].rstrip()} …"
