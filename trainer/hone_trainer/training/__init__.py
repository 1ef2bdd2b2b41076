"""The training loop: HoneTrainer, its callbacks, sampler, random states, and evaluation."""
