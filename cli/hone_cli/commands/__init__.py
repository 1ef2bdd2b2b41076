"""One module for each command of `hone`, and modules that several commands share."""
