"""findings: what a sample of the delivered rows says of the data: labels, groups, languages, encodings, and
which rows will be lost.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator

from fullft_assets.base_model import find_base_model, read_header
from fullft_assets.checking.corpus import Corpus, Sampled, look_at_documents
from fullft_assets.checking.fields import flat, incomplete_fields
from fullft_assets.checking.group_candidates import candidates
from fullft_assets.checking.losses import OLDER, Losses, broken, is_whole, labels_of
from fullft_assets.checking.places import is_bucket
from fullft_assets.documents.formats.encodings import ASCII
from fullft_assets.documents.formats.rows import value_of
from fullft_assets.escaping import quoted
from fullft_assets.examples import language
from fullft_assets.examples.label_names import may_be_named, named
from fullft_assets.examples.spelling import variants
from fullft_assets.personal_data.entities import entity_model
from fullft_assets.settings import ExamplesSettings, UseCaseSettings
from fullft_assets.settings.use_case import UseCase
from fullft_assets.snapshot.expected_loss import rows_near_held_out, rows_over_cap
from fullft_assets.store.hashing import text_hash
from fullft_assets.task import task_of

#: Texts whose language is identified.
_LANGUAGE_TEXTS = 200
#: Texts that a model of named entities reads: it takes some milliseconds for each.
_NAMED_TEXTS = 200
#: Share of the rows from which on ids that repeat are more than corrections.
_REPEATED_SHARE = 0.01
#: Characters of the texts that are compared with each other.
_COMPARED_CHARACTERS = 1_000_000
_SHOWN = 8
_SHOWN_PROBLEMS = 3
#: What a text with several labels has between them, and the share of the labels that it must be in to be
#: named.
_SEPARATORS, _SEPARATED_SHARE = (";", "|", ",", "\t"), 0.2


def suggested_group(use_case: UseCase) -> str | None:
    """Return the line that suggests a field for `examples.group`, from a sample of what is delivered; None:
    one is set, or none is likely.
    """
    settings = use_case.settings
    path = settings.documents.path
    if settings.examples.group is not None or is_bucket(path) or not use_case.resolve(path).is_dir():
        return None
    rows = look_at_documents(use_case, read_header(find_base_model(settings, use_case.project_root))).sample
    return next((line for _, line in _suggested_group(rows, settings.examples)), None)


def findings(corpus: Corpus, losses: Losses, use_case: UseCase) -> Iterator[tuple[str, str]]:
    """Yield (what it is about, one line); some of them tell what to do."""
    rows, settings = corpus.sample, use_case.settings
    if not rows:
        return
    scale = max(1.0, (corpus.num_rows or 0) / len(rows))
    yield from _labels(rows, settings, scale)
    yield from _as_written(rows, settings)
    yield from _groups(rows, settings.examples)
    older = losses.excluded[OLDER]
    if older > _REPEATED_SHARE * len(rows):
        field = settings.documents.id
        yield (
            "ids",
            (
                f"{older:,} of {len(rows):,} rows have the `{field}` of a newer row: if it names no document,"
                " set documents.id to a field that does"
            ),
        )
    yield from (("fields", line) for line in incomplete_fields(rows, settings))
    yield from _languages(rows)
    if corpus.encodings.keys() - {"utf-8", ASCII}:
        yield (
            "encodings",
            ", ".join(
                f"{name} in {count:,} file{'' if count == 1 else 's'}"
                for name, count in corpus.encodings.most_common()
            ),
        )
    yield from _problems(rows)
    yield "loss", _loss(corpus, losses, use_case, scale)


def _labels(rows: list[Sampled], settings: UseCaseSettings, scale: float) -> Iterator[tuple[str, str]]:
    task = task_of(settings.examples)
    if not task.has_labels:
        return
    places = [
        (label, found.place) for found in rows for label in labels_of(found, task.target, settings.examples)
    ]
    counts, first = Counter(label for label, _ in places), dict(reversed(places))
    common = ((label, f"{count:,}") for label, count in counts.most_common(_SHOWN))
    yield "labels", f"{len(counts):,} in {len(rows):,} rows read: {named(common, len(counts), counts)}"
    least = settings.snapshot.min_rows_per_label
    rare = sorted((count, label) for label, count in counts.items() if count * scale < least)
    if rare:
        shown = ((label, f"about {count * scale:.0f}") for count, label in rare[:_SHOWN])
        few = (
            f"{len(rare):,} {'label has' if len(rare) == 1 else 'labels have'} fewer rows than"
            f" snapshot.min_rows_per_label ({least})"
        )
        yield "rare", f"{few}: {named(shown, len(rare), counts)}" if may_be_named(counts) else few
    yield from _separators(counts, settings.examples)
    for spellings in variants(counts)[:_SHOWN]:
        if may_be_named(counts):
            alike = named(((spelling, "") for spelling in spellings), len(spellings), counts)
        else:
            alike = f"those of {' and '.join(first[spelling] for spelling in spellings)}"
        yield (
            "spelling",
            (
                f"labels that differ in spelling alone: {alike}; list one spelling in examples.labels, or fix"
                " the source"
            ),
        )


def _separators(counts: Counter[str], examples: ExamplesSettings) -> Iterator[tuple[str, str]]:
    """Yield what may separate several labels in what counts as one."""
    if task_of(examples).target != "labels" or examples.label_separator is not None:
        return
    shares = {
        mark: sum(count for label, count in counts.items() if mark in label) / counts.total()
        for mark in _SEPARATORS
        if counts
    }
    mark = max(shares, key=shares.__getitem__, default="")
    if mark and shares[mark] >= _SEPARATED_SHARE:
        yield (
            "labels",
            (
                f"{shares[mark]:.0%} of them contain `{mark}`: if it separates several, set"
                f" examples.label_separator to '{mark}'"
            ),
        )


def _as_written(rows: list[Sampled], settings: UseCaseSettings) -> Iterator[tuple[str, str]]:
    """Yield what the settings take for no value, and the labels that lose the space around them: neither is
    seen once a row is read.
    """
    examples = settings.examples
    words = {word.strip().casefold() for word in settings.documents.missing_values} - {""}
    for key in ("label", "group", "domain", "slice_by"):
        field = getattr(examples, key)
        if field is None or (key == "label" and not task_of(examples).has_labels):
            continue
        given = [value_of(flat(found), field) for found in rows if found.is_plain or key != "label"]
        written = [
            each
            for value in given
            for each in (value if isinstance(value, list) else [value])
            if isinstance(each, str)
        ]
        missing = Counter(each.strip() for each in written if each.strip().casefold() in words)
        if missing:
            shown = ", ".join(f"{quoted(word)} {count:,}" for word, count in missing.most_common(_SHOWN))
            yield "missing", f"{shown} in `{field}` count as no {key} (documents.missing_values)"
        spaced = sum(each != each.strip() != "" for each in written) if key == "label" else 0
        if spaced:
            yield "spelling", f"{spaced:,} labels have spaces around them, which are removed"


def _groups(rows: list[Sampled], examples: ExamplesSettings) -> Iterator[tuple[str, str]]:
    if examples.group is None:
        yield from _suggested_group(rows, examples)
        return
    sizes = Counter(found.row["group"] for found in rows if "group" in found.row)
    if not sizes:
        return
    without = sum("group" not in found.row for found in rows)
    line = f"{len(sizes):,} in {len(rows):,} rows read, the largest has {sizes.most_common(1)[0][1]:,}"
    yield (
        "groups",
        line + (f"; {without:,} rows have none, and each is a group of its own" if without else ""),
    )
    # By their places: a group may be a person, and a terminal's output is kept in many places.
    spellings: dict[str, dict[str, str]] = {}
    for found in rows:
        given = value_of(flat(found), examples.group)
        if "group" in found.row and isinstance(given, str | int | float):
            spellings.setdefault(found.row["group"], {}).setdefault(str(given), found.place)
    several = [list(places.values()) for places in spellings.values() if len(places) > 1]
    if several:
        shown = "; ".join(" and ".join(places[:2]) for places in several[:3])
        yield (
            "spelling",
            f"{len(several):,} groups are written in several ways, and each counts as one: {shown}",
        )


def _suggested_group(rows: list[Sampled], examples: ExamplesSettings) -> Iterator[tuple[str, str]]:
    usable = [found for found in rows if found.row.get("text") and found.record]
    records = [_names(found, {examples.label, examples.domain, *_content(found)}) for found in usable]
    fields = {
        name: [record.get(name) for record in records]
        for name in dict.fromkeys(name for record in records for name in record)
    }
    labels = ["|".join(labels_of(found, task_of(examples).target, examples)) for found in usable]
    for found in candidates([found.row["text"] for found in usable], labels, fields)[:1]:
        yield (
            "group",
            (
                f"none is set, and rows of equal `{found.field}` share text ({found.agreement:.0%} of them"
                f" are nearest to one of their own, {found.chance:.0%} by chance): if it ties rows together,"
                f" set examples.group: {found.field}"
            ),
        )


def _content(found: Sampled) -> set[str]:
    return {found.text_field, "text", "messages", "annotations"}


def _names(found: Sampled, left_out: set[str | None]) -> dict[str, str]:
    """Return the fields of a row that may name a group: short text and whole numbers."""
    return {
        name: str(value)
        for name, value in flat(found).items()
        if name and name not in left_out and type(value) in (str, int) and 0 < len(str(value)) <= 200
    }


def _languages(rows: list[Sampled]) -> Iterator[tuple[str, str]]:
    texts = [text for found in rows if (text := found.row.get("text"))][:_LANGUAGE_TEXTS]
    if texts:
        counts = Counter(map(language.language_of, texts))
        shares = [(name, count / len(texts)) for name, count in counts.most_common(_SHOWN)]
        yield (
            "languages",
            ", ".join(
                f"{name} {share:.0%}" if share >= 0.01 else f"{name} under 1%" for name, share in shares
            ),
        )


def _problems(rows: list[Sampled]) -> Iterator[tuple[str, str]]:
    """Yield the most common reasons why rows are malformed, with the place of the first row of each."""
    first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for found in rows:
        if (problem := found.row.get("problem")) is not None:
            counts[problem] += 1
            first.setdefault(problem, found.place)
    for problem, count in counts.most_common(_SHOWN_PROBLEMS):
        yield (
            "malformed",
            (
                f"{count:,} of {len(rows):,} rows read: {problem}"
                f" ({first[problem]}{', ...' if count > 1 else ''})"
            ),
        )


def _loss(corpus: Corpus, losses: Losses, use_case: UseCase, scale: float) -> str:
    rows, settings = corpus.sample, use_case.settings
    about, at_least = ("", "") if scale == 1 else ("about ", "at least ")
    lost = [f"{about}{count * scale:,.0f} {reason}" for reason, count in losses.quarantined.most_common()]
    with_names, searched = _rows_with_names(rows, use_case)
    if with_names:
        scaled = with_names / searched * len(rows) * scale
        lost.append(
            f"about {scaled:,.0f} with names, places or dates ({with_names:,} of {searched:,} rows that"
            " examples.pii_model read)"
        )
    lost += [f"{at_least}{count:,} {reason}" for reason, count in losses.excluded.items()]
    over = _over_cap(corpus, losses, settings)
    if over:
        lost.append(
            f"about {over:,} over snapshot.max_heldout_rows_per_group"
            f" ({settings.snapshot.max_heldout_rows_per_group})"
        )
    lost += _near_held_out(losses, settings, scale)
    return (
        f"expected: {', '.join(lost)}"
        if lost
        else f"none of {len(rows):,} rows read would be quarantined or excluded"
    )


def _over_cap(corpus: Corpus, losses: Losses, settings: UseCaseSettings) -> int:
    examples, target = settings.examples, task_of(settings.examples).target
    if examples.group is None or target is None or not is_whole(corpus):
        return rows_over_cap(
            [found.row.get("group") for found in corpus.sample],
            settings.snapshot,
            settings.seed,
            corpus.num_rows,
        )
    rows = losses.rows_left
    groups = [found.row.get("group") or text_hash(found.row["text"]) for found in rows]
    labels = [{*labels_of(found, target, examples)} & losses.labels_left for found in rows]
    return rows_over_cap(groups, settings.snapshot, settings.seed, labels=labels)


def _near_held_out(losses: Losses, settings: UseCaseSettings, scale: float) -> Iterator[str]:
    """Yield how many rows the snapshot will leave out because of what is in held-out ones, by as many texts
    as take half a second.
    """
    rows = [found for found in losses.rows_left if len(found.row["text"]) <= _COMPARED_CHARACTERS // 20]
    random.Random(settings.seed).shuffle(rows)
    ends = itertools.accumulate(len(found.row["text"]) for found in rows)
    some = [found for found, end in zip(rows, ends, strict=True) if end <= _COMPARED_CHARACTERS]
    near = rows_near_held_out(
        [found.row["text"] for found in some],
        [found.row.get("group") for found in some],
        settings.snapshot,
        settings.seed,
    )
    if near:
        scale *= len(losses.rows_left) / len(some)
        yield (
            f"{'at least about ' if scale > 1 else ''}{near * scale:,.0f} near to a held-out row, or with"
            " one's text inside the other's"
        )


def _rows_with_names(rows: list[Sampled], use_case: UseCase) -> tuple[int, int]:
    """Return how many rows the model of named entities alone would have quarantined, and how many it read."""
    examples = use_case.settings.examples
    if examples.pii != "quarantine" or examples.severities.get("personal_data_is_absent") == "off":
        return 0, 0
    model = entity_model(use_case)
    if model is None:
        return 0, 0
    some = random.Random(use_case.settings.seed).sample(rows, min(len(rows), _NAMED_TEXTS))
    texts = [found.row.get("text", "")[: examples.max_characters] for found in some]
    found_in = zip(some, model.find_all(texts), strict=True)
    return sum(bool(names) and not broken(found, examples) for found, names in found_in), len(some)
