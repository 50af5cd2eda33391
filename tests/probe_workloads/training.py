"""The probe under the name that is started by torchrun."""

from probe_workloads.probe import work

from fullft_assets.launch.entry import run_workload

if __name__ == "__main__":
    run_workload(work)
