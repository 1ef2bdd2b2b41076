"""`hone-operator`: parse the command line and run the operator until a signal stops it. Next: handlers.py."""

import argparse
import gc
import os

import kopf
from hone_api.io.listening import split_address

from hone_operator.handlers import Options, register_operator
from hone_operator.kube.leader_election import LEASE, read_pod_namespace
from hone_operator.observability import logs
from hone_operator.pods.gpu_access import GpuAccess
from hone_operator.pods.pod_levels import LEVELS as POD_LEVELS
from hone_operator.pods.pod_levels import RESTRICTED
from hone_operator.pods.pod_spec import Images

ENGINES = ("vllm", "sglang", "tgi")
LEVELS = ("debug", "info", "warning", "error")


def main(argv: list[str] | None = None) -> None:
    """Parse the arguments and run the operator. Exits with 2 when they are wrong."""
    arguments = _parse_arguments(argv)
    logs.set_up_logging(arguments.log_level, arguments.log_format)
    registry = kopf.get_default_registry()
    engines = {name: image for name in ENGINES if (image := getattr(arguments, f"{name}_image"))}
    access = GpuAccess(tuple(arguments.gpu_groups), are_required=arguments.require_gpus)
    images = Images(arguments.runtime_image, engines, access, arguments.pod_security_level)
    lease = (arguments.lease_namespace, arguments.lease_name)
    options = Options(images, arguments.namespace, *lease, tuple(arguments.former_lease), arguments.listen)
    register_operator(registry, options)
    # Loaded modules are never freed. Without this the garbage collector visits them, and parsing JSON takes twice as
    # long.
    gc.freeze()
    # kopf's name for this process. Without it kopf looks up the user's name, which the image need not have.
    os.environ.setdefault("POD_ID", "hone-operator")
    kopf.run(
        registry=registry,
        standalone=True,
        clusterwide=not arguments.namespace,
        namespaces=arguments.namespace,
    )


def _parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="hone-operator", description="Runs FineTuneJobs and InferenceServices.")
    _add_pod_options(parser)
    _add_operator_options(parser)
    arguments = parser.parse_args(argv)
    if not arguments.runtime_image:
        parser.error("give the image of trainer and engine pods by --runtime-image or HONE_RUNTIME_IMAGE")
    return arguments


def _add_pod_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that decide the pods of jobs and services."""
    parser.add_argument(
        "--runtime-image",
        default=os.environ.get("HONE_RUNTIME_IMAGE"),
        help="image of trainers and of engine embedded (default: $HONE_RUNTIME_IMAGE)",
    )
    for name in ENGINES:
        variable = f"HONE_{name.upper()}_IMAGE"
        parser.add_argument(
            f"--{name}-image", default=os.environ.get(variable), help=f"image of engine {name} (default: ${variable})"
        )
    parser.add_argument(
        "--gpu-groups",
        type=_parse_groups,
        metavar="GID[,GID]",
        default=os.environ.get("HONE_GPU_GROUPS", ""),
        help="further group ids of pods that ask for GPUs, such as that of the nodes' render group "
        "(default: $HONE_GPU_GROUPS)",
    )
    parser.add_argument(
        "--require-gpus",
        type=_parse_boolean,
        metavar="true|false",
        default=os.environ.get("HONE_REQUIRE_GPUS", "true"),
        help="whether a pod fails that can't use the GPUs it asks for; with false it computes on the CPU, for clusters "
        "whose GPUs are not real (default: $HONE_REQUIRE_GPUS, else true)",
    )
    parser.add_argument(
        "--pod-security-level",
        type=_parse_pod_level,
        metavar="|".join(POD_LEVELS),
        default=os.environ.get("HONE_POD_SECURITY_LEVEL", RESTRICTED),
        help="the Pod Security level that settings in spec.pod may have "
        f"(default: $HONE_POD_SECURITY_LEVEL, else {RESTRICTED})",
    )


def _add_operator_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the operator's own process."""
    parser.add_argument("--namespace", action="append", default=[], help="watch only this namespace; may be repeated")
    parser.add_argument(
        "--lease-namespace",
        default=read_pod_namespace(),
        help="elect a leader by a Lease in this namespace (default: the pod's own; outside a cluster, no election)",
    )
    parser.add_argument("--lease-name", default=LEASE, help="name of that Lease (default: %(default)s)")
    parser.add_argument(
        "--former-lease",
        metavar="NAME",
        action="append",
        default=[LEASE],
        help="also wait for a pod of the same Deployment that leads by a Lease of this name; may be repeated "
        f"(always: {LEASE})",
    )
    parser.add_argument(
        "--listen",
        metavar="[HOST]:PORT",
        type=_parse_address,
        help="serve /healthz, /readyz and /metrics (:8080: on all addresses, IPv4 and IPv6)",
    )
    parser.add_argument("--log-format", choices=logs.FORMATS, default="text")
    parser.add_argument("--log-level", choices=LEVELS, default=os.environ.get("HONE_LOG_LEVEL", "info"))


def _parse_groups(text: str) -> list[int]:
    ids = [part.strip() for part in text.split(",") if part.strip()]
    for each in ids:
        if not each.isdecimal():
            raise argparse.ArgumentTypeError(f"{each!r} is no group id")
    return [int(each) for each in ids]


def _parse_boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text == "true"


def _parse_pod_level(text: str) -> str:
    if text not in POD_LEVELS:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(POD_LEVELS)}")
    return text


def _parse_address(text: str) -> str:
    try:
        split_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text
