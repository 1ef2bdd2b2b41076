"""Training on several GPUs and nodes: launcher, rendezvous, process group and sharding."""
