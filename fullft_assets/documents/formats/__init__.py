"""formats: a delivered file -> (row number, record or problem) -> rows, one module a format.

A new format is one module with a `Format` (see `protocol`) and one line in `registered`; another package
registers its own through an entry point:

    [project.entry-points."fullft_assets.formats"]
    docx = "their_package.docx:FORMAT"

It is then found by its endings, named by `documents.format`, read, and counted by `fullft check`.
"""

from fullft_assets.documents.formats.delivered import Delivered, Record, Unreadable
from fullft_assets.documents.formats.endings import COMPRESSIONS, compression_of, ending_of
from fullft_assets.documents.formats.protocol import Format, Reading
from fullft_assets.documents.formats.registered import (
    FORMATS,
    format_of,
    formats_by_ending,
    is_readable,
    is_whole_file,
    known_endings,
    name_of_format,
    reads_any_ending,
)
