"""Errors as Dagster shows them: in one line, without what a document says."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from fullft_assets.errors import FullftError, WorkloadError, classify
from fullft_assets.store import Store


@contextmanager
def one_line_errors(store: Store, case: str) -> Iterator[None]:
    """Turn an error into a failure that shows one line; one that the user can fix is not retried.

    The failure's metadata contains the kind of failure; for launched work it follows the line, too. Of an
    error that nobody foresaw the line has type and place, and names the file in the store that has the rest:
    Dagster would keep its message for ever, and those of its causes, which may quote a document. For the same
    reason no failure has a cause.

    Args:
        store: where such a file is written.
        case: the use case that it belongs to.
    """
    try:
        yield
    except FullftError as error:
        shown = (
            f"{error} [{error.failure}]"
            if isinstance(error, WorkloadError) and error.failure != "unknown"
            else str(error)
        )
        raise dg.Failure(
            description=shown, metadata={"failure": error.failure}, allow_retries=False
        ) from None
    except (dg.Failure, dg.RetryRequested, dg.DagsterError):
        raise
    except Exception as error:
        raise dg.Failure(
            description=store.keep_traceback(case, error), metadata={"failure": classify(error)}
        ) from None
