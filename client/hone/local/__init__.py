"""Train and serve on this machine: the processes of the trainer and the engine, and what they leave."""
