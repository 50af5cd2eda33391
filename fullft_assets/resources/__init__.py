"""The store as Dagster sees it: where it lies, and an IO manager that passes manifests, never objects."""

from fullft_assets.resources.store_resource import (
    ManifestIOManager,
    latest,
    latest_by_partition,
    one_line_errors,
    open_store,
    s3_options,
    set_latest,
)

__all__ = ["ManifestIOManager", "latest", "latest_by_partition", "one_line_errors", "open_store", "s3_options", "set_latest"]
