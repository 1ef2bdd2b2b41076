"""Plan the actions on the children of an InferenceService: create, restore, change and remove them.

In: the snapshot and what was resolved. Out: actions in the plan, and why an upgrade waits. The desired children:
children.py; the turns of an upgrade: rollouts.py. Called by inferenceservice/plan.py.
"""

import copy
from datetime import datetime

from hone_api.inferenceservices.spec import InferenceService

from hone_operator.diagnosis import pod_state
from hone_operator.engines.resolve import ResolvedModels
from hone_operator.inferenceservice import adapter_sidecar, autoscaling, children, node_drain, rollouts
from hone_operator.inferenceservice.snapshot import ObservedInferenceService
from hone_operator.objects.drift import contains_fields, get_annotation, is_as_desired
from hone_operator.objects.resources import (
    AUTOSCALERS,
    BUDGETS,
    CONFIGMAPS,
    DEPLOYMENTS,
    SERVICES,
    Object,
    build_merge_patch,
)
from hone_operator.objects.spec_fields import FIELDS_ANNOTATION, read_field_record
from hone_operator.pods import tuning
from hone_operator.reconcile.plan import Apply, Patch, Plan, build_delete


def plan_children(
    observed: ObservedInferenceService,
    declared: InferenceService,
    resolved: ResolvedModels | None,
    now: datetime,
    result: Plan,
) -> str | None:
    """Plan the actions. While an artifact is missing, an existing Deployment continues to serve.

    Return why the engines wait for their turn in an upgrade of the operator; None where they don't.
    """
    _plan_service(observed, result)
    replicas = autoscaling.get_wanted_replicas(declared.spec, observed.deployment)
    _plan_budget(observed, replicas, result)
    _plan_autoscaler(observed, declared, result)
    is_alone = replicas == 1
    if is_alone and (
        patch := node_drain.plan_move(observed.deployment, observed.pods, observed.cordoned_nodes or frozenset())
    ):
        result.actions.append(patch)
    if resolved is None:
        return None
    _plan_adapters(observed, declared, resolved, now, result)
    return _plan_deployment(observed, declared, resolved, replicas, now, result)


def _plan_service(observed: ObservedInferenceService, result: Plan) -> None:
    service = children.build_service(observed.owner)
    if observed.service is None:
        result.actions.append(Apply(SERVICES, service))
    elif not is_as_desired(observed.service, service):
        # Apply would add the port to the edited ones, and the names would clash; a patch replaces the list.
        patch = _build_service_patch(observed.service, service)
        result.actions.append(Patch(SERVICES, service["metadata"]["name"], patch))


def _build_service_patch(found: Object, service: Object) -> Object:
    """Return a patch that makes a Service as desired. Ports that others added stay where they don't clash."""
    spec, known = dict(service["spec"]), found["spec"]
    if known.get("type") == spec["type"]:
        [own] = spec["ports"]
        others = [port for port in known.get("ports") or [] if not _do_ports_clash(port, own)]
        spec["ports"] = known["ports"] if contains_fields(known.get("ports"), spec["ports"]) else [own, *others]
    spec["selector"] = build_merge_patch(known.get("selector") or {}, spec["selector"])
    return {"metadata": service["metadata"], "spec": spec}


def _do_ports_clash(port: Object, own: Object) -> bool:
    place = (port.get("port"), port.get("protocol", "TCP"))
    return port.get("name") in (None, own["name"]) or place == (own["port"], own["protocol"])


def _plan_adapters(
    observed: ObservedInferenceService,
    declared: InferenceService,
    resolved: ResolvedModels,
    now: datetime,
    result: Plan,
) -> None:
    if not children.hot_swaps_adapters(declared.spec, resolved):
        # Pods of the old template mount it, also those that are created during the roll-out.
        if observed.adapters_config_map is not None and is_rolled_out(observed.deployment):
            result.actions.append(build_delete(CONFIGMAPS, observed.adapters_config_map))
        return
    desired = children.build_adapters_config_map(observed.owner, resolved)
    if not is_as_desired(observed.adapters_config_map, desired):
        found = observed.adapters_config_map
        is_fixed = found and found.get("immutable")  # then it has to be created again
        result.actions.append(build_delete(CONFIGMAPS, found) if found and is_fixed else Apply(CONFIGMAPS, desired))
    else:
        result.actions += adapter_sidecar.plan_nudges(
            observed.pods, observed.answers, adapter_sidecar.compute_revision(resolved), now
        )


def is_rolled_out(deployment: Object | None) -> bool:
    """Return whether all pods have the Deployment's present template."""
    if deployment is None:
        return True
    status = deployment.get("status") or {}
    is_seen = status.get("observedGeneration") == deployment["metadata"].get("generation")
    return bool(is_seen and status.get("updatedReplicas", 0) == status.get("replicas", 0))


def _plan_deployment(
    observed: ObservedInferenceService,
    declared: InferenceService,
    resolved: ResolvedModels,
    replicas: int,
    now: datetime,
    result: Plan,
) -> str | None:
    found = observed.deployment
    desired = _build_deployment(observed, declared, resolved, replicas)
    # A claim that is no longer needed stays where it is mounted, unless it is being deleted.
    if rollouts.is_deployment_as_desired(found, desired) and not observed.leaving_claims:
        return None
    is_hot = children.hot_swaps_adapters(declared.spec, resolved)
    is_upgrade = found is not None and rollouts.is_upgrade(found, desired, declared.spec, resolved, is_hot=is_hot)
    serves = any(pod_state.is_ready(pod) and not pod["metadata"].get("deletionTimestamp") for pod in observed.pods)
    takes_turn = is_upgrade and serves
    if found is not None:
        node_drain.copy_move_mark(found, desired)
        if takes_turn and observed.upgrading_deployments:
            _plan_without_rollout(found, desired, replicas, result)
            return _explain_turn(observed)
        if mark := rollouts.choose_upgrade_mark(found, desired, now, takes_turn=takes_turn):
            desired["metadata"]["annotations"][rollouts.UPGRADE_ANNOTATION] = mark
        if declared.spec.autoscaling:
            # The API server refuses it when the autoscaler has set another number meanwhile.
            desired["metadata"]["resourceVersion"] = found["metadata"]["resourceVersion"]
    result.actions.append(Apply(DEPLOYMENTS, desired, waits_for_turn=takes_turn))
    return None


def _build_deployment(
    observed: ObservedInferenceService, declared: InferenceService, resolved: ResolvedModels, replicas: int
) -> Object:
    """Build the Deployment. RCCL's channels depend on the nodes' GPUs, and change only with another change of the pods.

    Nodes come and go, and are not always known: that alone must not restart engines.
    """
    spec, owner, images = declared.spec, observed.owner, observed.images
    several = spec.resources.gpus > 1
    unused = copy.deepcopy(resolved) if several else resolved  # building adds volumes to its argument
    more = tuning.needs_more_channels(spec.resources, spec.pod.node_selector, observed.cluster)
    by_nodes = children.build_deployment(owner, declared, resolved, images, replicas, more_channels=more)
    made_from = get_annotation(observed.deployment, rollouts.TEMPLATE_ANNOTATION)
    if not several or made_from in (None, rollouts.compute_template_digest(by_nodes)):
        return by_nodes
    other = children.build_deployment(owner, declared, unused, images, replicas, more_channels=not more)
    return other if made_from == rollouts.compute_template_digest(other) else by_nodes


def _plan_without_rollout(found: Object, desired: Object, replicas: int, result: Plan) -> None:
    """Fix what changes no pod, and record the fields of the spec, so that later changes of the user are recognized."""
    patch: Object = {}
    if found["spec"].get("replicas") != replicas:
        patch["spec"] = {"replicas": replicas}
    if read_field_record(found) is None:
        patch["metadata"] = {"annotations": {FIELDS_ANNOTATION: desired["metadata"]["annotations"][FIELDS_ANNOTATION]}}
    if patch:
        result.actions.append(Patch(DEPLOYMENTS, found["metadata"]["name"], patch))


def _explain_turn(observed: ObservedInferenceService) -> str:
    """Return why the engines wait. Names of services in other namespaces are left out: readers may not know them."""
    metadata = observed.upgrading_deployments[0]["metadata"]
    is_here = metadata["namespace"] == observed.owner["metadata"]["namespace"]
    other = f"InferenceService {metadata['name']}" if is_here else "one in another namespace"
    return (
        "All engines serve the present models, in pods that an earlier version of the operator made. They are replaced "
        f"when it is this service's turn, one InferenceService at a time: {other} is being replaced now. "
        "Nothing to do; a change of spec replaces them at once."
    )


def _plan_autoscaler(observed: ObservedInferenceService, declared: InferenceService, result: Plan) -> None:
    if declared.spec.autoscaling is None:
        if observed.autoscaler is not None:
            result.actions.append(build_delete(AUTOSCALERS, observed.autoscaler))
        return
    autoscaler = children.build_autoscaler(observed.owner, declared)
    if not is_as_desired(observed.autoscaler, autoscaler):
        result.actions.append(Apply(AUTOSCALERS, autoscaler))


def _plan_budget(observed: ObservedInferenceService, replicas: int, result: Plan) -> None:
    """Plan the budget: a drain evicts one of several engines at a time. A single engine is moved first, if possible."""
    moves = (
        replicas == 1 and observed.cordoned_nodes is not None and not any(map(is_single_node_claim, observed.claims))
    )
    if replicas <= 1 and not moves:
        if observed.budget is not None:
            result.actions.append(build_delete(BUDGETS, observed.budget))
        return
    budget = children.build_budget(observed.owner, 0 if moves else 1)
    if not is_as_desired(observed.budget, budget):
        result.actions.append(Apply(BUDGETS, budget))


def get_access_modes(claim: Object) -> list[str]:
    """Return the claim's access modes."""
    return (claim.get("spec") or {}).get("accessModes") or []


def is_single_node_claim(claim: Object) -> bool:
    """Return whether only one node can mount the claim."""
    return not {"ReadWriteMany", "ReadOnlyMany"} & set(get_access_modes(claim))
