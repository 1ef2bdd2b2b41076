"""Rules of Kubernetes for the parts of a pod that users write, so that the object is refused and not its pods.

Kubernetes' own schema has only types: that a volume has one source, or a weight is between 1 and 100, is in the code of
its API server, which would refuse the Job or Deployment much later. These tables use the names of Kubernetes' types;
`pod_schema` adds them to the schema, so that the API server and `hone validate` refuse the same. Other faults are found
by the API server when Hone creates the child, and reported as ChildInvalid.
"""

from collections.abc import Iterable

from hone_api.common import make_rule, require_exactly_one

Rules = list[dict[str, str]]

_PREFIX = r"([a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?"
_KEY_NAME = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
LABEL_KEY = f"^{_PREFIX}{_KEY_NAME}$"
_ANNOTATION_KEY = f"^{_PREFIX.replace('a-z', 'A-Za-z')}{_KEY_NAME}$"
LABEL_VALUE = r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$"
DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
_DNS_NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
_OCTET = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IP = f"^({_OCTET}([.]{_OCTET}){{3}}|[0-9a-fA-F:]*:[0-9a-fA-F:]*:[0-9a-fA-F:.]*)$"

_SET_ONE = "set exactly one of"
_KEY = "must be a key such as my-name or example.com/my-name"
_NO_VALUES = "!has(self.values) || self.values.size() == 0"
_VALUES = "has(self.values) && self.values.size() > 0"
_SET_OPERATORS = (
    f"self.operator in ['In', 'NotIn'] ? {_VALUES} : (!(self.operator in ['Exists', 'DoesNotExist']) || {_NO_VALUES})"
)
_SET_MESSAGE = "operators In and NotIn need values, Exists and DoesNotExist must have none"


def require_pattern(pattern: str, message: str) -> Rules:
    """Return the rule of a string that must match a pattern."""
    return [make_rule(f"self.matches(r'{pattern}')", message)]


def require_key_pattern(pattern: str, message: str) -> dict[str, str]:
    """Return the rule of a map whose keys must match a pattern."""
    return make_rule(f"self.all(key, size(key) <= 317 && key.matches(r'{pattern}'))", message)


def _require_one_source(*fields: str) -> Rules:
    return [make_rule(require_exactly_one(*fields), f"{_SET_ONE} {', '.join(fields)}")]


def _require_at_most_one(fields: Iterable[str], what: str) -> Rules:
    expression = f"[{', '.join(f'has(self.{name})' for name in fields)}].filter(x, x).size() <= 1"
    return [make_rule(expression, f"has more than one {what}: keep one")]


def _differ(field: str, message: str) -> Rules:
    one = f"has(x.{field}) && has(y.{field}) && x.{field} == y.{field}"
    return [make_rule(f"self.all(x, !has(x.{field}) || self.filter(y, {one}).size() == 1)", message)]


def _require_within(most: str, least: str) -> str:
    """Return the CEL expression that no quantity of one map exceeds that of the other map."""
    texts = [f"string(self.{name}[name])" for name in (least, most)]
    are_quantities = " && ".join(f"isQuantity({text})" for text in texts)
    return (
        f"!has(self.{least}) || !has(self.{most}) || self.{least}.all(name, !(name in self.{most}) || "
        f"!({are_quantities}) || quantity({texts[0]}).compareTo(quantity({texts[1]})) <= 0)"
    )


REQUESTS_WITHIN_LIMITS = make_rule(
    _require_within("limits", "requests"),
    "a request is above the limit of the same resource: lower it, or raise the limit",
)
DEVICE = f"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/{_KEY_NAME}$"
RESOURCE_NAMES = make_rule(
    "self.all(name, name in ['cpu', 'memory', 'ephemeral-storage'] || name.matches('^hugepages-[1-9][0-9]*[KMG]i$') || "
    f"(name.matches(r'{DEVICE}') && !name.startsWith('requests.')))",
    "must name cpu, memory, ephemeral-storage, hugepages such as hugepages-2Mi, or a device plugin's resource such as "
    "rdma/hca",
)
WHOLE_DEVICES = make_rule(
    "self.all(name, !name.contains('/') || string(self[name]).matches('^[0-9]+([kMGTPE]|[KMGTPE]i)?$'))",
    "a device can't be shared: give whole numbers, such as rdma/hca: 1",
)


def _is_true(field: str) -> str:
    return f"(has(self.containerSecurityContext.{field}) && self.containerSecurityContext.{field})"


_ADDS_CAPABILITIES = (
    "has(self.containerSecurityContext) && has(self.containerSecurityContext.capabilities) && "
    "has(self.containerSecurityContext.capabilities.add) && self.containerSecurityContext.capabilities.add.size() > 0"
)
# Kubernetes gives added capabilities to a process of another user only by file capabilities, for which it must be
# allowed to gain privileges: https://github.com/kubernetes/kubernetes/issues/56374.
_MAY_BE_ROOT = (
    "(has(self.containerSecurityContext.runAsUser) ? self.containerSecurityContext.runAsUser == 0 : "
    "(has(self.securityContext) && has(self.securityContext.runAsUser) ? self.securityContext.runAsUser == 0 : "
    "self.userAndGroup == 'Platform'))"
)
CAPABILITIES_HAVE_EFFECT = make_rule(
    f"!({_ADDS_CAPABILITIES}) || {_is_true('allowPrivilegeEscalation')} || {_is_true('privileged')} || {_MAY_BE_ROOT}",
    "containerSecurityContext.capabilities.add has no effect for a user that is not root: set "
    "containerSecurityContext.runAsUser: 0 and containerSecurityContext.runAsNonRoot: false, or remove add",
)

_TIED = (*("hone.dev/", "batch.kubernetes.io/", "apps.kubernetes.io/"), "deployment.kubernetes.io/")
_OWN = (
    *("app.kubernetes.io/managed-by", "app.kubernetes.io/component"),
    *("job-name", "controller-uid", "pod-template-hash"),
)
_TAKEN = " || ".join([*(f"key.startsWith('{prefix}')" for prefix in _TIED), f"key in {list(_OWN)!r}"])
NOT_RESERVED = make_rule(
    f"!self.exists(key, {_TAKEN})",
    f"must not have a key that begins with {', '.join(_TIED[:-1])} or {_TIED[-1]}, nor {', '.join(_OWN[:-1])} or "
    f"{_OWN[-1]}: Hone and Kubernetes find their objects by these",
)
LABEL_KEYS = require_key_pattern(LABEL_KEY, f"every key {_KEY}")
ANNOTATION_KEYS = require_key_pattern(_ANNOTATION_KEY, f"every key {_KEY}")

_SOURCES = (
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "fc", "hostPath", "image", "iscsi", "nfs"),
    *("persistentVolumeClaim", "projected", "secret"),
)
_HANDLERS = ("exec", "httpGet", "tcpSocket")
_LOCALHOST = make_rule(
    "(self.type == 'Localhost') == has(self.localhostProfile)", "type Localhost, and no other, needs localhostProfile"
)
_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")

# CEL rules of objects.
OF_TYPE: dict[str, Rules] = {
    "EnvVar": [
        make_rule("!has(self.valueFrom) || !has(self.value) || self.value == ''", f"{_SET_ONE} value and valueFrom"),
    ],
    "EnvVarSource": _require_one_source("configMapKeyRef", "fieldRef", "resourceFieldRef", "secretKeyRef"),
    "EnvFromSource": _require_one_source("configMapRef", "secretRef"),
    "DownwardAPIVolumeFile": [
        *_require_one_source("fieldRef", "resourceFieldRef"),
        make_rule(
            "!has(self.resourceFieldRef) || has(self.resourceFieldRef.containerName)",
            "resourceFieldRef of a volume needs containerName",
        ),
    ],
    "Volume": _require_at_most_one(_SOURCES, "source"),
    "VolumeProjection": _require_at_most_one(("configMap", "downwardAPI", "secret", "serviceAccountToken"), "source"),
    "VolumeMount": [
        *_require_at_most_one(("subPath", "subPathExpr"), "of subPath and subPathExpr"),
        make_rule(
            "!has(self.recursiveReadOnly) || self.recursiveReadOnly == 'Disabled' || "
            "(has(self.readOnly) && self.readOnly)",
            "recursiveReadOnly needs readOnly: true",
        ),
    ],
    "ResourceRequirements": [
        REQUESTS_WITHIN_LIMITS,
        *(
            make_rule(f"!has(self.{of}) || self.{of}.{one['rule'].removeprefix('self.')}", f"{of}: {one['message']}")
            for of in ("requests", "limits")
            for one in (RESOURCE_NAMES,)
        ),
    ],
    "Probe": _require_one_source("exec", "grpc", "httpGet", "tcpSocket"),
    "LifecycleHandler": _require_one_source("exec", "httpGet", "sleep", "tcpSocket"),
    "Container": [
        make_rule(
            f"(has(self.restartPolicy) && self.restartPolicy == 'Always') || "
            f"!({' || '.join(f'has(self.{name})' for name in ('lifecycle', *_PROBES))})",
            "lifecycle and probes are for sidecars: set restartPolicy: Always, or remove them",
        ),
        *(
            make_rule(
                f"!has(self.{probe}) || !has(self.{probe}.successThreshold) || self.{probe}.successThreshold <= 1",
                f"{probe}.successThreshold must be 1",
            )
            for probe in ("livenessProbe", "startupProbe")
        ),
        make_rule(
            "!has(self.readinessProbe) || !has(self.readinessProbe.terminationGracePeriodSeconds)",
            "readinessProbe must not have terminationGracePeriodSeconds",
        ),
    ],
    "SecurityContext": [
        make_rule(
            "!(has(self.privileged) && self.privileged && has(self.allowPrivilegeEscalation) && "
            "!self.allowPrivilegeEscalation)",
            "privileged: true rules out allowPrivilegeEscalation: false: remove one of them",
        ),
    ],
    "SeccompProfile": [_LOCALHOST],
    "AppArmorProfile": [_LOCALHOST],
    "TopologySpreadConstraint": [
        make_rule(
            "!has(self.minDomains) || self.whenUnsatisfiable == 'DoNotSchedule'",
            "minDomains needs whenUnsatisfiable: DoNotSchedule",
        ),
    ],
    "NodeSelectorRequirement": [
        make_rule(_SET_OPERATORS, _SET_MESSAGE),
        make_rule(
            "!(self.operator in ['Gt', 'Lt']) || (has(self.values) && self.values.size() == 1 && "
            "self.values[0].matches('^[0-9]+$'))",
            "operators Gt and Lt need one value, a whole number in quotes",
        ),
    ],
    "LabelSelectorRequirement": [make_rule(f"(self.operator in ['In', 'NotIn']) == ({_VALUES})", _SET_MESSAGE)],
}

_PORT = [
    make_rule(
        "type(self) == int ? (self > 0 && self < 65536) : self.matches('^[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?$')",
        "must be a port from 1 to 65535, or the name of a port",
    )
]
_LABEL_KEY = require_pattern(LABEL_KEY, _KEY)
_DNS_LABEL = require_pattern(DNS_LABEL, "must be a DNS label: lower-case letters, digits and '-', such as my-name")
_ADDRESS = require_pattern(_IP, "must be an IP address, such as 10.9.8.7 or 2001:db8::1")

# CEL rules of fields; `[]` stands for a list's items, `{}` for a map's values.
OF_FIELD: dict[str, Rules] = {
    "Container.name": _DNS_LABEL,
    "Container.ports": _differ("name", "two ports have the same name: rename one"),
    "ContainerPort.name": require_pattern(
        "^[a-z0-9-]*[a-z][a-z0-9-]*$", "must be lower-case letters, digits and '-', with a letter"
    ),
    "Volume.name": _DNS_LABEL,
    "NFSVolumeSource.path": [make_rule("self.startsWith('/')", "must be an absolute path")],
    "CSIVolumeSource.driver": require_pattern(
        "^[A-Za-z0-9]([-.A-Za-z0-9]*[A-Za-z0-9])?$", "must be the name of a CSI driver"
    ),
    "HTTPGetAction.port": _PORT,
    "TCPSocketAction.port": _PORT,
    "Capabilities.add[]": [make_rule("!self.startsWith('CAP_')", "must be written without CAP_, such as IPC_LOCK")],
    "Capabilities.drop[]": [make_rule("!self.startsWith('CAP_')", "must be written without CAP_, such as NET_RAW")],
    "SecurityContext.procMount": [make_rule("self == 'Default'", "must be Default: Hone's pods use the node's users")],
    "PodSecurityContext.sysctls": _differ("name", "two sysctls have the same name: remove one"),
    "Sysctl.name": require_pattern(
        r"^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
        "must be the name of a sysctl, such as net.core.somaxconn",
    ),
    "PodDNSConfig.nameservers[]": _ADDRESS,
    "HostAlias.ip": _ADDRESS,
    "HostAlias.hostnames[]": require_pattern(
        _DNS_NAME, "must be a host's name: lower-case letters, digits, '-' and '.'"
    ),
    "PodDNSConfig.searches[]": require_pattern(
        r"^([.]|_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?([.]_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*[.]?)$",
        "must be a domain: lower-case letters, digits, '-', '_' and '.'",
    ),
    "TopologySpreadConstraint.topologyKey": _LABEL_KEY,
}

_PART = "([^/.][^/]*|[.]([^/.][^/]*)?|[.][.][^/]+)"
_BELOW = f"^({_PART}(/+|$))*$"
# Patterns of strings that there may be many of: a CEL rule would cost more than the API server allows.
PATTERNS: dict[str, str] = {
    "ConfigMapKeySelector.key": "^[-._a-zA-Z0-9]+$",
    "DownwardAPIVolumeFile.path": _BELOW,
    "HostPathVolumeSource.path": f"^/*({_PART}(/+|$))*$",
    "KeyToPath.path": _BELOW,
    "LabelSelector.matchLabels{}": LABEL_VALUE,
    "LabelSelectorRequirement.key": LABEL_KEY,
    "LabelSelectorRequirement.values[]": LABEL_VALUE,
    "NodeSelectorRequirement.key": LABEL_KEY,
    "ObjectFieldSelector.fieldPath": (
        r"^(metadata[.](name|namespace|uid|(labels|annotations)(\[.+\])?)|spec[.](nodeName|serviceAccountName)|"
        r"status[.](host|pod)IPs?)$"
    ),
    "PodAffinityTerm.topologyKey": LABEL_KEY,
    "ResourceFieldSelector.resource": "^(limits|requests)[.](cpu|memory|ephemeral-storage|hugepages-.+)$",
    "SecretKeySelector.key": "^[-._a-zA-Z0-9]+$",
    "ServiceAccountTokenProjection.path": _BELOW,
    "VolumeMount.subPath": _BELOW,
    "VolumeMount.subPathExpr": _BELOW,
}

# Fields that Kubernetes' schema does not require, and its API server does.
REQUIRED: dict[str, list[str]] = {
    "Container": ["image"],
    "ConfigMapEnvSource": ["name"],
    "ConfigMapKeySelector": ["name"],
    "ConfigMapProjection": ["name"],
    "ConfigMapVolumeSource": ["name"],
    "EphemeralVolumeSource": ["volumeClaimTemplate"],
    "ExecAction": ["command"],
    "PodDNSConfigOption": ["name"],
    "SecretEnvSource": ["name"],
    "SecretKeySelector": ["name"],
    "SecretProjection": ["name"],
    "SecretVolumeSource": ["secretName"],
}

# The only values of a string.
ENUMS: dict[str, list[str]] = {
    "LabelSelectorRequirement.operator": ["In", "NotIn", "Exists", "DoesNotExist"],
    "VolumeMount.recursiveReadOnly": ["Disabled", "IfPossible", "Enabled"],
}

_FILE_MODE = (0, 0o777)
# The least and the greatest number, or number of items; None: the usual one.
RANGES: dict[str, tuple[int, int | None]] = {
    "ConfigMapVolumeSource.defaultMode": _FILE_MODE,
    "ContainerPort.containerPort": (1, 65535),
    "ContainerPort.hostPort": (0, 65535),
    "DownwardAPIVolumeFile.mode": _FILE_MODE,
    "DownwardAPIVolumeSource.defaultMode": _FILE_MODE,
    "ExecAction.command": (1, None),
    "GRPCAction.port": (1, 65535),
    "KeyToPath.mode": _FILE_MODE,
    "NodeSelector.nodeSelectorTerms": (1, None),
    "PreferredSchedulingTerm.weight": (1, 100),
    "ProjectedVolumeSource.defaultMode": _FILE_MODE,
    "SecretVolumeSource.defaultMode": _FILE_MODE,
    "ServiceAccountTokenProjection.expirationSeconds": (600, None),
    "TopologySpreadConstraint.maxSkew": (1, None),
    "TopologySpreadConstraint.minDomains": (1, None),
    "WeightedPodAffinityTerm.weight": (1, 100),
}
