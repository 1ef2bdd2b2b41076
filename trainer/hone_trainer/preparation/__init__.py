"""The stage before training: checks, tokens and the plan for the device, kept in prepared/."""
