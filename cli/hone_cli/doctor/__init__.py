"""`hone doctor`: what a cluster, or this machine, has and lacks for Hone.

`collecting` (cluster) and `machine` (here) gather facts with a timeout on every call; one pure module per subject
(`gpus`, `gpudrivers`, `nodes`, `storage`, `installation`, `addons`, `deepfindings`, `machinefindings`) turns them into
`findings`; `report` shows these, and `command` is the way in. `probepod` runs the one pod of --deep.
"""
