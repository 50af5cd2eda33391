"""Heavy work, one module a process: `python -m fullft_assets.launch.workloads.<name> --job URI`."""

import gc

from fullft_assets.launch.contract import die_with_torchrun

# Both here, because the modules below import torch and transformers, which takes seconds: a quarter of them,
# if Python looks for garbage among the million objects that stay.
gc.set_threshold(100_000, 50, 1_000)
die_with_torchrun()
