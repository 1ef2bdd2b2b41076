"""Experiment trackers (MLflow, W&B, Trackio), decoupled from training.

The training process only appends what it logs to a file, the `journal`. For each tracker, `trackers` starts a `process`
with the lowest priority, which reads the journal and drives transformers' own callback of that tracker. A library that
waits, retries, crashes or draws random numbers does so there: training neither waits for it nor shares its threads, its
random state or its credentials. `record` keeps what a later start needs to continue the same run.
"""
