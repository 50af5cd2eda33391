"""The language that a text is in, identified from its beginning (py3langid: Lui and Baldwin 2012,
langid.py).
"""

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
    "ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et eu ext fa fi fo"
    " fr fuv fy ga gcf gcr gd gl gom grc gu gug guw ha hbo he hi hr ht hu hy id ig is it ja jv ka kab kik kk"
    " km kn ko ku ky la lb lg lij ln lo lt ltg lv mg mk ml mn mr ms mt my ne nl nn no nso oc om or pa pcm pl"
    " ps pt qu ro ru rw sa sdh se si sk sl sn so sq sr st sv sw ta te tg th tk tl tr tt ug uk ur uz uzs vec"
    " vi vo wa wuu xh yo yue zh zu"
)
LANGUAGES = tuple(_CODES.split())
#: Codes of three letters (ISO 639-2, both kinds) of languages that have one of two.
_THREE_LETTERS = (
    "af:afr am:amh ar:ara az:aze be:bel bg:bul bn:ben bs:bos ca:cat cs:ces,cze cy:cym,wel da:dan de:deu,ger"
    " el:ell,gre en:eng es:spa et:est eu:eus,baq fa:fas,per fi:fin fr:fra,fre ga:gle gl:glg gu:guj ha:hau"
    " he:heb hi:hin hr:hrv hu:hun hy:hye,arm id:ind ig:ibo is:isl,ice it:ita ja:jpn ka:kat,geo kk:kaz km:khm"
    " kn:kan ko:kor ky:kir lb:ltz lo:lao lt:lit lv:lav mg:mlg mk:mkd,mac ml:mal mn:mon mr:mar ms:msa,may"
    " mt:mlt my:mya,bur ne:nep nl:nld,dut nn:nno no:nor pa:pan pl:pol ps:pus pt:por ro:ron,rum ru:rus rw:kin"
    " si:sin sk:slk,slo sl:slv sn:sna so:som sq:sqi,alb sr:srp sv:swe sw:swa ta:tam te:tel tg:tgk th:tha"
    " tk:tuk tl:tgl tr:tur uk:ukr ur:urd uz:uzb vi:vie xh:xho yo:yor zh:zho,chi zu:zul"
)


def two_letter_code(code: str) -> str | None:
    """Return the ISO 639-1 code that a code of three letters (`ger`, `deu`) or a locale (`de-DE`) means, or
    None.
    """
    codes = {
        three: two
        for two, threes in (part.split(":") for part in _THREE_LETTERS.split())
        for three in threes.split(",")
    }
    language = code.strip().lower().replace("_", "-").partition("-")[0]
    return codes.get(language, language if len(language) == 2 else None)


def identify(texts: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return each text's language (ISO 639-1), `UNKNOWN` where it cannot be identified; None for null."""
    import pyarrow.compute as pc

    prefixes = pc.utf8_slice_codeunits(texts, 0, PREFIX_CHARACTERS).to_pylist()
    return np.array([None if text is None else language_of(text) for text in prefixes], dtype=object)


def language_of(text: str) -> str:
    """Return a text's language (ISO 639-1), `UNKNOWN` where it cannot be identified."""
    prefix = text[:PREFIX_CHARACTERS]
    if sum(map(str.isalpha, prefix)) < MIN_LETTERS:
        return UNKNOWN
    language = _identifier().classify(prefix)[0]
    return UNKNOWN if language in _NONE else language


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=MIN_CONFIDENCE)
