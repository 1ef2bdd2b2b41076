"""The failures of object stores and of destinations, a part of the catalogue in reasons.py."""

from hone_api.errors import Reason

STORE_UNAUTHORIZED = Reason(
    "StoreUnauthorized",
    67,
    "The object store or server of a uri refused access.",
    "Give valid credentials that may list and read the objects, in spec.model.secret or spec.dataset.secret; those of "
    "a destination in spec.output.push also write and delete them.",
)
STORE_UNREACHABLE = Reason(
    "StoreUnreachable",
    71,
    "The object store or server of a uri could not be reached, or kept failing.",
    "Check uri, endpoint and the pod's network. What was transferred is kept, and the next start continues it.",
)
SOURCE_CHANGED = Reason(
    "SourceChanged",
    71,
    "Objects of a uri changed again and again while they were downloaded.",
    "Write the objects under a new prefix, and name it in uri once they are complete.",
)
DESTINATION_MISSING = Reason(
    "DestinationMissing",
    66,
    "A destination of spec.output.push does not exist and can't be created.",
    "Create the bucket, or correct uri or hub.repo in spec.output.push.",
)
DESTINATION_OCCUPIED = Reason(
    "DestinationOccupied",
    65,
    "A destination of spec.output.push holds something that the artifact must not replace.",
    "Name another folder in spec.output.push, or remove what is there.",
)
DESTINATION_REFUSED = Reason(
    "DestinationRefused",
    65,
    "A destination of spec.output.push refuses the artifact, and not for its credentials.",
    "Remove what the message names: a quota of the account, a rule of the hub for the model card, a name.",
)
