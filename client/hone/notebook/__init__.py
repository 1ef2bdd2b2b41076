"""Show jobs in a notebook: HTML without scripts, which is updated in place. Nothing here imports IPython."""
