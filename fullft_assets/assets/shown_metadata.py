"""What of an artifact's metadata Dagster keeps: its event log is for ever, is backed up and is read by more
people than the store.

Names of files are counted, and lists of labels of which the number is beside them are left out. Other labels
are named where they are short and few (see `examples.label_names`), else they are counted too.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from fullft_assets.escaping import visible
from fullft_assets.examples.label_names import may_be_named

_FILES = ("files", "taken_away")
#: Lists whose length is a number of the same metadata, and the batches that `num_batches` counts.
_COUNTED = ("labels_set_aside", "parts")
_LABELS = (
    "labels", "rare_labels", "label_counts", "label_statistics", "label_thresholds", "kappa_per_label",
    "labels_set_aside", "labels_untested",
)  # fmt: skip


def outside_the_store(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata without names of files, and without labels that may be texts."""
    labels = {label for name in _LABELS for label in _labels_in(metadata.get(name))}
    is_named = may_be_named(labels)
    found: dict[str, Any] = {}
    for name, value in metadata.items():
        if name in _FILES:
            if value:
                found.setdefault(f"num_{name}", len(value))
        elif name in _COUNTED:
            continue
        elif name == "encodings":
            found[name] = dict(Counter(value.values()))
        elif name not in _LABELS:
            found[name] = value
        elif is_named:
            found[name] = _with_visible(value)
    if labels and not is_named:
        found["num_labels"] = len(labels)
    return found


def _labels_in(value: Any) -> Iterator[str]:
    """Yield the labels of a list of them or of statistics, or those that something is given by, also split by
    split.
    """
    if isinstance(value, list):
        yield from (each["label"] if isinstance(each, dict) else each for each in value)
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from each if isinstance(each, dict) else (name,)


def _with_visible(value: Any) -> Any:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, list):
        return [_with_visible(each) for each in value]
    return (
        {visible(name): _with_visible(each) for name, each in value.items()}
        if isinstance(value, dict)
        else value
    )
