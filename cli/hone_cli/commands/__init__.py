"""One module for each command of `hone`, and what several of them share."""
