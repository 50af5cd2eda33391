"""erasure: an erasure list -> every artifact without those documents, tombstones, and the models that had
learned from them.
"""

from fullft_assets.erasure.report import ErasureReport
from fullft_assets.erasure.rewriting import erase
from fullft_assets.erasure.search import read_list
