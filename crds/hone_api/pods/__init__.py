"""What users may set in the pods that Hone makes, and the rules for it."""
