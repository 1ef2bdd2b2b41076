"""Find settings of spec.pod that the installation's Pod Security level does not allow.

Hone's own pods keep the level `restricted`. With the chart's value runtime.podSecurityLevel, administrators decide what
users may set beyond it, in addition to the levels of namespaces, which Kubernetes enforces. The rules are those of
https://kubernetes.io/docs/concepts/security/pod-security-standards/ for the fields of spec.pod; the tests compare them
with the API server's own rules.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hone_api.pods.pod_options import PodOptions
from hone_api.reasons import INVALID_SPEC, HoneError

from hone_operator.objects.resources import Object

# From the strictest to the level that allows everything.
RESTRICTED, BASELINE, PRIVILEGED = LEVELS = ("restricted", "baseline", "privileged")
CHART_VALUE = "runtime.podSecurityLevel"

_RESTRICTED_VOLUMES = frozenset(
    {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "image",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
)
_BASELINE_CAPABILITIES = frozenset(
    {
        *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "SETFCAP"),
        *("SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
    }
)
_BASELINE_SYSCTLS = frozenset(
    {
        *("kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_local_reserved_ports"),
        *("net.ipv4.ip_unprivileged_port_start", "net.ipv4.ping_group_range", "net.ipv4.tcp_fin_timeout"),
        *("net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_keepalive_time"),
        *("net.ipv4.tcp_rmem", "net.ipv4.tcp_syncookies", "net.ipv4.tcp_wmem"),
    }
)
_BASELINE_SELINUX_TYPES = frozenset({"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"})
_APPARMOR_ANNOTATION = "container.apparmor.security.beta.kubernetes.io/"
_OWN_HOSTS = frozenset({"", "127.0.0.1", "::1"})
_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")


@dataclass(frozen=True)
class Relaxation:
    """A setting that needs a level above `restricted`."""

    field: str
    value: str
    level: str

    def __str__(self) -> str:
        return f"{self.field} is {self.value}, which needs level {self.level}"


def find_relaxations(options: PodOptions) -> list[Relaxation]:
    """Return the settings of spec.pod that the level `restricted` does not allow."""
    found: list[Relaxation] = []
    if options.host_network:
        found.append(Relaxation("spec.pod.hostNetwork", "true", PRIVILEGED))
    found += _find_in_context("spec.pod.securityContext", options.security_context or {})
    found += _find_in_context("spec.pod.containerSecurityContext", options.container_security_context or {})
    for index, volume in enumerate(options.volumes):
        found += _find_in_volume(f"spec.pod.volumes[{index}]", volume)
    for index, container in enumerate(options.init_containers):
        path = f"spec.pod.initContainers[{index}]"
        found += _find_in_context(f"{path}.securityContext", _read_object(container, "securityContext"))
        found += _find_in_container(path, container)
    for name, value in options.annotations.items():
        is_profile = value in ("", "runtime/default") or value.startswith("localhost/")
        if name.startswith(_APPARMOR_ANNOTATION) and not is_profile:
            found.append(Relaxation(f"spec.pod.annotations[{name}]", value, PRIVILEGED))
    return found


def explain_relaxations(options: PodOptions, allowed: str) -> HoneError | None:
    """Return why the installation does not allow such pods, with each forbidden setting; None where it does."""
    found = [one for one in find_relaxations(options) if LEVELS.index(one.level) > LEVELS.index(allowed)]
    if not found:
        return None
    needed = max((one.level for one in found), key=LEVELS.index)
    message = f"{'; '.join(map(str, found))}; pods of Hone may have level {allowed} (the chart's value {CHART_VALUE})"
    fields = ", ".join(one.field for one in found)
    remedy = f"Remove {fields}, or let whoever runs Hone set {CHART_VALUE}: {needed}."
    return HoneError(INVALID_SPEC, message, remedy=remedy)


def _find_in_context(path: str, context: Object) -> Iterator[Relaxation]:
    """Yield the relaxations in a securityContext of a pod or a container."""
    if context.get("privileged"):
        yield Relaxation(f"{path}.privileged", "true", PRIVILEGED)
    if context.get("allowPrivilegeEscalation"):
        yield Relaxation(f"{path}.allowPrivilegeEscalation", "true", BASELINE)
    if context.get("runAsNonRoot") is False:
        yield Relaxation(f"{path}.runAsNonRoot", "false", BASELINE)
    if context.get("runAsUser") == 0:
        yield Relaxation(f"{path}.runAsUser", "0", BASELINE)
    yield from _find_in_capabilities(f"{path}.capabilities", _read_object(context, "capabilities"))
    for profile in ("seccompProfile", "appArmorProfile"):
        if _read_object(context, profile).get("type") == "Unconfined":
            yield Relaxation(f"{path}.{profile}.type", "Unconfined", PRIVILEGED)
    selinux = _read_object(context, "seLinuxOptions")
    for name, allowed in (("type", _BASELINE_SELINUX_TYPES), ("user", {""}), ("role", {""})):
        if (value := selinux.get(name) or "") not in allowed:
            yield Relaxation(f"{path}.seLinuxOptions.{name}", value, PRIVILEGED)
    for index, sysctl in _read_items(context, "sysctls", dict):
        if (name := str(sysctl.get("name"))) not in _BASELINE_SYSCTLS:
            yield Relaxation(f"{path}.sysctls[{index}].name", name, PRIVILEGED)


def _read_object(parent: Object, name: str) -> Object:
    """Return an object's field that is an object itself; {} where it is missing, or malformed."""
    found = parent.get(name)
    return found if isinstance(found, dict) else {}


def _read_items(parent: Object, name: str, kind: type) -> Iterator[tuple[int, Any]]:
    """Yield the items of an object's list with their indices, without those of another type."""
    found = parent.get(name)
    for index, item in enumerate(found if isinstance(found, list) else []):
        if isinstance(item, kind):
            yield index, item


def _find_in_capabilities(path: str, capabilities: Object) -> Iterator[Relaxation]:
    for name in dict.fromkeys(name for _, name in _read_items(capabilities, "add", str)):
        if name != "NET_BIND_SERVICE":
            yield Relaxation(f"{path}.add", name, BASELINE if name in _BASELINE_CAPABILITIES else PRIVILEGED)
    dropped = [name for _, name in _read_items(capabilities, "drop", str)]
    if "drop" in capabilities and "ALL" not in dropped:
        yield Relaxation(f"{path}.drop", f"[{', '.join(dropped)}] without ALL", BASELINE)


def _find_in_volume(path: str, volume: Object) -> Iterator[Relaxation]:
    for source in sorted(volume.keys() - {"name"} - _RESTRICTED_VOLUMES):
        yield Relaxation(f"{path}.{source}", "set", PRIVILEGED if source == "hostPath" else BASELINE)


def _find_in_container(path: str, container: Object) -> Iterator[Relaxation]:
    """Yield the relaxations of a user's init container or sidecar outside its securityContext."""
    for index, port in _read_items(container, "ports", dict):
        if number := port.get("hostPort"):
            yield Relaxation(f"{path}.ports[{index}].hostPort", str(number), PRIVILEGED)
    lifecycle = _read_object(container, "lifecycle")
    handlers = {name: _read_object(container, name) for name in _PROBES}
    handlers |= {f"lifecycle.{name}": _read_object(lifecycle, name) for name in lifecycle}
    for name, handler in handlers.items():
        for kind in ("httpGet", "tcpSocket"):
            host = _read_object(handler, kind).get("host") or ""
            if host not in _OWN_HOSTS:
                yield Relaxation(f"{path}.{name}.{kind}.host", host, PRIVILEGED)
