"""What Dagster injects into assets, sensors and schedules: a use case's store and launcher, and the IO
manager that passes manifests.
"""

from fullft_assets.resources.failures import one_line_errors
from fullft_assets.resources.io_manager import ManifestIOManager, manifest_io_manager
from fullft_assets.resources.launcher import launcher_resource
from fullft_assets.resources.of_run import ARTIFACT, made_by_run
from fullft_assets.resources.pointers import latest, latest_by_partition, set_latest
from fullft_assets.resources.store import REPORTS, open_store, report_link, store_resource
from fullft_assets.resources.summaries import summary_by_partition
