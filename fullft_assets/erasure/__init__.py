"""erasure: an erasure list -> a store without those documents, tombstones, and the models that had learned
from them.

A document's text and tokens are in its batch alone (`raw_documents` to `tokenized_chunks`), in a production
window, or in what was drawn of general documents. These tables are written again without its rows, and so are
snapshots, predictions and lists in reports, by one filter (`ErasedDocuments`). What is computed again in
seconds, or at the next use, is deleted: indexes, screenings, audits, baselines, predictions of windows. The
held-out ledger, evaluations in aggregate, decisions and checkpoints stay, and the checkpoints that learned
from the document are named.

A table keeps its key and its content digest, so that nothing that names it has to change. A snapshot gets a
new digest: training on it is asked for again. A tombstone (a keyed digest, never the id itself) keeps the
document out when its file is read again.

An erasure may be cut short anywhere. Tombstones are written first, and the delivered documents are the last
to go, so that the next erasure with the same list finds all that is left.
"""

from fullft_assets.erasure.erased_documents import read_list
from fullft_assets.erasure.erasing import erase
from fullft_assets.erasure.rewriting import ErasureReport
