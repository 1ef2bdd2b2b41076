"""Check StorageClasses, and which access modes their volumes have. Pure."""

from hone_api.schema.manifests import quote_text

from hone_cli.doctor.checks.cluster_facts import ClusterFacts, Object
from hone_cli.doctor.checks.findings import Finding, Unread, join_names, report_unread

DEFAULT = ("storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class")
# Parts of the names of provisioners whose volumes several nodes can mount (ReadWriteMany).
SHARED = (
    "nfs",
    "cephfs",
    "efs.csi.aws.com",
    "file.csi.azure.com",
    "filestore.csi.storage.gke.io",
    "smb.csi.k8s.io",
    "driver.longhorn.io",
    "lustre",
    "weka",
    "spectrumscale",
    "beegfs",
    "juicefs",
    "fss.csi.oraclecloud.com",
    "manila.csi.openstack.org",
    "csi-vast",
    "powerscale",
)
# Parts of the names of provisioners whose file systems one node at a time can mount (ReadWriteOnce).
SINGLE = (
    "local-path",
    "hostpath",
    "no-provisioner",
    "ebs.csi.",  # also ebs.csi.eks.amazonaws.com, of EKS Auto Mode
    "blockvolume.csi.oraclecloud.com",
    "dobs.csi.digitalocean.com",
    "disk.csi.azure.com",
    "pd.csi.storage.gke.io",
    "cinder.csi.openstack.org",
    "rbd.csi.ceph.com",
    "topolvm",
    "openebs.io/local",
)


def check_storage(facts: ClusterFacts) -> list[Finding]:
    """Return the findings about storage for models and outputs."""
    if isinstance(facts.storage_classes, Unread):
        return [report_unread("storageClass", "StorageClasses", facts.storage_classes)]
    classes = facts.storage_classes
    if not classes:
        return [
            Finding(
                "storageClass",
                "failed",
                "The cluster has no StorageClass, so claims for outputs are bound only to volumes made by hand",
                "Install a provisioner of volumes, or name existing claims in spec.output.claim.",
            )
        ]
    return [_check_default(classes), _check_access_modes(classes)]


def _check_default(classes: tuple[Object, ...]) -> Finding:
    if default := _find_default(classes):
        others = [_read_name(each) for each in classes if _is_default(each) and _read_name(each) != default]
        more = (
            f", the newest of those that are marked as default; the others are {join_names(others)}" if others else ""
        )
        return Finding("storageClass", "ok", f"The default StorageClass is {default}{more}")
    names = join_names(map(_read_name, classes))
    return Finding(
        "storageClass",
        "warning",
        f"No StorageClass is the default; there is {names}",
        "Set spec.output.storage.storageClassName in each FineTuneJob, or run `kubectl annotate storageclass NAME "
        f"--overwrite {DEFAULT[0]}=true`.",
    )


def _check_access_modes(classes: tuple[Object, ...]) -> Finding:
    shared = [_read_name(each) for each in classes if _has_provisioner(each, SHARED)]
    single = [
        _read_name(each) for each in classes if not _has_provisioner(each, SHARED) and _has_provisioner(each, SINGLE)
    ]
    if shared:
        message = f"ReadWriteMany, by its provisioner: {join_names(shared)}"
        is_usual = _find_default(classes) in shared
        remedy = "" if is_usual else f"To use it, set spec.output.storage.storageClassName: {quote_text(shared[0])}."
        return Finding("accessModes", "ok", message, remedy, is_required=False)
    alternative = (
        "Jobs on several nodes, and services whose replicas run on several nodes, need a StorageClass with "
        "ReadWriteMany, such as NFS or CephFS. Hone on one node at a time needs none."
    )
    if len(single) == len(classes):
        message = f"One node at a time can mount the volumes of {join_names(single)} (ReadWriteOnce)"
        return Finding("accessModes", "warning", message, alternative, is_required=False)
    others = [
        _read_name(each)
        for each in classes
        if not _has_provisioner(each, SHARED) and not _has_provisioner(each, SINGLE)
    ]
    message = f"Whether several nodes can mount the volumes of {join_names(others)} is not known of the provisioner"
    return Finding("accessModes", "unknown", message, f"Read its documentation. {alternative}", is_required=False)


def _read_name(body: Object) -> str:
    return str((body.get("metadata") or {}).get("name"))


def _find_default(classes: tuple[Object, ...]) -> str | None:
    """Return the class that Kubernetes uses: of several defaults the newest, of equal age the first by name."""
    defaults = sorted(filter(_is_default, classes), key=_read_name)
    newest = max(
        defaults, key=lambda each: str((each.get("metadata") or {}).get("creationTimestamp") or ""), default=None
    )
    return None if newest is None else _read_name(newest)


def _is_default(body: Object) -> bool:
    annotations = (body.get("metadata") or {}).get("annotations") or {}
    return any(annotations.get(name) == "true" for name in DEFAULT)


def _has_provisioner(body: Object, parts: tuple[str, ...]) -> bool:
    return any(part in str(body.get("provisioner")) for part in parts)
