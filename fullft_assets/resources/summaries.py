"""Summaries: what is known of the newest artifact of each partition, without reading every one again.

One listing of the pointers says which of them changed; of the others, the summary in the store has what was
derived. A summary is no record: one that is lost, damaged, or of another version is made again from the
artifacts. An artifact that is gone still counts while its pointer stays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fullft_assets.resources.pointers import latest
from fullft_assets.store import Manifest, Store, digest

#: Partitions in one file of a summary: of many, only the files with those that changed are written again.
#: Each file is a request of a bucket.
_PER_FILE = 1_000
#: By partition: the version of its pointer, and what was derived.
_Entries = dict[str, list[Any]]


def summary_by_partition(
    store: Store, case: str, asset: str, derive: Callable[[Manifest], Any], *, version: str
) -> dict[str, Any]:
    """Return what `derive` returns for the newest artifact of each partition of an asset, by partition.

    Args:
        derive: returns JSON values.
        version: of `derive`.
    """
    made_after = store.last_rewriting(case)
    ending = ".json"
    pointers = store.versions(f"pointers/latest/{case}/{asset}")
    versions = {
        name.removesuffix(ending): pointers[name] for name in sorted(pointers) if name.endswith(ending)
    }
    names = list(versions)
    parts = [names[start : start + _PER_FILE] for start in range(0, len(names), _PER_FILE)]
    # While artifacts are replaced under their keys, a pointer may stay as it is, and what it leads to change.
    files = (
        []
        if made_after is None
        else [f"summaries/{case}/{asset}/{number:05d}{ending}" for number in range(len(parts))]
    )
    stored = list(store.each(lambda file: _read(store, file, [version, made_after]), files))
    known = {name: entry for entries in stored for name, entry in entries.items()}
    values: dict[str, Any] = {}
    for number, part in enumerate(parts):
        entries = _brought_up_to_date(
            store, case, asset, derive, {name: versions[name] for name in part}, known
        )
        # Written as soon as it is known: a tick that ends early has not read in vain.
        if files and entries != stored[number]:
            store.write_json(
                files[number], {"of": [version, made_after], "entries": entries, "digest": digest(entries)}
            )
        values |= {name: value for name, (_, value) in entries.items()}
    return values


def _brought_up_to_date(
    store: Store,
    case: str,
    asset: str,
    derive: Callable[[Manifest], Any],
    versions: dict[str, str],
    known: _Entries,
) -> _Entries:
    """Return the entries of these partitions, read where they are not known with the present version of the
    pointer.
    """
    changed = [name for name, version in versions.items() if name not in known or known[name][0] != version]

    def read(name: str) -> tuple[Any] | None:
        # The pointer may be newer than the listing: then the next listing has another version, and it is read
        # again.
        manifest = latest(store, case, asset, name)
        return None if manifest is None else (derive(manifest),)

    new = {
        name: [versions[name], *value]
        for name, value in zip(changed, store.each(read, changed), strict=True)
        if value is not None
    }
    return {
        name: new[name] if name in new else known[name]
        for name in versions
        if name in new or name not in changed
    }


def _read(store: Store, file: str, of: list[str | None]) -> _Entries:
    """Return the entries of a file of a summary; none where it is lost, damaged, or not of this version."""
    try:
        content = store.read_json(file)
    except ValueError:  # JSON that is cut off
        return {}
    is_whole = (
        isinstance(content, dict)
        and content.get("of") == of
        and content.get("digest") == digest(content.get("entries"))
    )
    return content["entries"] if content and is_whole else {}
