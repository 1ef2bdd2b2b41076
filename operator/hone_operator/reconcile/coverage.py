"""Which kinds and namespaces have been listed, and which the operator is not allowed to list.

No decision is made on a part of what exists. But where one namespace is gone, or one kind is forbidden, only the
objects that need it wait. In: complete and refused lists, from controller.py. Out: what an object lacks.
"""

import logging
from dataclasses import dataclass

from hone_api.reasons import CHILD_REFUSED, HoneError

from hone_operator.objects.resources import (
    CLAIMS,
    CONFIGMAPS,
    DEPLOYMENTS,
    FINETUNEJOBS,
    INFERENCESERVICES,
    JOBS,
    OWNERS,
    PODS,
    SERVICES,
    WATCHED,
    Key,
    Resource,
)
from hone_operator.reconcile.sync_failures import SyncFailure

# The kinds that a pass needs. Without one of these lists, existing children would be created again, or taken for gone.
NEEDED_KINDS = {
    FINETUNEJOBS: (FINETUNEJOBS, JOBS, PODS, CONFIGMAPS, CLAIMS),
    INFERENCESERVICES: (INFERENCESERVICES, FINETUNEJOBS, DEPLOYMENTS, PODS, CONFIGMAPS, SERVICES),
}

_KindInNamespace = tuple[Resource, str]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MissingList(SyncFailure):
    """A missing list that an object needs. `is_owner_listed`: the list is refused, and the object itself is listed."""

    is_owner_listed: bool = False


class Coverage:
    """Which kinds of which namespaces ("" for all) have been listed."""

    def __init__(self, namespaces: list[str]) -> None:
        self._all_lists = [(resource, namespace) for resource in WATCHED for namespace in namespaces or [""]]
        self._unlisted: dict[_KindInNamespace, str | None] = dict.fromkeys(self._all_lists)
        self._is_cluster_wide = not namespaces

    def mark_listed(self, resource: Resource, namespace: str) -> bool:
        """Note a complete list. Return whether it was missing before."""
        if (resource, namespace) not in self._unlisted:
            return False
        if why := self._unlisted.pop((resource, namespace)):
            logger.warning("%s in %s can be listed again; before: %s", resource.plural, _describe_scope(namespace), why)
        return True

    def mark_refused(self, resource: Resource, namespace: str, why: str) -> None:
        """Note that the API server refuses a list."""
        if self._unlisted.get((resource, namespace)) is None:
            logger.error(
                "%s in %s can't be listed, and what needs them is not worked on: %s. If the namespace is gone for "
                "good, take it out of watchNamespaces; else give the operator its rights back",
                resource.plural,
                _describe_scope(namespace),
                why,
            )
        self._unlisted[resource, namespace] = why

    @property
    def is_sufficient(self) -> bool:
        """Whether work can begin: each list has come or is refused, and at least one list of owners has come."""
        seen = any(part not in self._unlisted for part in self._all_lists if part[0] in OWNERS)
        return seen and all(why is not None for why in self._unlisted.values())

    def list_refused(self) -> list[tuple[str, str, str]]:
        """Return plural, namespace and reason of each list that is refused."""
        return [(part[0].plural, part[1], why) for part, why in self._unlisted.items() if why is not None]

    def describe_refused(self) -> str | None:
        """Describe what is refused; None when nothing is."""
        found = [f"{plural} in {_describe_scope(namespace)}: {why}" for plural, namespace, why in self.list_refused()]
        return f"can't be listed: {'; '.join(found)}" if found else None

    def find_missing_list(self, key: Key) -> MissingList | None:
        """Return a missing list without which the object can't be judged; None where there is none."""
        namespace = "" if self._is_cluster_wide else key.namespace
        for resource in NEEDED_KINDS[key.resource]:
            if (resource, namespace) not in self._unlisted:
                continue
            why = self._unlisted[resource, namespace]
            text = (
                f"The operator can't list {resource.plural} in {_describe_scope(namespace)}: {why or 'no answer yet'}"
            )
            remedy = (
                "Give the operator its Role or ClusterRole back, as the chart makes it. Until then nothing is done."
            )
            return MissingList(
                HoneError(CHILD_REFUSED, text, remedy=remedy), is_owner_listed=bool(why) and resource != key.resource
            )
        return None


def _describe_scope(namespace: str) -> str:
    return f"namespace {namespace}" if namespace else "all namespaces"
