"""The champion for use in other code: it is read from its store alone, without the YAML and without an
instance of Dagster. Predicting imports torch.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fullft_assets import release
from fullft_assets.checkpoint.metadata import CheckpointMetadata
from fullft_assets.errors import DataError, FullftError, SettingsError
from fullft_assets.resources.store import default_store, open_url
from fullft_assets.settings import ChunksSettings, UseCaseSettings
from fullft_assets.snapshot import SnapshotMetadata
from fullft_assets.store import Manifest, Store
from fullft_assets.task import TASKS, task_of


@dataclass(frozen=True)
class LoadedChampion:
    """A champion whose model is on this machine.

    Attributes:
        checkpoint: the artifact that it is.
        path: folder of the model.
        labels: in the order of the model's outputs; none of a language model.
        settings: they say what the task is and how texts are read.
        opened: returns the model, of whatever kind it is.
    """

    checkpoint: str
    path: Path
    labels: list[str]
    settings: UseCaseSettings
    opened: Callable[[], Any]

    def predict(self, texts: Iterable[Any], max_new_tokens: int = 100) -> list[dict[str, Any]]:
        """Return the champion's prediction for each text, in the form that `fullft predict --file` writes;
        each call loads the model once.

        Args:
            texts: not empty; for a model that chats also lists of messages, each with `role` and `content`.
            max_new_tokens: maximum number of tokens that a language model writes.
        """
        return list(self.each(texts, max_new_tokens))

    def each(self, texts: Iterable[Any], max_new_tokens: int) -> Iterator[dict[str, Any]]:
        """Yield the predictions that `predict` returns, one by one."""
        if isinstance(texts, str):
            raise DataError("predict takes a list of texts, not one text: [text]")
        return task_of(self.settings.examples).predict(
            self.opened(), self.settings, self.labels, list(texts), max_new_tokens
        )


def champion(case: str, store: str | None = None, *, trust_remote_code: bool = False) -> LoadedChampion:
    """Return the champion of a use case.

    Args:
        case: name of the use case.
        store: its store, a folder or s3://bucket/prefix. Default: $FULLFT_STORE, else the one in
            $DAGSTER_HOME.
        trust_remote_code: run the Python code that the model's folder brings, as the use case's setting of
            this name allows.

    Raises:
        SettingsError: it is not known where the store is.
        FullftError: there is no champion yet.
    """
    home = os.environ.get("DAGSTER_HOME")
    if store is None and home is None and "FULLFT_STORE" not in os.environ:
        raise SettingsError(
            f"champion of {case}: where is its store? Give store=..., or set FULLFT_STORE or DAGSTER_HOME"
        )
    opened_store = default_store(Path(home or "")) if store is None else open_url(store)
    return load_champion(opened_store, case, trust_remote_code=trust_remote_code)


def load_champion(
    store: Store, case: str, settings: UseCaseSettings | None = None, *, trust_remote_code: bool = False
) -> LoadedChampion:
    """Return the champion in a store.

    Args:
        settings: of its use case. Default: what its snapshot was made with.

    Raises:
        FullftError: there is no champion yet.
    """
    in_use = release.read_champion(store, case)
    if in_use is None:
        raise FullftError(f"{case} has no champion yet; `fullft run {case}` trains and judges one")
    checkpoint = store.load(in_use.checkpoint)
    about = CheckpointMetadata.of(checkpoint)
    if settings is None:
        settings = _settings(
            store,
            store.load(in_use.snapshot),
            {"base_model": about.base_model, "trust_remote_code": trust_remote_code},
        )

    def opened() -> Any:
        from fullft_assets.tasks.baseline import open_model

        return open_model(store, checkpoint, settings)

    return LoadedChampion(checkpoint.ref, store.folder(checkpoint) / "model", about.labels, settings, opened)


def _settings(store: Store, snapshot: Manifest, facts: dict[str, Any]) -> UseCaseSettings:
    tokenization = store.load(next(iter(SnapshotMetadata.of(snapshot).parts.values())).chunks).settings
    label_settings = {"label": "label"} if TASKS.get(tokenization["task"]).has_labels else {}
    return UseCaseSettings.model_validate(
        {
            **facts,
            "documents": {"path": "."},
            "examples": {"task": tokenization["task"], **label_settings},
            "chunks": ChunksSettings.from_manifest(tokenization).model_dump(),
        }
    )
