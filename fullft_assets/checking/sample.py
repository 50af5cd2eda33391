"""What a sample of the delivered rows says: fields that a YAML names and rows lack, with the nearest field
that they have; rows that no stage can use; labels; and a field that may tie rows together where the YAML
names none.
"""

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fullft_assets.checking.corpus import Sampled, look_at_documents
from fullft_assets.checking.problems import is_bucket
from fullft_assets.checking.yaml_source import Key
from fullft_assets.documents.formats import name_of_format
from fullft_assets.documents.formats.rows import has_field
from fullft_assets.escaping import quoted, visible
from fullft_assets.examples.identity import IDS_TWICE_IN_A_FILE, REUSED_IDS
from fullft_assets.examples.labels import listed, named
from fullft_assets.examples.outcomes import MOST_WITHOUT, OPTIONAL_COLUMNS
from fullft_assets.settings import DocumentsSettings, ExamplesSettings, UseCaseSettings
from fullft_assets.settings.use_case import UseCase
from fullft_assets.task import task_of

#: Objects within a record of an export whose fields count as the record's.
_NESTED = ("data", "meta", "metadata", "fields", "inputs")
#: Objects within objects whose fields are suggested.
_MOST_DEPTH = 5
_SHOWN_FIELDS = 20
_SHOWN_LOCATIONS = 3
#: Characters of a field's name that are shown: the first row of a table without a header may have texts.
_SHOWN_CHARACTERS = 60
_NO_HEADER = (
    "; if the first row is none of names, set documents.header to none, or to the number of the row that is"
)


_SHOWN_LABELS = 8


def field_problems(sample: list[Sampled], settings: UseCaseSettings) -> Iterator[tuple[Key, str]]:
    """Yield each key whose field is missing in too many rows of the sample, with one line that says what to
    do.
    """
    yield from _unusable(sample, settings.examples.max_quarantined_share)
    rows = [row for row in sample if row.record]
    if rows:
        yield from _lacking(_field_settings(settings, rows), rows, settings)
    names = {name.casefold() for name in settings.examples.labels or []}
    strange = [
        row
        for row in rows
        if names and not {label.casefold() for label in labels_of(row, settings.examples)} <= names
    ]
    if len(strange) > settings.examples.max_quarantined_share * len(rows):
        labels = Counter(
            label
            for row in strange
            for label in labels_of(row, settings.examples)
            if label.casefold() not in names
        )
        yield (
            ("examples", "labels"),
            f"{len(strange):,} of {len(rows):,} rows read ({_locations(strange)}) have other labels:"
            f" {_counted(labels)}; add them, or correct them",
        )


def _lacking(
    field_settings: Iterable[tuple[Key, str, str]], rows: list[Sampled], settings: UseCaseSettings
) -> Iterator[tuple[Key, str]]:
    for key, column, field in field_settings:
        if not any(_has(row, column) for row in rows):
            yield key, _nowhere(field, column, rows)
            continue
        # The rule on groups is about valid rows.
        rows_without = [
            row for row in rows if not _has(row, column) and (column != "group" or "problem" not in row.row)
        ]
        max_share = _max_share_without(column, settings)
        if len(rows_without) > max_share * len(rows):
            hint = _near(field, fields_of([row for row in rows_without if field not in fields_of([row])]))
            hint = hint or "; name the field that the others have, or fix them in the source"
            yield (
                key,
                f"{len(rows_without):,} of {len(rows):,} rows read have no `{field}`"
                f" ({_locations(rows_without)}), more than {max_share:.0%} of them{hint}",
            )


def _max_share_without(column: str, settings: UseCaseSettings) -> float:
    if column == "group":
        return settings.examples.max_ungrouped_share
    return MOST_WITHOUT if column in OPTIONAL_COLUMNS else settings.examples.max_quarantined_share


def _unusable(sample: list[Sampled], max_share: float) -> Iterator[tuple[Key, str]]:
    # A row whose labels are malformed has a text.
    rows = [row for row in sample if not row.record or ("problem" in row.row and row.row.get("text"))]
    if len(rows) > max_share * len(sample):
        problem = rows[0].row.get("problem", "")
        yield (
            ("documents", "path"),
            f"{len(rows):,} of {len(sample):,} rows read ({_locations(rows)}):"
            f" {problem}{_header_hint(rows[0]) if 'the header' in problem else ''}",
        )


def _header_hint(row: Sampled) -> str:
    return _NO_HEADER if name_of_format(row.location.rpartition(":")[0]) in ("csv", "xlsx") else ""


def _locations(rows: list[Sampled]) -> str:
    return ", ".join(row.location for row in rows[:_SHOWN_LOCATIONS])


def fields_of(sample: list[Sampled]) -> list[str]:
    """Return the names of the fields of rows, in order of appearance, with those of nested objects and of the
    controls of an export.
    """
    names: dict[str, None] = {}
    for row in sample:
        names.update(dict.fromkeys(flat(row)))
        names.update(dict.fromkeys(_controls(row.record)))
    return [name for name in names if name]


def flat(row: Sampled) -> dict[str, Any]:
    """Return the fields of a record by the names that settings may give them: those inside of another by
    their paths.

    Those of the objects that an export nests them in have no path.
    """
    if row.is_plain:
        return dict(_paths(row.record)) | row.record
    fields = dict(row.record)
    for name in _NESTED:
        value = row.record.get(name)
        fields |= value if isinstance(value, dict) else {}
    return fields


def _paths(record: dict[str, Any], above: str = "", depth: int = 1) -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        yield f"{above}{name}", value
        if isinstance(value, dict) and depth < _MOST_DEPTH:
            yield from _paths(value, f"{above}{name}.", depth + 1)


def _controls(record: dict[str, Any]) -> Iterator[str]:
    annotations = record.get("annotations")
    for annotation in annotations if isinstance(annotations, list) else []:
        regions = annotation.get("result") if isinstance(annotation, dict) else None
        for region in regions if isinstance(regions, list) else []:
            if isinstance(region, dict) and isinstance(region.get("from_name"), str):
                yield region["from_name"]


def _field_settings(settings: UseCaseSettings, rows: list[Sampled]) -> Iterator[tuple[Key, str, str]]:
    documents = settings.documents
    examples = settings.examples
    task = task_of(examples)
    yield ("documents", "text"), "messages" if task.has_messages else "text", rows[0].text_field
    if documents.id != DocumentsSettings.model_fields["id"].default:
        yield ("documents", "id"), "id", documents.id
    if task.has_labels and examples.label is not None:
        yield ("examples", "label"), task.target or "label", examples.label
    for column, field in (
        ("group", examples.group),
        ("domain", examples.domain),
        ("slice_by", examples.slice_by),
    ):
        if field is not None:
            yield ("examples", column), column, field


def _has(row: Sampled, column: str) -> bool:
    if column == "text":
        return bool(row.row.get("text", "").strip())
    # A label that is malformed is there.
    return column in row.row or (
        column in ("label", "labels", "spans") and "problem" in row.row and bool(row.row.get("text"))
    )


def _nowhere(field: str, column: str, rows: list[Sampled]) -> str:
    first = rows[0]
    if column in ("text", "messages") and "problem" in first.row and has_field(first.record, field):
        return (
            f"none of {len(rows):,} rows read can be used; the first ({first.location}):"
            f" {first.row['problem']}"
        )
    names = fields_of(rows)
    if field in names:
        hint = _near(field, [name for name in names if name != field])
        return f"`{field}` is empty in each of {len(rows):,} rows read{hint}"
    hint = _near(field, names) or _listed(names)
    return f"none of {len(rows):,} rows read has a `{field}`{hint}{_header_hint(first)}"


def _near(field: str, fields: list[str]) -> str:
    # Also by the end of a path alone.
    by_case = {name.rpartition(".")[2].strip().casefold(): name for name in reversed(fields)}
    by_case |= {name.strip().casefold(): name for name in reversed(fields)}
    near = difflib.get_close_matches(field.strip().casefold(), by_case, n=1, cutoff=0.5)
    return f"; did you mean {quoted(by_case[near[0]])}?" if near else ""


def _listed(fields: list[str]) -> str:
    more = f" and {len(fields) - _SHOWN_FIELDS:,} more" if len(fields) > _SHOWN_FIELDS else ""
    names = [
        visible(name if len(name) <= _SHOWN_CHARACTERS else f"{name[:_SHOWN_CHARACTERS]}...")
        for name in fields[:_SHOWN_FIELDS]
    ]
    return f"; their fields: {', '.join(names)}{more}"


def label_findings(rows: list[Sampled], examples: ExamplesSettings) -> Iterator[tuple[str, str]]:
    """Yield the finding on the labels of a sample of rows, as (subject, one line)."""
    if task_of(examples).has_labels and rows:
        counts = Counter(label for row in rows for label in labels_of(row, examples))
        yield "labels", f"{len(counts):,} in {len(rows):,} rows read: {_counted(counts)}"


def _counted(counts: Counter[str]) -> str:
    common = ((label, f"{count:,}") for label, count in counts.most_common(_SHOWN_LABELS))
    return named(common, len(counts), counts)


def group_findings(rows: list[Sampled], settings: UseCaseSettings) -> Iterator[tuple[str, str]]:
    """Yield the finding on the largest group of a sample of rows, as (subject, one line), where it has more
    than half of the rows that are to be tested.
    """
    most = settings.snapshot.max_heldout_rows_per_group
    for group, count in Counter(row.row["group"] for row in rows if row.row.get("group")).most_common(1):
        if count > max(most, settings.snapshot.least_test_share / 2 * len(rows)):
            yield (
                "groups",
                f"{quoted(group)} has {count / len(rows):.0%} of the rows read, and"
                f" {settings.snapshot.least_test_share:.0%} are to be tested: where its hash holds it out,"
                f" {most} of its rows are (snapshot.max_heldout_rows_per_group) and none trains; name a finer"
                " field in examples.group",
            )


def id_findings(rows: list[Sampled]) -> Iterator[tuple[str, str]]:
    """Yield the findings on ids that rows of a sample with different texts share, as (subject, one line)."""
    rows_by_id = [(row.row.get("id") or row.location, row) for row in rows if row.row.get("text")]
    first = dict(reversed(rows_by_id))
    pairs = {
        id_: (first[id_].location, row.location)
        for id_, row in rows_by_id
        if row.row["text"] != first[id_].row["text"]
    }
    for num_files, text in ((1, IDS_TWICE_IN_A_FILE), (2, REUSED_IDS)):
        places = [
            pair for pair in pairs.values() if len({place.rpartition(":")[0] for place in pair}) == num_files
        ]
        if places:
            yield "ids", text.format(len(places), len(first), *places[0])


def labels_of(row: Sampled, examples: ExamplesSettings) -> list[str]:
    """Return the labels of a row as they were delivered."""
    return listed(row.row.get(task_of(examples).target or "label"))


#: Rows and characters that are compared.
_MOST_ROWS = 1_500
_MOST_CHARACTERS = 2_000
#: A field with fewer values, or with a smaller share of rows in repeated ones, is no group.
_LEAST_VALUES = 20
_LEAST_REPEATED = 0.1
#: How far the share of nearest neighbours with the same value is above chance, at the least: as a share, and
#: in standard deviations of a share that is due to chance.
_LEAST_EXCESS = 0.1
_LEAST_DEVIATIONS = 4
#: A word, one character of a script without spaces between words, or a whole text that has no word.
_WORD = (
    r"[^\W\u0e00-\u0e7f\u3040-\u30ff\u4e00-\u9fff]+"
    r"|[\u0e00-\u0e7f\u3040-\u30ff\u4e00-\u9fff]"
    r"|^\W+$"
)


@dataclass(frozen=True)
class Candidate:
    """A field that may tie rows together.

    Attributes:
        field: its name.
        agreement: of rows that share value and label with another one, the share whose most similar row of
            their label has their value.
        chance: the share that is expected if the most similar row is any other row of the label.
    """

    field: str
    agreement: float
    chance: float


def suggested_group(use_case: UseCase) -> str | None:
    """Return the line that suggests a field for `examples.group`, from a sample of the delivered rows; None
    where a group is set, or where no field looks like one.
    """
    examples = use_case.settings.examples
    path = use_case.settings.documents.path
    if examples.group is not None or is_bucket(path) or not use_case.resolve(path).is_dir():
        return None
    rows = [row for row in look_at_documents(use_case).sample if row.row.get("text") and row.record]
    other_fields = {examples.label, examples.domain, "text", "messages", "annotations"}
    records = [
        {
            name: str(value)
            for name, value in flat(row).items()
            if 0 < len(name) <= _SHOWN_CHARACTERS
            and name not in other_fields | {row.text_field}
            and type(value) in (str, int)
            and 0 < len(str(value)) <= 200
        }
        for row in rows
    ]
    fields = {
        name: [record.get(name) for record in records]
        for name in dict.fromkeys(name for record in records for name in record)
    }
    labels = ["|".join(labels_of(row, examples)) for row in rows]
    for candidate in candidates([row.row["text"] for row in rows], labels, fields):
        return (
            f"none is set, and rows of equal `{candidate.field}` share text ({candidate.agreement:.0%} of"
            f" them are nearest to one of their own, {candidate.chance:.0%} by chance): if it ties rows"
            f" together, set examples.group: {candidate.field}"
        )
    return None


def candidates(
    texts: Sequence[str], labels: Sequence[str], fields: Mapping[str, Sequence[str | None]]
) -> list[Candidate]:
    """Return the fields that may tie rows together, the likeliest first.

    The most similar row is found by the cosine of TF-IDF vectors of words.

    Args:
        texts: of the rows.
        labels: of the rows; all equal where the task has none.
        fields: the values of each row, by field; None: it has none.
    """
    # The snapshot keeps one of equal texts.
    rows = sorted({text: row for row, text in reversed(list(enumerate(texts)))}.values())[:_MOST_ROWS]
    codes_of = {
        name: codes
        for name, values in fields.items()
        if (codes := _codes([values[row] for row in rows])) is not None
    }
    if not codes_of:
        return []
    label = np.unique(np.array([labels[row] for row in rows], dtype=str), return_inverse=True)[1]
    neighbour = _nearest([texts[row] for row in rows], label)
    results = [_candidate(name, codes, label, neighbour) for name, codes in codes_of.items()]
    likely = [candidate for candidate in results if candidate is not None]
    return sorted(likely, key=lambda candidate: candidate.chance - candidate.agreement)


def _codes(values: Sequence[str | None]) -> np.ndarray | None:
    """Return the values as codes, -1 for none; None where they are too few, or too rarely repeated."""
    counts = Counter(value for value in values if value is not None)
    num_repeated = sum(count for count in counts.values() if count > 1)
    if len(counts) < _LEAST_VALUES or num_repeated < _LEAST_REPEATED * len(values):
        return None
    codes = {value: code for code, value in enumerate(counts)}
    return np.array([-1 if value is None else codes[value] for value in values])


def _nearest(texts: Sequence[str], label: np.ndarray) -> np.ndarray:
    """Return the most similar other row of each row's label [n]; -1 where it is the only one."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    weights = TfidfVectorizer(token_pattern=_WORD, sublinear_tf=True).fit_transform(
        [text[:_MOST_CHARACTERS] for text in texts]
    )
    nearest = np.full(len(texts), -1)
    for code in np.unique(label):
        rows = np.flatnonzero(label == code)
        if len(rows) > 1:
            similarity = (weights[rows] @ weights[rows].T).toarray()
            np.fill_diagonal(similarity, -1)
            nearest[rows] = rows[similarity.argmax(axis=1)]
    return nearest


def _candidate(name: str, codes: np.ndarray, label: np.ndarray, neighbour: np.ndarray) -> Candidate | None:
    """Return the field as a candidate, or None where its values share no more text than chance explains."""
    cell = np.where(codes < 0, -1, codes * (int(label.max()) + 1) + label)
    sizes = np.bincount(cell[cell >= 0], minlength=1)
    has_pair = (cell >= 0) & (sizes[np.maximum(cell, 0)] > 1)
    if not has_pair.any():
        return None
    agreement = float((codes[neighbour[has_pair]] == codes[has_pair]).mean())
    chances = (sizes[cell[has_pair]] - 1) / (np.bincount(label)[label[has_pair]] - 1)
    chance = float(chances.mean())
    deviation = float(np.sqrt((chances * (1 - chances)).sum())) / int(has_pair.sum())
    is_likely = agreement - chance >= max(_LEAST_EXCESS, _LEAST_DEVIATIONS * deviation)
    return Candidate(name, agreement, chance) if is_likely else None
