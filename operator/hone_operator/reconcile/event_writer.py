"""Write the events that a plan decides on. In: the object and the event; out: an Event of the Kubernetes API."""

import logging
from datetime import UTC, datetime

from hone_operator.kube.client import Api, ApiError
from hone_operator.objects.resources import EVENTS, Key, Object
from hone_operator.objects.texts import MAX_EVENT_BYTES, truncate_text
from hone_operator.objects.timestamps import format_timestamp
from hone_operator.reconcile.plan import Event

logger = logging.getLogger(__name__)


async def write_event(api: Api, key: Key, owner: Object, event: Event) -> None:
    """Create an Event about an object. Log a refusal of the API server."""
    now = datetime.now(UTC)
    metadata = owner["metadata"]
    body: Object = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{key.name}.", "namespace": key.namespace},
        "involvedObject": {
            "apiVersion": owner["apiVersion"],
            "kind": owner["kind"],
            "namespace": key.namespace,
            "name": key.name,
            "uid": metadata["uid"],
        },
        "type": event.type,
        "reason": event.reason,
        "message": truncate_text(event.message, MAX_EVENT_BYTES),
        "source": {"component": "hone-operator"},
        "firstTimestamp": format_timestamp(now),
        "lastTimestamp": format_timestamp(now),
        "count": 1,
    }
    try:
        await api.create(EVENTS, body)
    except ApiError as error:
        if error.is_farewell:
            return
        logger.warning("event was not written: %s", error, extra={"reason": event.reason})
