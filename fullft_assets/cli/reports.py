"""The pages that `fullft report` finds and copies."""

from __future__ import annotations

from pathlib import Path

from fullft_assets import release
from fullft_assets.errors import FullftError
from fullft_assets.evaluation.metadata import EvaluationMetadata
from fullft_assets.resources import latest
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import Manifest, Store

#: In the folder of the artifact that a report is about.
PAGE = "report.html"
_EVALUATION = "evaluation_report"


def newest(use_case: UseCase, store: Store, which: str) -> Manifest:
    """Return the artifact with the newest report.

    Args:
        which: data or evaluation.

    Raises:
        FullftError: there is none yet.
    """
    artifact = latest(store, use_case.name, "training_snapshot" if which == "data" else _EVALUATION)
    if artifact is None:
        first = "ingest" if which == "data" else "run"
        raise FullftError(
            f"{use_case.name} has no {which} report yet; `fullft {first} {use_case.name}` writes one"
        )
    return artifact


def copy(store: Store, artifact: Manifest, out: Path) -> Path:
    """Write a report to a file; that of an evaluation with how the release ended since."""
    from fullft_assets.report import with_outcome

    page = (store.folder(artifact) / PAGE).read_text(encoding="utf-8")
    if artifact.stage == _EVALUATION:
        outcome = release.recorded_outcome(store, artifact.case, EvaluationMetadata.of(artifact).checkpoint)
        page = with_outcome(page, outcome or "it has not been decided yet")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return out
