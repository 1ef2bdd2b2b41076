"""Plan the actions on the children of an InferenceService: create, restore, change and remove them.

In: the snapshot and what was resolved. Out: actions in the plan, and why an upgrade waits. The desired children:
children.py; the turns of an upgrade: rollouts.py. Called by inferenceservice/plan.py.
"""

import copy
from datetime import datetime

from hone_api.inferenceservices.spec import InferenceService

from hone_operator.diagnosis import pod_state
from hone_operator.engines.resolve import Resolved
from hone_operator.inferenceservice import adapter_sidecar, autoscaling, children, node_drain, rollouts
from hone_operator.inferenceservice.snapshot import ObservedInferenceService
from hone_operator.objects.drift import annotation_of, contains, is_current
from hone_operator.objects.resources import AUTOSCALERS, BUDGETS, CONFIGMAPS, DEPLOYMENTS, SERVICES, Object, merge_patch
from hone_operator.objects.spec_fields import FIELDS, read_record
from hone_operator.pods import tuning
from hone_operator.reconcile.plan import Apply, Patch, Plan, removal


def make(
    observed: ObservedInferenceService,
    declared: InferenceService,
    resolved: Resolved | None,
    now: datetime,
    result: Plan,
) -> str | None:
    """Plan the actions. While an artifact is missing, an existing Deployment continues to serve.

    Return why the engines wait for their turn in an upgrade of the operator; None where they don't.
    """
    _service(observed, result)
    replicas = autoscaling.wanted(declared.spec, observed.deployment)
    _budget(observed, replicas, result)
    _autoscaler(observed, declared, result)
    is_alone = replicas == 1
    if is_alone and (patch := node_drain.move(observed.deployment, observed.pods, observed.cordoned or frozenset())):
        result.actions.append(patch)
    if resolved is None:
        return None
    _adapters(observed, declared, resolved, now, result)
    return _deployment(observed, declared, resolved, replicas, now, result)


def _service(observed: ObservedInferenceService, result: Plan) -> None:
    service = children.service(observed.owner)
    if observed.service is None:
        result.actions.append(Apply(SERVICES, service))
    elif not is_current(observed.service, service):
        # Apply would add the port to the edited ones, and the names would clash; a patch replaces the list.
        patch = _service_patch(observed.service, service)
        result.actions.append(Patch(SERVICES, service["metadata"]["name"], patch))


def _service_patch(found: Object, service: Object) -> Object:
    """Return a patch that makes a Service as desired. Ports that others added stay where they don't clash."""
    spec, known = dict(service["spec"]), found["spec"]
    if known.get("type") == spec["type"]:
        [own] = spec["ports"]
        others = [port for port in known.get("ports") or [] if not _clash(port, own)]
        spec["ports"] = known["ports"] if contains(known.get("ports"), spec["ports"]) else [own, *others]
    spec["selector"] = merge_patch(known.get("selector") or {}, spec["selector"])
    return {"metadata": service["metadata"], "spec": spec}


def _clash(port: Object, own: Object) -> bool:
    place = (port.get("port"), port.get("protocol", "TCP"))
    return port.get("name") in (None, own["name"]) or place == (own["port"], own["protocol"])


def _adapters(
    observed: ObservedInferenceService,
    declared: InferenceService,
    resolved: Resolved,
    now: datetime,
    result: Plan,
) -> None:
    if not children.is_hot(declared.spec, resolved):
        # Pods of the old template mount it, also those that are created during the roll-out.
        if observed.adapters is not None and is_rolled_out(observed.deployment):
            result.actions.append(removal(CONFIGMAPS, observed.adapters))
        return
    wanted = children.adapters(observed.owner, resolved)
    if not is_current(observed.adapters, wanted):
        found = observed.adapters
        is_fixed = found and found.get("immutable")  # then it has to be created again
        result.actions.append(removal(CONFIGMAPS, found) if found and is_fixed else Apply(CONFIGMAPS, wanted))
    else:
        result.actions += adapter_sidecar.nudges(
            observed.pods, observed.answers, adapter_sidecar.revision(resolved), now
        )


def is_rolled_out(deployment: Object | None) -> bool:
    """Return whether all pods have the Deployment's present template."""
    if deployment is None:
        return True
    status = deployment.get("status") or {}
    is_seen = status.get("observedGeneration") == deployment["metadata"].get("generation")
    return bool(is_seen and status.get("updatedReplicas", 0) == status.get("replicas", 0))


def _deployment(
    observed: ObservedInferenceService,
    declared: InferenceService,
    resolved: Resolved,
    replicas: int,
    now: datetime,
    result: Plan,
) -> str | None:
    found = observed.deployment
    desired = _desired(observed, declared, resolved, replicas)
    # A claim that is no longer needed stays where it is mounted, unless it is being deleted.
    if rollouts.is_current(found, desired) and not observed.leaving:
        return None
    is_hot = children.is_hot(declared.spec, resolved)
    is_upgrade = found is not None and rollouts.is_of_upgrade(found, desired, declared.spec, resolved, is_hot=is_hot)
    serves = any(pod_state.is_ready(pod) and not pod["metadata"].get("deletionTimestamp") for pod in observed.pods)
    takes_turn = is_upgrade and serves
    if found is not None:
        node_drain.keep_mark(found, desired)
        if takes_turn and observed.upgrading:
            _keep_for_now(found, desired, replicas, result)
            return _why_waiting(observed)
        if mark := rollouts.marker(found, desired, now, takes_turn=takes_turn):
            desired["metadata"]["annotations"][rollouts.UPGRADE] = mark
        if declared.spec.autoscaling:
            # The API server refuses it when the autoscaler has set another number meanwhile.
            desired["metadata"]["resourceVersion"] = found["metadata"]["resourceVersion"]
    result.actions.append(Apply(DEPLOYMENTS, desired, in_turn=takes_turn))
    return None


def _desired(
    observed: ObservedInferenceService, declared: InferenceService, resolved: Resolved, replicas: int
) -> Object:
    """Build the Deployment. RCCL's channels depend on the nodes' GPUs, and change only with another change of the pods.

    Nodes come and go, and are not always known: that alone must not restart engines.
    """
    spec, owner, images = declared.spec, observed.owner, observed.images
    several = spec.resources.gpus > 1
    unused = copy.deepcopy(resolved) if several else resolved  # building adds volumes to its argument
    more = tuning.needs_channels(spec.resources, spec.pod.node_selector, observed.facts)
    by_nodes = children.deployment(owner, declared, resolved, images, replicas, more_channels=more)
    made_from = annotation_of(observed.deployment, rollouts.TEMPLATE)
    if not several or made_from in (None, rollouts.digest_of_template(by_nodes)):
        return by_nodes
    other = children.deployment(owner, declared, unused, images, replicas, more_channels=not more)
    return other if made_from == rollouts.digest_of_template(other) else by_nodes


def _keep_for_now(found: Object, desired: Object, replicas: int, result: Plan) -> None:
    """Fix what changes no pod, and record the fields of the spec, so that later changes of the user are recognized."""
    patch: Object = {}
    if found["spec"].get("replicas") != replicas:
        patch["spec"] = {"replicas": replicas}
    if read_record(found) is None:
        patch["metadata"] = {"annotations": {FIELDS: desired["metadata"]["annotations"][FIELDS]}}
    if patch:
        result.actions.append(Patch(DEPLOYMENTS, found["metadata"]["name"], patch))


def _why_waiting(observed: ObservedInferenceService) -> str:
    """Return why the engines wait. Names of services in other namespaces are left out: readers may not know them."""
    metadata = observed.upgrading[0]["metadata"]
    is_here = metadata["namespace"] == observed.owner["metadata"]["namespace"]
    other = f"InferenceService {metadata['name']}" if is_here else "one in another namespace"
    return (
        "All engines serve the present models, in pods that an earlier version of the operator made. They are replaced "
        f"when it is this service's turn, one InferenceService at a time: {other} is being replaced now. "
        "Nothing to do; a change of spec replaces them at once."
    )


def _autoscaler(observed: ObservedInferenceService, declared: InferenceService, result: Plan) -> None:
    if declared.spec.autoscaling is None:
        if observed.autoscaler is not None:
            result.actions.append(removal(AUTOSCALERS, observed.autoscaler))
        return
    autoscaler = children.autoscaler(observed.owner, declared)
    if not is_current(observed.autoscaler, autoscaler):
        result.actions.append(Apply(AUTOSCALERS, autoscaler))


def _budget(observed: ObservedInferenceService, replicas: int, result: Plan) -> None:
    """Plan the budget: a drain evicts one of several engines at a time. A single engine is moved first, if possible."""
    moves = replicas == 1 and observed.cordoned is not None and not any(map(is_bound, observed.claims))
    if replicas <= 1 and not moves:
        if observed.budget is not None:
            result.actions.append(removal(BUDGETS, observed.budget))
        return
    budget = children.budget(observed.owner, 0 if moves else 1)
    if not is_current(observed.budget, budget):
        result.actions.append(Apply(BUDGETS, budget))


def modes_of(claim: Object) -> list[str]:
    """Return the claim's access modes."""
    return (claim.get("spec") or {}).get("accessModes") or []


def is_bound(claim: Object) -> bool:
    """Return whether only one node can mount the claim."""
    return not {"ReadWriteMany", "ReadOnlyMany"} & set(modes_of(claim))
