"""For programs that compute on GPUs: fail before anything is loaded where the pod can't use those that it asks for."""

from collections.abc import Mapping

from hone_api.gpucheck import find_problem
from hone_api.reasons import GPU_NOT_USABLE, HoneError


def require_gpus(environ: Mapping[str, str]) -> None:
    """Return where the GPUs that the environment requires can be used, or none is required.

    Raises HoneError GpuNotUsable with the cause and the remedy.
    """
    if problem := find_problem(environ):
        raise HoneError(GPU_NOT_USABLE, problem.cause, remedy=problem.remedy)
