"""`python -m fullft_assets.cli` is the command `fullft`."""

import sys

from fullft_assets.cli import main

sys.exit(main())
