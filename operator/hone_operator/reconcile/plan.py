"""What a pass decides: pure data, carried out by the controller."""

from dataclasses import dataclass, field

from hone_operator.objects.resources import Object, Resource


@dataclass(frozen=True)
class Create:
    """Make an object that is not there.

    With `decides`, the other actions wait for it, and are left to the next pass when an object of that name exists;
    nothing else is created when it fails.
    """

    resource: Resource
    body: Object
    decides: bool = False


@dataclass(frozen=True)
class Apply:
    """Server-side apply: every field of `body` is made so. `in_turn`: once no roll-out of an upgrade is under way."""

    resource: Resource
    body: Object
    in_turn: bool = False


@dataclass(frozen=True)
class Patch:
    """Change some fields of an object whose other fields can't change."""

    resource: Resource
    name: str
    patch: Object


@dataclass(frozen=True)
class Delete:
    """Delete exactly the object with this uid.

    With `replaced_by`, it is kept as long as the API server would not let that one be made.
    """

    resource: Resource
    name: str
    uid: str
    replaced_by: Object | None = field(default=None, compare=False, repr=False)


def removal(resource: Resource, found: Object, *, replaced_by: Object | None = None) -> Delete:
    """That of this very object."""
    return Delete(resource, found["metadata"]["name"], found["metadata"]["uid"], replaced_by)


Action = Create | Apply | Patch | Delete


def name_of(action: Action) -> str:
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
    """Actions are carried out together, then the status is written. `poll` maps pod uids to URLs to ask.

    `settled`: a digest of what was compared, where all children are as they should be (fingerprints.py). `built`: the
    children as they should be, as far as they were compared.
    """

    status: Object
    actions: list[Action] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    poll: dict[str, str] = field(default_factory=dict)
    requeue_after: float | None = None
    settled: bytes | None = None
    built: dict[str, Object] = field(default_factory=dict, repr=False)
