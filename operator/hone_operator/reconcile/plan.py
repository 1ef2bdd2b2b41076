"""The plan of a pass: actions, events and the new status, as pure data.

The plan functions (finetunejob/plan.py, inferenceservice/plan.py) make it, execution.py carries out the actions, and
controller.py writes the status and the events.
"""

from dataclasses import dataclass, field

from hone_operator.objects.resources import Object, Resource


@dataclass(frozen=True)
class Create:
    """Create an object that does not exist.

    With `blocks_others`, the other actions wait for it. When an object of that name exists, they are left to the next
    pass; when it fails, nothing else is created. With `comes_last`, it is created when all others have been
    answered.
    """

    resource: Resource
    body: Object
    blocks_others: bool = False
    comes_last: bool = False


@dataclass(frozen=True)
class Apply:
    """Server-side apply of every field of `body`. `waits_for_turn`: only while no roll-out of an upgrade runs."""

    resource: Resource
    body: Object
    waits_for_turn: bool = False


@dataclass(frozen=True)
class Patch:
    """Change some fields of an object whose other fields can't change."""

    resource: Resource
    name: str
    patch: Object


@dataclass(frozen=True)
class Delete:
    """Delete exactly the object with this uid.

    With `replaced_by`, it is kept as long as the API server would refuse that replacement.
    """

    resource: Resource
    name: str
    uid: str
    replaced_by: Object | None = field(default=None, compare=False, repr=False)


def build_delete(resource: Resource, found: Object, *, replaced_by: Object | None = None) -> Delete:
    """Return the action that deletes this very object."""
    return Delete(resource, found["metadata"]["name"], found["metadata"]["uid"], replaced_by)


Action = Create | Apply | Patch | Delete


def get_target_name(action: Action) -> str:
    """Return the name of the object that an action is about."""
    name: str = action.body["metadata"]["name"] if isinstance(action, Create | Apply) else action.name
    return name


@dataclass(frozen=True)
class Event:
    """A Kubernetes Event about the object; `type` is Normal or Warning."""

    type: str
    reason: str
    message: str


@dataclass
class Plan:
    """The decisions of one pass: the actions are carried out first, then the status is written.

    `poll_urls`: the URLs to poll, by pod uid. `settled_digest`: where all children are as desired, a digest of what was
    compared (fingerprints.py). `desired_children`: as far as they were compared.
    """

    status: Object
    actions: list[Action] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    poll_urls: dict[str, str] = field(default_factory=dict)
    requeue_after_seconds: float | None = None
    settled_digest: bytes | None = None
    desired_children: dict[str, Object] = field(default_factory=dict, repr=False)
