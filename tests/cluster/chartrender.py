"""Render the chart with helm, with several variants of its values."""

import subprocess
from pathlib import Path
from typing import Any

import yaml
from apiserver import ROOT, programs

CHART = ROOT / "charts/hone"
Object = dict[str, Any]
PLACEMENT: Object = {
    "imagePullPolicy": "Always",
    "imagePullSecrets": [{"name": "registry"}],
    "replicas": 2,
    "extraArgs": [],
    "extraEnv": [{"name": "TZ", "value": "Europe/Berlin"}],
    "labels": {"team": "ml"},
    "annotations": {"example.com/owner": "ml"},
    "podLabels": {"team": "ml"},
    "podAnnotations": {"sidecar.istio.io/inject": "false"},
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"key": "dedicated", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "topologySpreadConstraints": [
        {
            "maxSkew": 1,
            "topologyKey": "zone",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": {"app.kubernetes.io/name": "hone"}},
        }
    ],
    "priorityClassName": "system-cluster-critical",
    "runtimeClassName": "gvisor",
    "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["hub"]}],
    "strategy": {"type": "Recreate"},
    "volumes": [{"name": "ca", "configMap": {"name": "ca"}}],
    "volumeMounts": [{"name": "ca", "mountPath": "/etc/ca"}],
    "terminationGracePeriodSeconds": 60,
}
VARIANTS: dict[str, Object] = {
    "default": {},
    "placed": {"operator": PLACEMENT, "global": {"imagePullSecrets": ["all", "registry"], "commonLabels": {"a": "b"}}},
    "one-namespace": {
        "watchNamespaces": ["team"],
        "crds": {"enabled": False},
        "admission": {"enabled": False},
        "networkPolicy": {"enabled": True},
    },
    "service-monitor": {
        "prometheus": {
            "servicemonitor": {"enabled": True, "interval": "1d", "labels": {"release": "prometheus"}},
            "engines": {"enabled": True},
        },
        "dashboard": {"enabled": True},
    },
    "pod-monitor": {"prometheus": {"podmonitor": {"enabled": True, "annotations": {"a": "b"}}}},
    "isolated": {
        "networkPolicy": {
            "enabled": True,
            "namespaces": ["team-a", "team-b"],
            "engineClients": [{"namespaceSelector": {}}],
        },
    },
    "openshift": {"operator": {"securityContext": {"runAsUser": None, "runAsGroup": None}}},
    "least": {
        "serviceAccount": {"create": False, "name": "given"},
        "rbac": {"create": False},
        "uninstall": {"removeBudgets": False},
        "nameOverride": "tuning",
        "fullnameOverride": "tuner",
    },
}


def helm(*arguments: object) -> tuple[bool, str]:
    folder = programs()
    assert folder
    command = [str(each) for each in (folder / "helm", *arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode == 0, done.stdout if done.returncode == 0 else done.stdout + done.stderr


def render(folder: Path, values: Object, release: str = "hone", chart: Path = CHART) -> list[Object]:
    file = folder / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    worked, output = helm("template", release, chart, "--namespace", "hone-system", "--values", file)
    assert worked, output
    return [found for found in yaml.safe_load_all(output) if found]
