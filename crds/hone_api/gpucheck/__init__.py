"""Check whether a pod can use the GPUs that it requests; if not, find the cause and the remedy.

`collecting` gathers facts about the device files and, in a child process (`probe`), about torch; `judgement` decides
from them. Other packages call `find_problem`. The folder imports only the standard library, and its own modules only
relatively: it is also copied into the pods of engines whose images don't have Hone.
"""

from .collecting import describe_closed_devices as describe_closed_devices
from .collecting import find_problem as find_problem
from .facts import REQUIRED as REQUIRED
from .facts import RESOURCE as RESOURCE
from .facts import Problem as Problem
