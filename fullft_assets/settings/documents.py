"""The section `documents`."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from fullft_assets.settings.base import Float, Settings

#: Number of the row that has the columns' names, None for the first one that is not empty, or `none`: columns
#: have no names.
HeaderRow = Annotated[int, Field(ge=1)] | Literal["none"] | None


class CsvSettings(Settings):
    """How CSV files are read."""

    REMOVED: ClassVar[Mapping[str, str]] = {"header": "set `documents.header`, for spreadsheets too"}

    delimiter: str | None = Field(
        default=None,
        min_length=1,
        max_length=1,
        description="What separates fields. Default: found in the header, file by file.",
    )
    quoting: Literal["minimal", "none"] = Field(
        default="minimal",
        description=(
            "`minimal`: a field that begins with a double quote ends with one, and may contain delimiters and"
            " line ends. `none`: a double quote is a character like any other."
        ),
    )


class MailSettings(Settings):
    """How mail messages are read."""

    quoted: Literal["keep", "drop"] = Field(
        default="keep",
        description=(
            "What is done with the messages that a message quotes: lines that begin with `>` and the line"
            " that introduces them, and what follows Outlook's header (`From:`, `Sent:`, `To:`, in eleven"
            " languages more) or its line `Original Message`."
        ),
    )


class PdfSettings(Settings):
    """How PDFs are read."""

    pages_without_text: Literal["warn", "quarantine"] = Field(
        default="warn",
        description=(
            "What is done with a PDF some of whose pages have no text, such as scanned ones. `warn`: the"
            " other pages are read, and a check warns. `quarantine`: the document is quarantined."
        ),
    )


class DocumentsSettings(Settings):
    """Where the raw documents are delivered, and how a sensor cuts them into batches."""

    REMOVED: ClassVar[Mapping[str, str]] = {
        "missing_values": (
            "NULL, NaN, n/a, #N/A, <NA>, \\N and - mean that a row has none; remove other words "
            "before the delivery"
        ),
        "follow_links": (
            "links that leave the folder are not followed; name their target in `path`, or copy the files"
        ),
        "max_batch_bytes": "a batch ends after 256 MiB; set `max_batch_files` for smaller ones",
        "xlsx": (
            "set `documents.header` in place of `xlsx.header`; of a spreadsheet all sheets with the header of"
            " the first one are read"
        ),
        "xml": "set `documents.records` to the name of the element that is one document",
        "time": "the time of an annotation is in the field `time`",
        "reference_buckets": (
            "nothing that a document names is fetched; deliver a manifest with texts in the field `source`"
        ),
        "queue": "the prefix is listed, 10,000 objects a look; set `poll_seconds` for more looks",
        "max_runs_per_tick": "a tick launches up to 50 ingest runs, later ticks the rest",
    }

    path: str = Field(
        description=("Folder with the delivered files, relative to the project root; or s3://bucket/prefix.")
    )
    format: str = Field(
        default="auto",
        description=(
            "`auto` goes by the file's ending, and by its records for .json; else a registered format, such"
            " as `csv` or `label_studio`. `kreuzberg` (the extra of that name) reads every file as one"
            " document: presentations, OpenDocument, EPUB, messages of Outlook, old files of Office. A last"
            " .gz or .zst is unpacked."
        ),
    )
    text: str | None = Field(
        default=None,
        description=(
            "Field that holds the text. Default: `source` in Ground Truth manifests, `text` elsewhere. A"
            " field inside of another is named by its path, `payload.body`. A file that is one document has"
            " the fields `text`, `file` and `folder`."
        ),
    )
    records: str | None = Field(
        default=None,
        description=(
            "Where the records are in a file that has several: in a .json file that is one object, the path"
            " of their array, such as `data` or `result.rows`; in XML, the name of the element that is one"
            " document, such as `PubmedArticle`. Default: such a file is one record."
        ),
    )
    id: str = Field(
        default="id", description="Field with the document's own id; a row without one is named file:row."
    )
    annotator: str = Field(
        default="annotator",
        description=(
            "Field with the annotator. Where several annotators answered, their agreement is measured."
        ),
    )
    encoding: str | None = Field(
        default=None,
        description=(
            "Encoding of the text files, such as `cp1252`. Default: UTF-8, else detected for all files of a"
            " batch."
        ),
    )
    #: Words that mean that a row has no label, group or domain, in whatever case; so does an empty field.
    missing_values: ClassVar[tuple[str, ...]] = ("NULL", "NaN", "n/a", "#N/A", "<NA>", "\\N", "-")
    header: HeaderRow = Field(
        default=None,
        description=(
            "Number of the row (in CSV, of its line) of a table that has the columns' names; what is above it"
            " is not read. `none`: there are no names, and columns are called `column_1`, `column_2` and so"
            " on. Default: the first row that is not empty."
        ),
    )
    csv: CsvSettings = Field(default_factory=CsvSettings, description="Settings for CSV files.")
    mail: MailSettings = Field(default_factory=MailSettings, description="Settings for mail messages.")
    pdf: PdfSettings = Field(default_factory=PdfSettings, description="Settings for PDFs.")
    attribution: str = Field(
        default="", description="Source, licence and attribution of the documents; shown on the model card."
    )
    max_batch_files: int = Field(
        default=100_000,
        ge=1,
        le=100_000,
        description="Maximum number of files in one batch; mostly 256 MiB end it before.",
    )
    #: Maximum size of one batch; a larger file is a batch of its own.
    max_batch_bytes: ClassVar[int] = 256 * 2**20
    settle_seconds: Float = Field(
        default=1.0,
        ge=0,
        le=86_400,
        description="A file written to within this time may still be growing, so it waits for the next tick.",
    )
    mask_raw: bool = Field(
        default=True,
        description=(
            "With `examples.pii: mask`, personal data is masked in the raw rows that the store keeps, too."
            " `false`: they are kept as delivered, so that another setting of `examples.pii` can be applied"
            " once a file is gone."
        ),
    )
    # What writes the folder changes nothing that is computed, and stays out of keys.
    deps: list[str] = Field(
        default=[],
        exclude=True,
        description=(
            "Keys of your own assets that write the folder, such as `team/exports`. Lineage shows them, and"
            " new files are looked for when one of them was materialised, no longer every `poll_seconds`; the"
            " sensor starts turned on."
        ),
    )
    poll_seconds: int = Field(
        default=30,
        ge=1,
        le=86_400,
        description=(
            "Minimum time in seconds between two looks for documents. Production is looked at half as often;"
            " retraining, live quality and alerts a sixth as often, at least every three minutes."
        ),
    )
