"""The champion copied out of the store, for whoever serves it: a folder for each model in the layout of the
Hugging Face hub.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fullft_assets.errors import FullftError
from fullft_assets.release.champion import read_champion
from fullft_assets.release.decision import card_of_champion
from fullft_assets.release.model_card import CARD, card_of
from fullft_assets.release.model_package import register_champion
from fullft_assets.store.buckets import SCHEMES
from fullft_assets.store.files import Files

if TYPE_CHECKING:
    from fullft_assets.settings.use_case import UseCase
    from fullft_assets.store import Store

#: Beside the models' folders: which of them is the champion's.
POINTER = "champion.json"
#: Whoever serves the model is another user than the one who trains.
_READABLE_FOLDER = 0o755


def push_champion(store: Store, use_case: UseCase) -> str | None:
    """Copy the champion's model and card to `release.push_to`; return where they are, or None where nothing
    is to be copied.

    A reader never sees parts of two models: each has a folder of its own, whose card is written last, and the
    pointer is replaced in one step. Repeated, it only writes card and pointer again.

    Raises:
        StoreError: the champion's checkpoint is gone, or its card and the evaluation that it is written from.
    """
    asked, champion = use_case.settings.release.push_to, read_champion(store, use_case.name)
    if asked is None or champion is None:
        return None
    # The bucket may be another account's, which the store's key for encryption is nothing to: its own
    # settings hold.
    target = Files(
        asked if asked.startswith(SCHEMES) else str(use_case.resolve(asked)), own_mode=_READABLE_FOLDER
    )
    checkpoint = store.load(champion.checkpoint)
    card = card_of(store, use_case.name, champion) or card_of_champion(store, use_case, checkpoint)
    name = f"{checkpoint.key}-{checkpoint.attempt}"
    if target.read_bytes(f"{name}/{CARD}") is None:
        model = store.folder(checkpoint) / "model"
        names = sorted(path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file())
        copies = [Path(target.url, name, each) for each in names] if target.is_local else []
        for copy in copies:
            target.make_folder(copy.parent)
        target.upload(model, name, names)
        for copy in copies:
            copy.chmod(target.file_mode)
    target.write_bytes(f"{name}/{CARD}", (store.folder(card) / CARD).read_bytes())
    target.write_json(
        POINTER, {"model": name, "checkpoint": champion.checkpoint, "promoted_at": champion.promoted_at}
    )
    return f"{target.url}/{name}"


def hand_over(store: Store, use_case: UseCase) -> Iterator[str]:
    """Push the champion and register it, where the settings ask for it; yield a sentence on each that was
    done.
    """
    if (pushed := push_champion(store, use_case)) is not None:
        yield f"copied to {pushed}"
    if (arn := register_champion(store, use_case)) is not None:
        yield f"registered as {arn}"


def try_to_hand_over(
    store: Store, use_case: UseCase, say: Callable[[str], None], warn: Callable[[str], None]
) -> None:
    """Hand the champion over after a change by hand, and say how it ended: a change that is made fails no
    more, or it would be made twice.
    """
    try:
        for done in hand_over(store, use_case):
            say(done)
    except Exception as error:
        problem = str(error) if isinstance(error, FullftError) else store.keep_traceback(use_case.name, error)
        asked = use_case.settings.release
        places = [asked.push_to, asked.model_package and asked.model_package.group]
        warn(
            f"pushing to {' and '.join(filter(None, places))} failed: {problem}; materialise champion_model"
            " to push it"
        )
