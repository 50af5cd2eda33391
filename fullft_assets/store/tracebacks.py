"""Tracebacks of errors that nobody foresaw: in the store, and nowhere else, as an error's message may quote a
document.
"""

from __future__ import annotations

import time
import traceback
import uuid

from fullft_assets.errors import without_message, without_secrets
from fullft_assets.store.files import Files


class Tracebacks(Files):
    """Files with the whole traceback of an error, by use case."""

    def keep_traceback(self, case: str, error: BaseException) -> str:
        """Write an error's traceback with all messages; return one line for people who may not read
        documents, which names the file.
        """
        name = f"{_folder(case)}/{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.txt"
        try:
            self.write_bytes(
                name,
                without_secrets("".join(traceback.format_exception(error))).encode(
                    "utf-8", "backslashreplace"
                ),
            )
        except (
            Exception
        ) as other:  # the store itself may be what failed; its own error must not replace this one
            return (
                f"{without_message(error)}; its message could not be written to {self.url}"
                f" ({type(other).__name__})"
            )
        return f"{without_message(error)}; its message, which may quote a document, is in {self.url}/{name}"

    def delete_tracebacks(self, case: str) -> int:
        """Remove the tracebacks of a use case; return how many there were."""
        names = self.names(_folder(case))
        for name in names:
            self.remove(f"{_folder(case)}/{name}")
        return len(names)


def _folder(case: str) -> str:
    return f"failures/{case}/tracebacks"
