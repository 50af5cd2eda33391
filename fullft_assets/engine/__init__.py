"""The training loop: segments of a run, guards, checkpoints, optimizers, sharding. Imports torch: only launched processes import it."""
