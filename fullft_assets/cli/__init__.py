"""`fullft`: run, check, plan, ingest, report, verify, prepare, predict, rollback, erase. The UI can do all but the check; this is for terminals and scripts."""

from fullft_assets.cli.commands import main

__all__ = ["main"]
