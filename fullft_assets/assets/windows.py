"""What the assets of one window of production share: the model in use, the windows that it is compared with,
and the backlog behind it.
"""

from functools import partial

from fullft_assets import documents, monitoring, release
from fullft_assets.assets.case import Case
from fullft_assets.checkpoint.metadata import CheckpointMetadata
from fullft_assets.errors import FullftError
from fullft_assets.monitoring import History, backlog
from fullft_assets.resources import latest
from fullft_assets.store import Manifest, Store


def read_history(
    case: Case, store: Store, window: str, seen: Manifest, checkpoint: Manifest, logged: dict[str, Manifest]
) -> History:
    """Return the drift reports that a window is compared with.

    Args:
        window: its key.
        seen: its `production_documents`.
        checkpoint: the model in use.
        logged: see `logged_predictions`.
    """
    history = monitoring.read_history(
        window,
        store.list_pointers(f"latest/{case.name}/drift_report"),
        partial(latest, store, case.name, "drift_report"),
        store.load,
        documents=seen,
        model=checkpoint,
        settings=monitoring.key_settings(case.settings),
        num_reference=case.settings.monitoring.reference_windows,
        is_logged=bool(logged),
    )
    return history.without(partial(monitoring.without_redelivered, store, seen))


def backlog_behind(case: Case, store: Store, window: str, workload: str) -> dict[str, Manifest]:
    """Return the `production_documents` of the windows right behind one which were not read yet, as inputs of
    its job.

    They end before the first window that was read, or that cannot be: the windows after that one are compared
    with other ones.

    Args:
        window: its key.
        workload: that reads it.
    """
    # With a log, a model reads each window once. An isolated container's artifacts are saved at its end, so
    # one window's crash would lose all.
    is_isolated = getattr(case.settings.launcher_of(workload), "network_isolation", False)
    if case.settings.monitoring.log is not None or is_isolated:
        return {}
    made, found = set(store.list_pointers(f"latest/{case.name}/{case.last_of_window}")), list[Manifest]()
    for name in store.list_pointers(f"{case.name}/window"):
        if name <= window:
            continue
        if name in made or len(found) == backlog.MOST_AHEAD:
            break
        try:
            seen = documents.keep(store, case.use_case, name, "window")
        except FullftError:  # its own run says why
            break
        if seen.red_gates:
            break
        found.append(seen)
    return backlog.as_inputs(found)


def snapshot_of(store: Store, checkpoint: Manifest) -> Manifest:
    """Return the snapshot that a checkpoint was trained on.

    The scale is fitted on what that model was measured on, not on the newest snapshot: a periodic evaluation
    moves that towards the new data.
    """
    return store.load(CheckpointMetadata.of(checkpoint).snapshot)


def logged_predictions(case: Case, store: Store, seen: Manifest) -> dict[str, Manifest]:
    """Return what the champion answered as the log of a window has it; nothing without `monitoring.log`, or
    before the first champion.
    """
    log, state = case.settings.monitoring.log, release.read_state(store, case.name)
    if log is None or state is None:
        return {}
    champion = store.load(state.checkpoint)
    labels = CheckpointMetadata.of(champion).labels
    made = monitoring.read_log(
        store,
        case.name,
        log=log,
        documents=seen,
        champion=champion,
        since=state.in_use_since,
        labels=labels,
        seed=case.settings.seed,
    )
    return {"batch_predictions": made}
