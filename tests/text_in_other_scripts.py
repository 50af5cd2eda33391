"""Real texts in scripts that write words together, or with marks: the translations of Django's messages."""

import gettext
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

PLACEHOLDER = re.compile(r"%\(\w+\)\w|%\w|\{\w*\}|<[^>]*>")


def translations(language: str) -> Iterator[str]:
    """Yield the translated messages, with their placeholders."""
    spec = find_spec("django")
    assert spec is not None and spec.origin is not None, "it is installed with the dev extra"
    for path in sorted(Path(spec.origin).parent.glob(f"**/locale/{language}/LC_MESSAGES/django*.mo")):
        with path.open("rb") as file:
            catalog = vars(gettext.GNUTranslations(file))["_catalog"]
        yield from (text for key, text in catalog.items() if key)


@cache
def messages(language: str) -> list[str]:
    """Return the distinct translated messages, sorted; without those of mostly ASCII letters."""
    found = {" ".join(PLACEHOLDER.sub(" ", text).split()) for text in translations(language)}
    return sorted(
        text
        for text in found
        if 2 * sum(c.isalnum() and not c.isascii() for c in text) > sum(map(str.isalnum, text))
    )


def texts(language: str, num_letters: int) -> list[str]:
    """Return texts of at least so many letters, each of messages that no other has."""
    found, text = [], ""
    for message in sorted(messages(language), key=lambda message: message[::-1]):
        text = f"{text} {message}".strip()
        if sum(map(str.isalnum, text)) >= num_letters:
            found.append(text)
            text = ""
    return found
