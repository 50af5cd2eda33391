"""`fullft predict`: apply the champion to one text. Imports torch."""

from fullft_assets import release
from fullft_assets.base_model import with_rights
from fullft_assets.errors import FullftError
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import Store
from fullft_assets.task import task_of


def predict(use_case: UseCase, store: Store, text: str, max_new_tokens: int) -> None:
    """Print what the champion predicts for a text: labels, spans, or text that it writes.

    Raises:
        FullftError: there is no champion yet.
    """
    settings = use_case.settings
    champion = release.read_champion(store, use_case.name)
    if champion is None:
        raise FullftError(f"{use_case.name} has no champion yet; `fullft run {use_case.name}` trains and judges one")
    checkpoint = store.load(champion.checkpoint)
    model = with_rights(store.folder(checkpoint) / "model", settings)
    labels = checkpoint.metadata.get("labels", [])
    for line in task_of(settings.examples).predict(model, settings, labels, text, max_new_tokens):
        print(line)
