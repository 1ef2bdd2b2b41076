"""Which FineTuneJobs an InferenceService depends on, read from objects that may break the contract."""

from hone_operator.objects.resources import Object


def list_named_jobs(service: Object) -> set[str]:
    """Return the names of the FineTuneJobs that an InferenceService names, also one that breaks the contract."""
    spec = _as_mapping(service.get("spec"))
    adapters = spec.get("adapters")
    sources = [spec.get("model"), *(adapters if isinstance(adapters, list) else [])]
    names = (_as_mapping(_as_mapping(source).get("fineTuneJob")).get("name") for source in sources)
    return {name for name in names if isinstance(name, str)}


def _as_mapping(value: object) -> Object:
    return value if isinstance(value, dict) else {}
