"""Fail before anything is loaded if the pod can't use the GPUs that it requests. For programs that compute on GPUs."""

from collections.abc import Mapping

from hone_api.gpucheck import find_problem
from hone_api.reasons import GPU_NOT_USABLE, HoneError


def require_gpus(environ: Mapping[str, str]) -> None:
    """Return if the GPUs that the environment requires can be used, or none is required.

    Raises HoneError GpuNotUsable with the cause and the remedy.
    """
    if problem := find_problem(environ):
        raise HoneError(GPU_NOT_USABLE, problem.cause, remedy=problem.remedy)
