"""What all pods that Hone makes have in common: settings, security levels and access to GPUs."""
