"""What a snapshot keeps of the pairs that it compared, and who reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fullft_assets import snapshot
from fullft_assets.snapshot import near_rows, verdicts
from tests import prepared


def test_a_later_snapshot_reads_the_verdicts_of_the_newest_one_that_compared_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = prepared.prepare(tmp_path, rows=400)
    settings = case.use_case.settings.snapshot

    def read(
        version: str = case.snapshot.version, seed: int = case.snapshot.seed, **changed: float | None
    ) -> dict[str, verdicts.Verdicts]:
        return verdicts.of_earlier_snapshot(
            case.store, case.use_case.name, version, settings.model_copy(update=changed), seed
        )

    found = read()
    assert {"test", "validation"} <= found.keys() and len(found["test"].near)
    assert (
        read(version="another")
        == read(near_duplicate_similarity=0.5)
        == read(contained_share=0.9)
        == read(seed=1)
        == {}
    )

    compared = []
    monkeypatch.setattr(
        near_rows,
        "_read_sets",
        lambda *of, read=near_rows._read_sets: compared.append(len(of[2])) or read(*of),
    )
    case.project.configure(snapshot={"max_train_rows": 100})
    (labeled,), (tokenized,) = (
        case.store.artifacts(case.use_case.name, stage) for stage in ("labeled_examples", "tokenized_chunks")
    )
    batch = labeled.metadata["batch"]
    taken = snapshot.take(case.store, case.project.use_case(), {batch: labeled}, {batch: tokenized})
    assert taken.key != case.snapshot.key and compared == [0]
    assert (
        taken.identity is not None
        and verdicts.FILE in taken.files
        and verdicts.FILE not in taken.identity.files
    )
