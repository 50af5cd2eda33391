"""What the assets of one window of production share: the model in use, and the windows that it is compared
with.
"""

from functools import partial

from fullft_assets import monitoring, release
from fullft_assets.assets.case import Case
from fullft_assets.checkpoint.metadata import CheckpointMetadata
from fullft_assets.monitoring import History
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
        is_logged=bool(logged),
    )
    return history.without(partial(monitoring.without_redelivered, store, seen))


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
    predictions = monitoring.read_log(
        store,
        case.name,
        log=log,
        documents=seen,
        champion=champion,
        since=state.in_use_since,
        labels=labels,
        seed=case.settings.seed,
    )
    return {"batch_predictions": predictions}
