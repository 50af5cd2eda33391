"""Errors that the user can fix, as Dagster shows them."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from fullft_assets.errors import FullftError, WorkloadError


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an error that the user can fix into a failure that shows its one line first, and is not retried.

    The failure's metadata contains the kind of failure; for launched work it follows the line, too.
    """
    try:
        yield
    except FullftError as error:
        shown = f"{error} [{error.failure}]" if isinstance(error, WorkloadError) and error.failure != "unknown" else str(error)
        raise dg.Failure(description=shown, metadata={"failure": error.failure}, allow_retries=False) from error
