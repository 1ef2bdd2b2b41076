"""What the readers of both kinds read from.

SnapshotReader makes the parts once, so that both kinds share the nodes that were read. Used by finetunejob.py and
inferenceservice.py.
"""

from dataclasses import dataclass

from hone_operator.kube.cache import Cache
from hone_operator.kube.client import Api
from hone_operator.kube.pod_poller import Poller
from hone_operator.pods.pod_spec import Images
from hone_operator.snapshots.events import EventReader
from hone_operator.snapshots.nodes import NodeReader
from hone_operator.snapshots.objects import ObjectReader


@dataclass(frozen=True)
class KindReader:
    """Reads snapshots of the objects of one kind. Its parts are given in this order."""

    _api: Api
    _cache: Cache
    _poller: Poller
    _images: Images
    _objects: ObjectReader
    _nodes: NodeReader
    _events: EventReader
