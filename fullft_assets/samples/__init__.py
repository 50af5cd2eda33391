"""Sample deliveries: real data from packages, written as a labelling job would deliver them."""

from __future__ import annotations

from pathlib import Path


def prepare(yaml_path: Path) -> None:
    """Write the sample delivery of a shipped use case unless it is there; other use cases bring their own data."""
    from fullft_assets.use_case import DEFS, find_project_root

    if yaml_path.parent == DEFS / "licences":
        from fullft_assets.samples import licences

        licences.write(find_project_root(yaml_path) / "data" / "licences")
