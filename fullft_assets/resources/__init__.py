"""What Dagster injects into assets, sensors and schedules: a use case's store and launcher, and the IO
manager that passes manifests.
"""

from fullft_assets.resources.account import AccountResource
from fullft_assets.resources.io_manager import (
    ARTIFACT,
    ManifestIOManager,
    launcher_resource,
    made_by_run,
    manifest_io_manager,
    one_line_errors,
)
from fullft_assets.resources.store import (
    REPORTS,
    latest,
    latest_by_partition,
    open_store,
    place_in,
    report_link,
    set_latest,
    store_resource,
    summary_by_partition,
)
