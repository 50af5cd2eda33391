"""The probe under the name that is started by torchrun."""

from fullft_assets.workloads.entry import run_workload
from probe_workloads.probe import work

if __name__ == "__main__":
    run_workload(work)
