"""`hone doctor`: report what a cluster, or this machine, has and lacks for Hone.

`cluster_reader` (cluster) and `machine` (here) gather facts with a timeout on every call; one pure module per subject
(`gpus`, `gpu_drivers`, `nodes`, `storage`, `installation`, `addons`, `deep_findings`, `machine_findings`) turns them
into `findings`; `report` prints these, and `command` is the entry point. `probe_pod` runs the only pod, that of --deep.
"""
