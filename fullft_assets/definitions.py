"""Loads every use case below defs/; nothing else."""

from pathlib import Path

import dagster as dg

from fullft_assets.component import load_use_cases as load_use_cases


@dg.definitions
def defs() -> dg.Definitions:
    """Return the use cases' definitions, run in one process: light steps, heavy work is launched."""
    return dg.Definitions.merge(
        load_use_cases(Path(__file__).parent), dg.Definitions(executor=dg.in_process_executor)
    )
