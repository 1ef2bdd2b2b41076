"""`hone tensorboard`: TensorBoard on the event files of a job, here or in a cluster."""
