"""The plan of a pass: actions, events and the new status, as pure data.

The plan functions (finetunejob/plan.py, inferenceservice/plan.py) make it, execution.py carries out the actions, and
controller.py writes the status and the events.
"""

from dataclasses import dataclass, field

from hone_operator.objects.resources import Object, Resource


@dataclass(frozen=True)
class Create:
    """Create an object that does not exist.

    With `decides`, the other actions wait for it. When an object of that name exists, they are left to the next pass;
    when it fails, nothing else is created.
    """

    resource: Resource
    body: Object
    decides: bool = False


@dataclass(frozen=True)
class Apply:
    """Server-side apply of every field of `body`. `in_turn`: only once no roll-out of an upgrade is under way."""

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

    With `replaced_by`, it is kept as long as the API server would refuse that replacement.
    """

    resource: Resource
    name: str
    uid: str
    replaced_by: Object | None = field(default=None, compare=False, repr=False)


def removal(resource: Resource, found: Object, *, replaced_by: Object | None = None) -> Delete:
    """Return the action that deletes this very object."""
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
    """The decisions of one pass: the actions are carried out first, then the status is written.

    `poll` maps pod uids to the URLs to poll. `settled`: where all children are as desired, a digest of what was
    compared (fingerprints.py). `built`: the desired children, as far as they were compared.
    """

    status: Object
    actions: list[Action] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    poll: dict[str, str] = field(default_factory=dict)
    requeue_after: float | None = None
    settled: bytes | None = None
    built: dict[str, Object] = field(default_factory=dict, repr=False)
