"""The language that a text is in, identified from its beginning (py3langid: Lui and Baldwin 2012, langid.py)."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

#: Characters that are looked at: enough to tell languages apart, few enough for a hundred thousand texts.
PREFIX_CHARACTERS = 200
#: A text with fewer letters, or one that the model is unsure of, is of an unknown language.
MIN_LETTERS = 20
MIN_CONFIDENCE = 0.5
UNKNOWN = "unknown"
#: What py3langid answers where it is unsure, and for text that is no language.
_NONE = ("und", "zxx")
#: Codes of the languages that py3langid knows (its model's `labels`, sorted, without `zxx`).
_CODES = (
    "ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et eu ext fa fi fo fr fuv fy ga gcf gcr gd gl "
    "gom grc gu gug guw ha hbo he hi hr ht hu hy id ig is it ja jv ka kab kik kk km kn ko ku ky la lb lg lij ln lo lt ltg lv mg mk ml mn "
    "mr ms mt my ne nl nn no nso oc om or pa pcm pl ps pt qu ro ru rw sa sdh se si sk sl sn so sq sr st sv sw ta te tg th tk tl tr tt ug "
    "uk ur uz uzs vec vi vo wa wuu xh yo yue zh zu"
)
LANGUAGES = tuple(_CODES.split())


def identify(texts: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return each text's language (ISO 639-1), `UNKNOWN` where it cannot be identified; None for null."""
    import pyarrow.compute as pc

    prefixes = pc.utf8_slice_codeunits(texts, 0, PREFIX_CHARACTERS)
    num_letters = np.asarray(pc.fill_null(pc.count_substring_regex(prefixes, r"\pL"), 0))
    classify = _identifier().classify
    found = [
        None if text is None else classify(text)[0] if enough else UNKNOWN
        for text, enough in zip(prefixes.to_pylist(), num_letters >= MIN_LETTERS, strict=True)
    ]
    return np.array([UNKNOWN if language in _NONE else language for language in found], dtype=object)


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=MIN_CONFIDENCE)
