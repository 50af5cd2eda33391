"""The artifact store: immutable folders named by digest, the manifest written last.

An artifact is stored at `<case>/<stage>/<key>/<attempt>/`. Its key is a digest of everything that
determines its content, so finished work is found, not repeated. Files come first and
`manifest.json` last: a folder without a manifest does not exist, and a killed step leaves nothing
half-valid. Of several attempts the first valid one wins. Pointers (the champion, the newest output
of an asset) are small JSON files replaced in one atomic write.
"""

from fullft_assets.store.artifacts import Draft
from fullft_assets.store.buckets import SCHEMES
from fullft_assets.store.disk import sync
from fullft_assets.store.files import Files
from fullft_assets.store.hashing import artifact_key, digest
from fullft_assets.store.manifest import MANIFEST, CheckOutcome, Identity, Manifest, Outcome
from fullft_assets.store.store import Store, checkpoints_ref
