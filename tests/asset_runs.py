"""Runs of assets in the process of a test."""

import dagster as dg

from fullft_assets.component import FullFineTune
from fullft_assets.settings.use_case import UseCase


def run_assets(
    use_case: UseCase, instance: dg.DagsterInstance, *assets: str, partition: str | None = None
) -> dg.ExecuteInProcessResult:
    """Materialise assets of a use case in this process."""
    defs = dg.Definitions.merge(
        FullFineTune(use_case).build_defs(), dg.Definitions(executor=dg.in_process_executor)
    )
    return defs.resolve_implicit_global_asset_job_def().execute_in_process(
        asset_selection=[dg.AssetKey([use_case.name, asset]) for asset in assets],
        partition_key=partition,
        instance=instance,
        raise_on_error=False,
    )
