"""What all parts of the trainer share: errors, signals, options, and the environment of libraries."""
