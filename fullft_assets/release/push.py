"""The champion copied out of the store, for whoever serves it: a folder for each model in the layout of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fullft_assets.errors import StoreError
from fullft_assets.release.champion import read_champion
from fullft_assets.release.model_card import CARD, card_of
from fullft_assets.store.files import Files

if TYPE_CHECKING:
    from fullft_assets.settings.use_case import UseCase
    from fullft_assets.store import Store

#: Beside the models' folders: which of them is the champion's.
POINTER = "champion.json"


def push_champion(store: Store, use_case: UseCase, options: Mapping[str, Any]) -> str | None:
    """Copy the champion's model and card to `release.push_to`; return where they are, or None where nothing is to be copied.

    A reader never sees parts of two models: each has a folder of its own, whose card is written last, and the pointer is replaced in one
    step. Repeated, it only writes card and pointer again.

    Args:
        options: fsspec options of a bucket.

    Raises:
        StoreError: the champion's checkpoint or card is gone.
    """
    asked, champion = use_case.settings.release.push_to, read_champion(store, use_case.name)
    if asked is None or champion is None:
        return None
    is_bucket = asked.startswith("s3://")
    target = Files(asked, options) if is_bucket else Files(str(use_case.resolve(asked)))
    checkpoint, card = store.load(champion.checkpoint), card_of(store, use_case.name, champion)
    if card is None:
        raise StoreError(f"{champion.checkpoint}: its model card is gone, so it is not copied to {asked}; materialise champion_model")
    name = checkpoint.key
    if target.read_bytes(f"{name}/{CARD}") is None:
        model = store.folder(checkpoint) / "model"
        names = sorted(path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file())
        if not is_bucket:
            for each in names:
                Path(target.url, name, each).parent.mkdir(parents=True, exist_ok=True)
        target.upload(model, name, names)
    target.write_bytes(f"{name}/{CARD}", (store.folder(card) / CARD).read_bytes())
    target.write_json(POINTER, {"model": name, "checkpoint": champion.checkpoint, "promoted_at": champion.promoted_at})
    return f"{target.url}/{name}"
