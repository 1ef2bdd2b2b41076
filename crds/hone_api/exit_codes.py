"""The trainer's exit codes that decide whether Kubernetes starts it again; reasons.py has those of the failures."""

# Exit codes of failures that a retry can't fix: the Job fails at once.
USER_MISTAKES = range(64, 70)

# The trainer was asked to stop and saved a checkpoint: not counted against backoffLimit.
INTERRUPTED_EXIT_CODE = 75
