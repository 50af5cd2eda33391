"""From a `defs.yaml` to a checked use case, or one line for each problem."""
