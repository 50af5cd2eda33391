"""Heavy work, one module a process: `python -m fullft_assets.workloads.<name> --job URI --sha256 DIGEST`."""

from fullft_assets.jobs.launch import die_with_torchrun

# Here, because the modules below import torch, which takes seconds.
die_with_torchrun()
