"""formats: a delivered file -> (row number, record or problem) -> rows.

A new format is a `Format` (see `registered`) and one line there; another package registers its own through an
entry point:

    [project.entry-points."fullft_assets.formats"]
    docx = "their_package.docx:FORMAT"

It is then found by its endings, named by `documents.format`, read, and counted by `fullft check`.
"""

from fullft_assets.documents.formats.delivered import (
    COMPRESSIONS,
    Delivered,
    Record,
    Unreadable,
    compression_of,
    ending_of,
)
from fullft_assets.documents.formats.registered import (
    FORMATS,
    Format,
    Reading,
    format_of,
    formats_by_ending,
    is_readable,
    is_whole_file,
    known_endings,
    name_of_format,
    reads_any_ending,
)
