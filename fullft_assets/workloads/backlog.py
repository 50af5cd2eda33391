"""A backlog of windows in one process: what later steps and runs would make is made ahead, under the same
keys, so that they find it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

from fullft_assets import monitoring
from fullft_assets.documents import RawMetadata
from fullft_assets.errors import FullftError, without_message
from fullft_assets.jobs import Job
from fullft_assets.jobs.progress import Progress
from fullft_assets.monitoring import History, backlog
from fullft_assets.store import Manifest, Store

Write = Callable[[Job, Store, Progress], None]


def work_through(job: Job, store: Store, progress: Progress, writers: Mapping[str, Write]) -> None:
    """Make the artifact of a job about a window, then those of other stages, and those of the windows behind
    it, oldest first.

    Only the job's own artifact has to be made. Whatever else fails is left to its own run, which says why.
    Where something changes before that run, such as the champion, its artifact has another key, and what was
    made ahead is not used.

    Args:
        writers: what makes the artifact of a stage, by stage: `batch_predictions`, `drift_report`, or both in
            this order.
    """
    inputs, began = job.load_inputs(store), time.monotonic()
    own, history = inputs["production_documents"], History.of_inputs(inputs)
    of_all = {
        name: inputs[name]
        for name in ("training_snapshot", "finetuned_checkpoint", "batch_predictions")
        if name in inputs
    }

    def make(stage: str, key: str, of_window: Mapping[str, Manifest]) -> Manifest:
        if stage == job.stage and of_window["production_documents"] == own:
            key = job.key
        found = store.find(job.case, stage, key)
        if found is None:
            refs = {name: manifest.ref for name, manifest in of_window.items()}
            writers[stage](
                job.model_copy(update={"stage": stage, "key": key, "inputs": refs}), store, progress
            )
            found = store.find(job.case, stage, key)
            assert found is not None, "a writer commits its artifact"
        return found

    for documents in (own, *backlog.of_inputs(inputs)):
        is_ahead = documents != own
        if is_ahead and time.monotonic() - began > backlog.AHEAD_SECONDS:
            return
        window, before = RawMetadata.of(documents).batch, history
        try:
            if is_ahead:
                progress.raise_if_stopped()
                progress.say(f"{window}, ahead of its own run:")
                history = history.without(partial(monitoring.without_redelivered, store, documents))
            if "batch_predictions" in writers:
                of_window = {
                    "production_documents": documents,
                    "finetuned_checkpoint": inputs["finetuned_checkpoint"],
                }
                make(
                    "batch_predictions",
                    monitoring.predictions_artifact_key(job.settings, of_window),
                    of_window,
                )
            if "drift_report" in writers:
                of_window = {"production_documents": documents, **of_all, **history.as_inputs()}
                report = make("drift_report", monitoring.report_key(job.settings, of_window), of_window)
                # As the next window's own run reads it: a window that could not be compared is passed over.
                is_compared = monitoring.SUMS in report.files
                history = (
                    history.after(report, job.settings.monitoring.reference_windows)
                    if is_compared
                    else before
                )
        except Exception as error:
            if store.find(job.case, job.stage, job.key) is None:
                raise
            reason = str(error) if isinstance(error, FullftError) else without_message(error)
            progress.say(f"{window}: {reason}; its own run tries it again")
            return
