"""Build the children of an InferenceService: the engine's Deployment, its Service, budget, ConfigMap and autoscaler.

In: the object, what was resolved, and the installation's images. Out: the desired children. child_actions.py compares
them with the existing ones. The containers next to the engine: engines/artifact_links.py, adapter_sidecar.py,
engines/key_guard.py.
"""

from hone_api.inferenceservices.spec import InferenceService, InferenceServiceSpec
from hone_api.layout import (
    COMPONENT_LABEL,
    ENGINE_PORT,
    INFERENCESERVICE_LABEL,
    MANAGED_BY_LABEL,
    MANAGER,
    POD_CACHE,
    POD_SERVED,
)
from hone_api.pods.pod_options import ComputeResources

from hone_operator.engines import artifact_links, hub_download, key_guard
from hone_operator.engines.engine import Engine
from hone_operator.engines.probes import HEALTH_PROBE
from hone_operator.engines.registry import select_engine
from hone_operator.engines.resolve import MODULES_CACHE, ResolvedModels
from hone_operator.engines.root_images import run_as_root_if_needed
from hone_operator.engines.shutdown import get_grace_seconds
from hone_operator.inferenceservice import adapter_downloads, autoscaling, rollouts
from hone_operator.inferenceservice import adapter_sidecar as keeping
from hone_operator.objects import child_names
from hone_operator.objects.drift import add_digest
from hone_operator.objects.resources import Object
from hone_operator.pods import pod_options, tuning
from hone_operator.pods.hub_token import go_offline
from hone_operator.pods.pod_spec import (
    POD_API_KEY,
    Images,
    Volumes,
    add_scratch_volumes,
    build_environment,
    build_helper_requirements,
    build_labels,
    build_owner_reference,
    build_pod_spec,
    build_resource_requirements,
)

CONTAINER, CHECK_CONTAINER = "engine", "check"
MAX_START_SECONDS = 3600
PROBE_PERIOD_SECONDS = 2
FIRST_ANSWER_TIMEOUT_SECONDS = 30
SCRAPE_ANNOTATIONS = {
    "prometheus.io/scrape": "true",
    "prometheus.io/port": str(ENGINE_PORT),
    "prometheus.io/path": "/metrics",
}
HOSTNAME = "kubernetes.io/hostname"
LINKS_SIZE = "16Mi"
# Requests of the helper containers: they read files in pieces, and a quota may require requests of every container.
HELPER_RESOURCES = ComputeResources(cpu="100m", memory="256Mi")


def build_selector(name: str) -> dict[str, str]:
    """Return the labels that select the engine's pods."""
    return {MANAGED_BY_LABEL: MANAGER, COMPONENT_LABEL: CONTAINER, INFERENCESERVICE_LABEL: name}


def build_url(owner: Object) -> str:
    """Return the base URL for OpenAI clients inside the cluster."""
    return f"http://{owner['metadata']['name']}.{owner['metadata']['namespace']}.svc/v1"


def build_service(owner: Object) -> Object:
    name = owner["metadata"]["name"]
    return add_digest(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": _build_metadata(owner, {}),
            "spec": {
                "type": "ClusterIP",
                "selector": build_selector(name),
                "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}],
            },
        }
    )


def build_budget(owner: Object, at_once: int) -> Object:
    """Return the budget: a drain may evict `at_once` engines at once, and unhealthy ones at any time."""
    return add_digest(
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": _build_metadata(owner, {}),
            "spec": {
                "maxUnavailable": at_once,
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
                "selector": {"matchLabels": build_selector(owner["metadata"]["name"])},
            },
        }
    )


def build_adapters_config_map(owner: Object, resolved: ResolvedModels) -> Object:
    """Return the ConfigMap that lists the adapters that the engines should have."""
    metadata = _build_metadata(owner, {})
    metadata["name"] = child_names.make_adapters_config_map_name(metadata["name"])
    return add_digest(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata,
            "data": keeping.build_config_data(resolved) | adapter_downloads.build_config_data(resolved),
        }
    )


def build_autoscaler(owner: Object, declared: InferenceService) -> Object:
    return add_digest(autoscaling.build_autoscaler(declared.spec, _build_metadata(owner, {})))


def build_deployment(
    owner: Object,
    declared: InferenceService,
    resolved: ResolvedModels,
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
    metadata = _build_metadata(owner, options.labels)
    template: Object = {"labels": build_labels(INFERENCESERVICE_LABEL, declared.name, CONTAINER, options.labels)}
    template["annotations"] = SCRAPE_ANNOTATIONS | options.annotations
    if options.annotations:
        metadata["annotations"] = options.annotations
    desired: Object = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": build_selector(declared.name)},
            "strategy": _build_strategy(spec),
            "progressDeadlineSeconds": MAX_START_SECONDS,
            "template": {"metadata": template, "spec": _build_pod(declared, resolved, images, more_channels)},
        },
    }
    digest = rollouts.compute_deployment_digest(desired)
    metadata["annotations"] = options.annotations | rollouts.build_annotations(desired, spec, resolved)
    return add_digest(desired, digest=digest)


def _build_strategy(spec: InferenceServiceSpec) -> Object:
    if spec.strategy.type == "Recreate":
        return {"type": "Recreate"}
    return {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}


def _build_pod(declared: InferenceService, resolved: ResolvedModels, images: Images, more_channels: bool) -> Object:
    engine = select_engine(declared.spec)
    image = declared.spec.pod.image or images.get_engine_image(engine.name)
    spec = declared.spec.model_copy(update={"pod": run_as_root_if_needed(declared.spec.pod, image)})
    gpus = spec.resources.gpus
    helpers = [
        *hub_download.build_download_containers(spec, resolved, images.runtime),
        *resolved.uri_downloads.build_containers(
            spec, resolved.volumes, images.runtime, with_adapters=not hot_swaps_adapters(spec, resolved)
        ),
        *_build_helper_containers(declared, resolved, images),
    ]
    add_scratch_volumes(resolved.volumes, spec.resources)
    variables = _build_engine_environment(engine, spec, resolved, images, more_channels)
    if spec.api_key_secret:
        variables = [variable for variable in variables if variable["name"] != engine.api_key_env]
        resolved.volumes.volumes += _build_key_volume(spec).volumes
        if not engine.is_guarded(spec):
            resolved.volumes.mounts += _build_key_volume(spec).mounts
    labels_of_pods = build_selector(declared.name)
    pod = build_pod_spec(
        _build_engine_container(engine, spec, resolved, image, variables),
        resolved.volumes,
        spec.pod,
        gpus=gpus,
        gpu_resource=spec.resources.gpu_resource,
        selector=labels_of_pods,
        groups=images.gpu_access.get_groups(gpus),
    )
    # For any number of replicas, so that a change of the number does not change the pods.
    spread = {"maxSkew": 1, "topologyKey": HOSTNAME, "whenUnsatisfiable": "ScheduleAnyway"}
    constraints = pod.get("topologySpreadConstraints", [])
    if HOSTNAME not in [constraint["topologyKey"] for constraint in constraints]:
        constraints = [*constraints, spread | {"labelSelector": {"matchLabels": labels_of_pods}}]
    pod["topologySpreadConstraints"] = constraints
    pod["terminationGracePeriodSeconds"] = get_grace_seconds(spec)
    # Kubernetes copies the name to the older field, and back from there when only the name is removed.
    pod["serviceAccountName"] = pod["serviceAccount"] = spec.pod.service_account_name or ""
    check = (
        [_build_check_container(engine.check_command, pod["containers"][0])]
        if engine.check_command and artifact_links.provides_modules(spec, resolved)
        else []
    )
    init_containers = [*pod.get("initContainers", []), *helpers, *check]
    return pod_options.add_pull_policies(pod | ({"initContainers": init_containers} if init_containers else {}))


def _build_engine_environment(
    engine: Engine, spec: InferenceServiceSpec, resolved: ResolvedModels, images: Images, more_channels: bool
) -> list[Object]:
    """Return the variables of the engine's container: the engine's own ones, tuning, and those of the spec."""
    own = engine.build_environment(spec, resolved)
    env = {"HOME": "/tmp", "USER": "hone"} | resolved.env | own
    if resolved.weights.trust_remote_code:
        env["HF_MODULES_CACHE"] = MODULES_CACHE
    env |= tuning.build_serving_environment(spec.resources, more_channels=more_channels)
    env |= images.gpu_access.build_environment(spec.resources, spec.resources.gpus)
    variables = build_environment(env, spec.pod)
    if resolved.download:
        variables = go_offline(variables, spec.pod)
    if "PYTHONPATH" in own:
        _append_python_path(variables)
    return variables


def _build_engine_container(
    engine: Engine, spec: InferenceServiceSpec, resolved: ResolvedModels, image: str | None, variables: list[Object]
) -> Object:
    container: Object = {
        "name": CONTAINER,
        "image": image,
        "command": list(engine.command),
        "args": [*engine.build_arguments(spec, resolved), *spec.extra_args],
        "env": variables,
        "ports": [{"name": "http", "containerPort": ENGINE_PORT}],
        "resources": build_resource_requirements(spec.resources, spec.resources.gpus),
        "startupProbe": engine.build_startup_probe(spec, resolved)
        | _build_probe_times(
            PROBE_PERIOD_SECONDS, MAX_START_SECONDS // PROBE_PERIOD_SECONDS, timeout=FIRST_ANSWER_TIMEOUT_SECONDS
        ),
        "readinessProbe": HEALTH_PROBE | _build_probe_times(PROBE_PERIOD_SECONDS, 3),
        "livenessProbe": HEALTH_PROBE | _build_probe_times(10, 6),
        # The engine's error is the end of its log.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    if pre_stop := engine.build_pre_stop_hook(spec, resolved):
        container["lifecycle"] = {"preStop": pre_stop}
    return container


def _build_helper_containers(declared: InferenceService, resolved: ResolvedModels, images: Images) -> list[Object]:
    """Return the helper containers, and add their volumes to those of the pod.

    They check and link artifacts before the engine starts, load and unload adapters while it runs, and guard its key.
    """
    spec, engine, volumes = declared.spec, select_engine(declared.spec), resolved.volumes
    hot = hot_swaps_adapters(spec, resolved)
    adapters = [] if hot else resolved.all_adapters
    resources = build_helper_requirements(HELPER_RESOURCES, spec.resources)
    guard = []
    if engine.is_guarded(spec):
        guard = [
            key_guard.build_guard_container(
                spec, engine.client_routes, images.runtime, resources, _build_key_volume(spec).mounts
            )
        ]
    imports = engine.check_command is not None and artifact_links.provides_modules(spec, resolved)
    places = not engine.verifies_artifacts and bool(resolved.weights.is_folder or adapters or (imports and not hot))
    if not (hot or places):
        return guard
    served = Volumes()
    served.add_empty_dir("served", POD_SERVED, medium="Memory", sizeLimit=LINKS_SIZE)
    # Of a model on the hub the engine writes the cache, from which these containers read adapters.
    has_downloads = bool(resolved.uri_downloads.adapters)
    read = [
        mount | {"readOnly": True}
        for mount in volumes.mounts
        if mount.get("readOnly") or (has_downloads and mount["mountPath"] == POD_CACHE)
    ]
    mounts = [*read, *served.mounts]
    volumes.volumes += served.volumes
    volumes.mounts += [mount | {"readOnly": True} for mount in served.mounts]
    rank = engine.get_max_lora_rank(spec, resolved)
    found = (
        [artifact_links.build_link_container(resolved, adapters, rank, images.runtime, resources, mounts)]
        if places
        else []
    )
    if hot:
        file = keeping.build_volumes(declared.name)
        volumes.volumes += file.volumes
        mounts = [*mounts, *file.mounts, *_build_key_volume(spec).mounts]
        found += adapter_downloads.build_containers(spec, resolved, file.mounts, images.runtime, resources)
        found.append(keeping.build_sidecar_container(spec, rank, images.runtime, resources, mounts))
    return [*found, *guard]


def _build_check_container(command: list[str], container: Object) -> Object:
    """Return an init container in which the engine's code checks its arguments, before it loads weights."""
    shared = ("image", "imagePullPolicy", "args", "env", "envFrom", "resources", "volumeMounts", "securityContext")
    return {
        "name": CHECK_CONTAINER,
        "command": command,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        **{name: container[name] for name in shared if name in container},
    }


def _append_python_path(variables: list[Object]) -> None:
    """Append the folder of the middleware module to a user's own PYTHONPATH."""
    for variable in variables:
        if variable["name"] == "PYTHONPATH" and POD_SERVED not in variable["value"].split(":"):
            variable["value"] += f":{POD_SERVED}"


def _build_key_volume(spec: InferenceServiceSpec) -> Volumes:
    found = Volumes()
    if key := spec.api_key_secret:
        found.add_secret("api-key", key.name, key.key, POD_API_KEY)
    return found


def hot_swaps_adapters(spec: InferenceServiceSpec, resolved: ResolvedModels) -> bool:
    """Return whether adapters are loaded and unloaded while the engines run."""
    return select_engine(spec).hot_swaps_adapters and bool(resolved.all_adapters)


def _build_probe_times(period: int, failures: int, timeout: int = 5) -> Object:
    return {"periodSeconds": period, "timeoutSeconds": timeout, "failureThreshold": failures}


def _build_metadata(owner: Object, of_user: dict[str, str]) -> Object:
    metadata = owner["metadata"]
    return {
        "name": metadata["name"],
        "namespace": metadata["namespace"],
        "labels": build_labels(INFERENCESERVICE_LABEL, metadata["name"], CONTAINER, of_user),
        "ownerReferences": [build_owner_reference(owner)],
    }
