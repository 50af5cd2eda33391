"""snapshot: exactly which rows train, validate and test: deduplicated, split without leaks, frozen.

`creation` creates a snapshot and `loading` reads it again. `batches` are what it is taken over; `split`
decides over `all_rows`, with what `deliveries` supersede and which `labels` there are; `near_text` joins
the sketches of each batch to find texts that are nearly equal. `screening` keeps evaluation texts out,
`general` draws general documents, and `packing` shapes what trains. A snapshot
holds no text: `frozen_batches` says where its rows are in its batches, and whether these still hold what it
froze. `checks` and `metadata` are what its manifest contains.
"""

from fullft_assets.snapshot.all_rows import SplitName
from fullft_assets.snapshot.batches import red_gates
from fullft_assets.snapshot.checks import VERDICT_IS_POSSIBLE, checks_of, verdict_check
from fullft_assets.snapshot.creation import VERSION, pack_again, take
from fullft_assets.snapshot.frozen_batches import read_index
from fullft_assets.snapshot.loading import (
    Split,
    Training,
    label_names,
    load_split,
    load_training,
    load_values,
    table_folder,
)
from fullft_assets.snapshot.metadata import SnapshotMetadata
from fullft_assets.snapshot.near_text.pairs import near_duplicates
from fullft_assets.snapshot.split import Frozen
from fullft_assets.store.hashing import unit_hash
