"""How a run reports its progress: one state, over HTTP and on the terminal."""
