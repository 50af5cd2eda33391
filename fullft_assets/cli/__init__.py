"""`fullft`: the commands for terminals and scripts."""

from fullft_assets.cli.commands import main
