"""States in which Hone reports a failure, and how a remedy is followed: what the tests of remedies are made of.

In: a spec, or facts about the cluster. Out: the failure that Hone reports of it, None where it is well. Next:
remedy_fields.py and remedy_others.py, the tables of cases.
"""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hone_api.reasons import HoneError, Reason
from hone_operator.diagnosis.nodes import ClusterNodes, Node
from hone_operator.diagnosis.unschedulable import WAIT_REMEDY, explain_unschedulable
from hone_operator.finetunejob import children, jobs
from hone_operator.inferenceservice.plan import plan_inferenceservice as plan_service
from hone_operator.objects.resources import DEPLOYMENTS
from hone_operator.reconcile.plan import Apply
from observed import IMAGE, NOW, finished_job, job_object, observed_service, parsed_job, service_object

Object = dict[str, Any]
GIB = 1 << 30
GPU = "amd.com/gpu"
KEYS = ("limits", "requests", "labels", "annotations", "nodeSelector")
"""Maps, of which what follows in a path is one key."""


@dataclass(frozen=True)
class Field:
    """A remedy that names fields: `sets` are these, as the remedy writes them, with the values of a user who obeys.

    `state` gives the failure of a spec. `of`: the fields of the service or job to begin with.
    """

    name: str
    state: Callable[[Object], HoneError | None]
    sets: dict[str, Any]
    of: Object
    kind: str = "FineTuneJob"

    def provoke(self) -> HoneError | None:
        return self.state(self.of)


@dataclass(frozen=True)
class World:
    """A remedy that changes the cluster or something outside it. `named`: what the sentence has to name.

    `after` is what the state is made of once the remedy was followed; None where nothing here can show it: `why`.
    """

    name: str
    state: Callable[[Any], HoneError | None]
    before: Any
    named: tuple[str, ...]
    after: Any = None
    why: str = ""

    def provoke(self) -> HoneError | None:
        return self.state(self.before)


def put(spec: Object, path: str, value: Any) -> Object:
    """Return the spec with the field set; `path` is written as in messages: spec.pod.hostAliases[0].ip."""
    found: Object = {"spec": copy.deepcopy(spec)}
    parts = re.split(r"\.(?![^\[]*\])", path)
    for index, part in enumerate(parts[:-1]):
        if part in KEYS:
            parts[index + 1 :] = [".".join(parts[index + 1 :])]
            break
    here: Any = found
    for index, part in enumerate(parts):
        name, _, at = part.partition("[")
        is_last = index == len(parts) - 1
        if at:
            here = here[name]
            name = int(at.rstrip("]"))  # type: ignore[assignment]
            if is_last:
                here[name] = value
            else:
                here = here[name]
        elif is_last:
            here[name] = value
        else:
            here = here.setdefault(name, {})
    spec_: Object = found["spec"]
    return spec_


def pod_of(spec: Object) -> Object:
    """Return the pod of the FineTuneJob's trainer."""
    owner = job_object(**spec)
    found: Object = jobs.build_train_job(owner, parsed_job(owner), IMAGE)["spec"]["template"]
    return found


def engine_pod_of(spec: Object, *jobs: Object) -> Object:
    """Return the pod of the InferenceService's engine."""
    actions = plan_service(observed_service(service_object(**spec), *(jobs or (finished_job(),))), NOW).actions
    [found] = [a.body for a in actions if isinstance(a, Apply) and a.resource is DEPLOYMENTS]
    template: Object = found["spec"]["template"]
    return template


def trainer_reads(spec: Object) -> str:
    """Return the manifest that the trainer gets."""
    [found] = children.build_config_map(job_object(**spec))["data"].values()
    return str(found)


def unless(is_cured: Callable[[Object], Any], error: HoneError) -> Callable[[Object], HoneError | None]:
    """Return a state that reports the failure until the pod of the spec is as the fault needs it."""
    return lambda spec: None if is_cured(pod_of(spec)) else error


def unless_read(words: str, error: HoneError) -> Callable[[Object], HoneError | None]:
    """Return a state that reports the failure until the manifest of the trainer has this text."""
    return lambda spec: None if words in trainer_reads(spec) else error


def default(reason: Reason, message: str = "Something was found") -> HoneError:
    """Return a failure with the catalogue's own remedy."""
    return HoneError(reason, message)


def node(name: str = "gpu-1", gpus: int = 8, resource: str = GPU, **more: Any) -> Node:
    has = {"cpu": 128.0, "memory": 1024.0 * GIB, "ephemeral-storage": 500.0 * GIB, resource: float(gpus)}
    return Node(name, **{"allocatable": has, "capacity": has, **more})


def unplaced(
    *nodes: Node, words: str = "0/1 nodes are available.", **facts: Any
) -> Callable[[Object], HoneError | None]:
    """Return the state of a FineTuneJob's pod that no node takes; None where it only waits for its turn."""
    return lambda spec: placing(pod_of(spec), words, ClusterNodes(nodes, **facts))


def placing(pod: Object, words: str, facts: ClusterNodes) -> HoneError | None:
    """Return why no node takes the pod, as the API server has it: what is limited is asked for as well."""
    pod = copy.deepcopy(pod)
    for each in pod["spec"]["containers"]:
        each["resources"]["requests"] = dict(
            sorted((each["resources"]["limits"] | each["resources"]["requests"]).items())
        )
    error = explain_unschedulable({**pod, "status": {}}, f"{words} Insufficient {GPU}", facts)
    return None if error.remedy == WAIT_REMEDY else error


def container(pod: Object) -> Object:
    found: Object = pod["spec"]["containers"][0]
    return found
