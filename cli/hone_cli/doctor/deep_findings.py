"""Report the results of the pod of --deep: the GPU's device files, the hub, and the default images. Pure."""

from collections.abc import Mapping
from typing import Any

from hone_api.gpucheck.facts import DeviceFile, Facts
from hone_api.gpucheck.judgement import judge_files

from hone_cli.doctor.checks.findings import Finding
from hone_cli.doctor.probe_pod import Probed

RUNTIME = "runtime.image"
PULL_REASONS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName")
CHECKS = {
    "gpuAccess": "whether a pod may open a node's GPU (render group)",
    "nodeHub": "whether a node reaches the hub",
    "images": "whether a node can pull the default images",
}
NOT_FOR_NODES = "Pods with a proxy or credentials of their own may differ."


def report_unprobed(images: Mapping[str, str]) -> list[Finding]:
    """Return the findings of a report without --deep: all are unknown."""
    named = ", ".join(f"{value} {image}" for value, image in images.items())
    return [
        Finding(
            check,
            "unknown",
            f"Not checked: {what}{f' ({named})' if check == 'images' and named else ''}",
            "Run `hone doctor --deep`, which starts a pod with one GPU for some seconds.",
            is_required=False,
        )
        for check, what in CHECKS.items()
    ]


def report_impossible(message: str, remedy: str) -> list[Finding]:
    """Return the findings when no pod could be created."""
    return [Finding(check, "unknown", f"Not checked: {message}", remedy) for check in CHECKS]


def check_probed(probed: Probed, images: Mapping[str, str]) -> list[Finding]:
    """Return the findings of the pod. `images` maps chart values to the default images."""
    if probed.answer is None:
        return _report_unanswered(probed, images)
    where = f"On node {probed.node or 'unknown'}"
    try:
        return [
            _check_access(where, probed, probed.answer),
            _check_hub(where, probed.answer["hub"]),
            *_check_images(where, probed.answer["images"], images),
        ]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        return report_impossible(f"the pod's answer is not as expected ({error!r})", "Upgrade Hone's runtime image.")


def _report_unanswered(probed: Probed, images: Mapping[str, str]) -> list[Finding]:
    if probed.reason in PULL_REASONS:
        message = f"{RUNTIME} {images.get(RUNTIME, '')} can't be pulled on node {probed.node}: {probed.error}"
        remedy = (
            "Set the chart's value runtime.image to an image that the nodes can pull; for a private registry give "
            "the namespace's ServiceAccount default its imagePullSecrets."
        )
        failed = Finding("images", "failed", message, remedy)
        return [*report_impossible("the pod's image can't be pulled", remedy)[:2], failed]
    remedies = {
        "RightsMissing": "Use a namespace (-n) in which you may create, read and delete pods.",
        "PodRefused": "Change what the message names, such as a quota or a policy, or use another namespace (-n).",
        "Timeout": "If all GPUs are in use, run it again when one is free, or set --timeout or --node. The first pull "
        "of the runtime image takes minutes.",
    }
    remedy = remedies.get(probed.reason, "Run it again; if it stays, look at the node's kubelet.")
    return report_impossible(f"the pod gave no answer ({probed.reason}: {probed.error or 'no message'})", remedy)


def _check_access(where: str, probed: Probed, answer: Mapping[str, Any]) -> Finding:
    resource = probed.target.resource
    if resource is None:
        message = f"Not checked: {CHECKS['gpuAccess']}: no node offers GPUs"
        return Finding("gpuAccess", "unknown", message, "See the check gpuResources.")
    facts = Facts(
        wanted=1,
        resource=resource,
        user=int(answer["user"]),
        groups=frozenset(answer["groups"]),
        kfd=DeviceFile(**answer["kfd"]) if answer["kfd"] else None,
        render=tuple(DeviceFile(**each) for each in answer["render"] if each),
        driver=answer["driver"],
    )
    if problem := judge_files(facts):
        return Finding("gpuAccess", "failed", f"{where}: {problem.cause}", problem.remedy)
    assert facts.kfd is not None
    message = (
        f"{where} a pod opens /dev/kfd (mode {facts.kfd.mode:o}, group {facts.kfd.group}) and the GPU that "
        f"{resource} gave it"
    )
    return Finding("gpuAccess", "ok", message)


def _check_hub(where: str, hub: Mapping[str, Any]) -> Finding:
    if isinstance(status := hub.get("status"), int) and status < 500:
        return Finding("nodeHub", "ok", f"{where} a pod reaches the hub", is_required=False)
    found = f"the hub answers with status {status}" if status else f"a pod can't reach the hub: {hub.get('error')}"
    return Finding(
        "nodeHub",
        "warning",
        f"{where} {found}",
        "Allow egress to it, set a proxy or HF_ENDPOINT in spec.pod.env, or use models and datasets on claims. "
        f"{NOT_FOR_NODES}",
        is_required=False,
    )


def _check_images(where: str, found: Mapping[str, Mapping[str, Any]], images: Mapping[str, str]) -> list[Finding]:
    good, missing, unknown = [RUNTIME], [], []
    for value, image in images.items():
        answer = found.get(image) or {}
        status = answer.get("status")
        if value == RUNTIME:  # the pod itself ran it
            continue
        if status == 200:
            good.append(value)
        elif status == 404:
            missing.append(f"{value} {image}")
        else:
            text = f"status {status}" if status else str(answer.get("error") or "no answer")
            unknown.append(f"{value} {image} ({text})")
    findings = []
    if missing:
        message = f"{where} the registry does not know {', '.join(missing)}"
        remedy = f"Set the chart's value {' and '.join(each.split()[0] for each in missing)} to an image that exists."
        findings.append(Finding("images", "failed", message, remedy))
    if unknown:
        message = f"{where} it is not known whether these can be pulled: {'; '.join(unknown)}"
        remedy = f"Mirrors and credentials of the nodes are not used in this check. {NOT_FOR_NODES}"
        findings.append(Finding("images", "unknown", message, remedy, is_required=False))
    if not missing and not unknown:
        findings.append(
            Finding("images", "ok", f"{where} {RUNTIME} runs, and {', '.join(good[1:]) or 'no more'} exist")
        )
    return findings
