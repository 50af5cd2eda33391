"""Heavy work, one module a process: `python -m fullft_assets.workloads.<name> --job URI`."""

import multiprocessing
import os

from fullft_assets.jobs.launch import LAUNCH_ID, die_with_parent

# torchrun's ranks run in sessions of their own and outlive a killed torchrun. Here, before the seconds that the
# import of torch takes; not in data-loading workers, whose parent is a thread that may end before they do.
if LAUNCH_ID in os.environ and "LOCAL_RANK" in os.environ and multiprocessing.parent_process() is None:
    die_with_parent()
