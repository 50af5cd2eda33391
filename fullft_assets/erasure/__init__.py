"""erasure: an erasure list -> every artifact without those documents, tombstones, and the models that had learned from them."""

from fullft_assets.erasure.rewriting import Report, erase
from fullft_assets.erasure.search import read_list

__all__ = ["Report", "erase", "read_list"]
