"""snapshot: exactly which rows train, validate and test: deduplicated, split without leaks, frozen.

`taking` puts a snapshot together and `loading` reads it again. `batches` are what it is taken over; `split` decides over their `rows`,
with what `deliveries` supersede and which `labels` there are; `near_duplicates` finds texts that are nearly equal, by what `sketches`
keeps of each batch. `screening` keeps evaluation texts out, `replay` and the `general` set draw general documents (`drawing`), and
`packing` shapes what trains. A snapshot holds no text: `places` say where its rows lie in its batches, `parts` whether these still
hold what it froze.
"""

from fullft_assets.snapshot.loading import Split, Training, label_names, load_messages, load_split, load_training
from fullft_assets.snapshot.near_duplicates import near_duplicates
from fullft_assets.snapshot.places import read_index
from fullft_assets.snapshot.rows import SplitName
from fullft_assets.snapshot.split import Frozen
from fullft_assets.snapshot.taking import VERSION, freeze, pack_again, take
from fullft_assets.store.hashing import unit_hash

__all__ = [
    "VERSION", "Frozen", "Split", "SplitName", "Training", "freeze", "label_names", "load_messages", "load_split", "load_training",
    "near_duplicates", "pack_again", "read_index", "take", "unit_hash",
]  # fmt: skip
