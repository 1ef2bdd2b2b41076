"""Build the children of an InferenceService: the engine's Deployment, its Service, budget, ConfigMap and autoscaler.

In: the object, what was resolved, and the installation's images. Out: the desired children. child_actions.py compares
them with the existing ones. The containers next to the engine: engines/artifact_links.py, adapter_sidecar.py,
engines/key_guard.py.
"""

from hone_api.inferenceservices.spec import InferenceService, InferenceServiceSpec
from hone_api.layout import COMPONENT_LABEL, ENGINE_PORT, INFERENCESERVICE_LABEL, MANAGED_BY_LABEL, MANAGER, POD_SERVED
from hone_api.pods.pod_options import ComputeResources

from hone_operator.engines import artifact_links, key_guard
from hone_operator.engines.probes import HEALTH
from hone_operator.engines.registry import engine_of
from hone_operator.engines.resolve import Resolved
from hone_operator.engines.root_images import as_root_if_needed
from hone_operator.engines.shutdown import grace_seconds
from hone_operator.inferenceservice import adapter_sidecar as keeping
from hone_operator.inferenceservice import autoscaling, rollouts
from hone_operator.objects import child_names
from hone_operator.objects.drift import stamp
from hone_operator.objects.resources import Object
from hone_operator.pods import pod_options, tuning
from hone_operator.pods.pod_spec import (
    POD_API_KEY,
    Images,
    Volumes,
    environment,
    helper_requirements,
    labels,
    owner_reference,
    pod_spec,
    requirements,
    scratch,
)

CONTAINER, CHECK = "engine", "check"
LONGEST_START_SECONDS = 3600
PROBE_SECONDS = 2
FIRST_ANSWER_SECONDS = 30
SCRAPED = {
    "prometheus.io/scrape": "true",
    "prometheus.io/port": str(ENGINE_PORT),
    "prometheus.io/path": "/metrics",
}
HOSTNAME = "kubernetes.io/hostname"
LINKS_SIZE = "16Mi"
# Requests of the helper containers: they read files in pieces, and a quota may require requests of every container.
PLACING = ComputeResources(cpu="100m", memory="256Mi")


def selector(name: str) -> dict[str, str]:
    """Return the labels that select the engine's pods."""
    return {MANAGED_BY_LABEL: MANAGER, COMPONENT_LABEL: CONTAINER, INFERENCESERVICE_LABEL: name}


def url(owner: Object) -> str:
    """Return the base URL for OpenAI clients inside the cluster."""
    return f"http://{owner['metadata']['name']}.{owner['metadata']['namespace']}.svc/v1"


def service(owner: Object) -> Object:
    name = owner["metadata"]["name"]
    return stamp(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": _metadata(owner, {}),
            "spec": {
                "type": "ClusterIP",
                "selector": selector(name),
                "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}],
            },
        }
    )


def budget(owner: Object, at_once: int) -> Object:
    """Return the budget: a drain may evict `at_once` engines at once, and unhealthy ones at any time."""
    return stamp(
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": _metadata(owner, {}),
            "spec": {
                "maxUnavailable": at_once,
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
                "selector": {"matchLabels": selector(owner["metadata"]["name"])},
            },
        }
    )


def adapters(owner: Object, resolved: Resolved) -> Object:
    """Return the ConfigMap that lists the adapters that the engines should have."""
    metadata = _metadata(owner, {})
    metadata["name"] = child_names.adapters_config_map_name(metadata["name"])
    return stamp({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": keeping.wanted(resolved)})


def autoscaler(owner: Object, declared: InferenceService) -> Object:
    return stamp(autoscaling.autoscaler(declared.spec, _metadata(owner, {})))


def deployment(
    owner: Object,
    declared: InferenceService,
    resolved: Resolved,
    images: Images,
    replicas: int,
    *,
    more_channels: bool = False,
) -> Object:
    """Return the Deployment. In a roll-out a new pod is ready before an old one ends, unless spec.strategy is Recreate.

    `more_channels`: whether RCCL gets the channels of tuning.py.
    """
    spec = declared.spec
    options = spec.pod
    metadata = _metadata(owner, options.labels)
    template: Object = {"labels": labels(INFERENCESERVICE_LABEL, declared.name, CONTAINER, options.labels)}
    template["annotations"] = SCRAPED | options.annotations
    if options.annotations:
        metadata["annotations"] = options.annotations
    desired: Object = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": selector(declared.name)},
            "strategy": _strategy(spec),
            "progressDeadlineSeconds": LONGEST_START_SECONDS,
            "template": {"metadata": template, "spec": _pod(declared, resolved, images, more_channels)},
        },
    }
    digest = rollouts.digest_of_deployment(desired)
    metadata["annotations"] = options.annotations | rollouts.annotations_of(desired, spec, resolved)
    return stamp(desired, digest=digest)


def _strategy(spec: InferenceServiceSpec) -> Object:
    if spec.strategy.type == "Recreate":
        return {"type": "Recreate"}
    return {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}


def _pod(declared: InferenceService, resolved: Resolved, images: Images, more_channels: bool) -> Object:
    engine = engine_of(declared.spec)
    image = declared.spec.pod.image or images.of(engine.NAME)
    spec = declared.spec.model_copy(update={"pod": as_root_if_needed(declared.spec.pod, image)})
    gpus = spec.resources.gpus
    beside = _beside(declared, resolved, images)
    scratch(resolved.volumes, spec.resources)
    own = engine.environment(spec, resolved)
    env = {"HOME": "/tmp", "USER": "hone"} | resolved.env | own
    if resolved.weights.trust_remote_code:
        env["HF_MODULES_CACHE"] = "/tmp/modules"  # not in the cache, which is mounted read-only
    env |= tuning.serving_environment(spec.resources, more_channels=more_channels)
    env |= images.gpu_access.environment(spec.resources, gpus)
    variables = environment(env, spec.pod)
    if "PYTHONPATH" in own:
        _add_path(variables)
    if spec.api_key_secret:
        variables = [variable for variable in variables if variable["name"] != engine.KEY_VARIABLE]
        resolved.volumes.volumes += _api_key(spec).volumes
        if not engine.is_guarded(spec):
            resolved.volumes.mounts += _api_key(spec).mounts
    container: Object = {
        "name": CONTAINER,
        "image": image,
        "command": engine.COMMAND,
        "args": [*engine.arguments(spec, resolved), *spec.extra_args],
        "env": variables,
        "ports": [{"name": "http", "containerPort": ENGINE_PORT}],
        "resources": requirements(spec.resources, gpus),
        "startupProbe": engine.started(spec, resolved)
        | _times(PROBE_SECONDS, LONGEST_START_SECONDS // PROBE_SECONDS, timeout=FIRST_ANSWER_SECONDS),
        "readinessProbe": HEALTH | _times(PROBE_SECONDS, 3),
        "livenessProbe": HEALTH | _times(10, 6),
        # The engine's error is the end of its log.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    if pre_stop := engine.pre_stop(spec, resolved):
        container["lifecycle"] = {"preStop": pre_stop}
    labels_of_pods = selector(declared.name)
    pod = pod_spec(
        container,
        resolved.volumes,
        spec.pod,
        gpus=gpus,
        gpu_resource=spec.resources.gpu_resource,
        selector=labels_of_pods,
        groups=images.gpu_access.groups_for(gpus),
    )
    # For any number of replicas, so that a change of the number does not change the pods.
    spread = {"maxSkew": 1, "topologyKey": HOSTNAME, "whenUnsatisfiable": "ScheduleAnyway"}
    constraints = pod.get("topologySpreadConstraints", [])
    if HOSTNAME not in [constraint["topologyKey"] for constraint in constraints]:
        constraints = [*constraints, spread | {"labelSelector": {"matchLabels": labels_of_pods}}]
    pod["topologySpreadConstraints"] = constraints
    pod["terminationGracePeriodSeconds"] = grace_seconds(spec)
    # Kubernetes copies the name to the older field, and back from there when only the name is removed.
    pod["serviceAccountName"] = pod["serviceAccount"] = spec.pod.service_account_name or ""
    check = (
        [_check(engine.CHECK, pod["containers"][0])]
        if engine.CHECK and artifact_links.is_placed(spec, resolved)
        else []
    )
    init_containers = [*pod.get("initContainers", []), *beside, *check]
    return pod_options.with_pull_policies(pod | ({"initContainers": init_containers} if init_containers else {}))


def _beside(declared: InferenceService, resolved: Resolved, images: Images) -> list[Object]:
    """Return the helper containers, and add their volumes to those of the pod.

    They check and link artifacts before the engine starts, load and unload adapters while it runs, and guard its key.
    """
    spec, engine, volumes = declared.spec, engine_of(declared.spec), resolved.volumes
    hot = is_hot(spec, resolved)
    adapters = [] if hot else resolved.all_adapters
    resources = helper_requirements(PLACING, spec.resources)
    guard = []
    if engine.is_guarded(spec):
        guard = [key_guard.container(spec, engine.CLIENT_ROUTES, images.runtime, resources, _api_key(spec).mounts)]
    imports = engine.CHECK is not None and artifact_links.is_placed(spec, resolved)
    places = not engine.PROVES and bool(resolved.weights.is_folder or adapters or (imports and not hot))
    if not (hot or places):
        return guard
    served = Volumes()
    served.empty_dir("served", POD_SERVED, medium="Memory", sizeLimit=LINKS_SIZE)
    mounts = [*(mount for mount in volumes.mounts if mount.get("readOnly")), *served.mounts]
    volumes.volumes += served.volumes
    volumes.mounts += [mount | {"readOnly": True} for mount in served.mounts]
    rank = engine.largest_rank(spec, resolved)
    found = [artifact_links.container(resolved, adapters, rank, images.runtime, resources, mounts)] if places else []
    if hot:
        file = keeping.volumes(declared.name)
        volumes.volumes += file.volumes
        mounts = [*mounts, *file.mounts, *_api_key(spec).mounts]
        found.append(keeping.container(spec, rank, images.runtime, resources, mounts))
    return [*found, *guard]


def _check(command: list[str], container: Object) -> Object:
    """Return an init container in which the engine's code checks its arguments, before it loads weights."""
    shared = ("image", "imagePullPolicy", "args", "env", "envFrom", "resources", "volumeMounts", "securityContext")
    return {
        "name": CHECK,
        "command": command,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        **{name: container[name] for name in shared if name in container},
    }


def _add_path(variables: list[Object]) -> None:
    """Append the folder of the gate module to a user's own PYTHONPATH."""
    for variable in variables:
        if variable["name"] == "PYTHONPATH" and POD_SERVED not in variable["value"].split(":"):
            variable["value"] += f":{POD_SERVED}"


def _api_key(spec: InferenceServiceSpec) -> Volumes:
    found = Volumes()
    if key := spec.api_key_secret:
        found.secret("api-key", key.name, key.key, POD_API_KEY)
    return found


def is_hot(spec: InferenceServiceSpec, resolved: Resolved) -> bool:
    """Return whether adapters are loaded and unloaded while the engines run."""
    return engine_of(spec).HOT and bool(resolved.all_adapters)


def _times(period: int, failures: int, timeout: int = 5) -> Object:
    return {"periodSeconds": period, "timeoutSeconds": timeout, "failureThreshold": failures}


def _metadata(owner: Object, of_user: dict[str, str]) -> Object:
    metadata = owner["metadata"]
    return {
        "name": metadata["name"],
        "namespace": metadata["namespace"],
        "labels": labels(INFERENCESERVICE_LABEL, metadata["name"], CONTAINER, of_user),
        "ownerReferences": [owner_reference(owner)],
    }
