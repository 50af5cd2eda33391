"""Metadata of a snapshot, and of what is made for it: near-duplicate indexes and general documents."""

from typing import Annotated, Literal

from fullft_assets.record import StrictRecord
from fullft_assets.store.metadata import Metadata, Private


class FrozenBatch(StrictRecord):
    """What a snapshot records of a batch: refs of its artifacts, and the content digests that the rows'
    positions hold for.
    """

    examples: str
    chunks: str
    examples_digest: str
    chunks_digest: str


class LabelStatistics(StrictRecord):
    """Rows, groups and effective number of groups (see `labels.label_statistics`) of a label in a split."""

    label: str
    split: str
    rows: int
    groups: int
    k_eff: float


class LabelSetAside(StrictRecord):
    """A label without rows in the snapshot, the rows and groups that it had, and why."""

    label: str
    rows: int
    groups: int
    reason: Literal["few_rows", "no_training_row"]


class Erasure(StrictRecord):
    """What an erasure took from a snapshot: its content digest before, and the splits (or `replay`,
    `general`) that lost documents.
    """

    snapshot_digest: str
    lost_from: list[str]


class SnapshotMetadata(Metadata):
    """Metadata of `training_snapshot`.

    Attributes:
        labels: the label order.
        num_batches: batches that it is taken over.
        num_train_rows, num_validation_rows, num_test_rows: rows by split.
        num_test_groups: groups with a test row.
        label_counts: rows by split and label.
        label_statistics, rare_labels: see `labels`.
        left_out: valid rows that are excluded, by reason.
        num_labels_set_aside, labels_set_aside, labels_untested, num_labels_without_validation_row: see
        `labels.SetAside`; lists are cut.
        num_groups_moved: groups that are not in the split that their hash gives (see `group_splits`).
        kappa, kappa_per_label, num_items_annotated_twice: see `examples.ExamplesMetadata`; over
        all batches.
        batches_left_out: batches that a red check holds back.
        parts: the batches, by name.
        text_tokens: quantiles of the texts' lengths in tokens.
        num_rows_over_max_tokens: rows longer than one chunk.
        general, replay: refs of what was drawn for it. num_general_tokens, num_replay_rows,
        num_replay_tokens: of these. num_packed_rows, packing_fill, packing_capacity, packing_cuts_to_fill: of
        packed training rows (see `packing`).
        num_evaluation_texts: texts of each path of `snapshot.screen`.
        erasures: each erasure that rewrote it.
    """

    labels: Annotated[list[str], Private.LABELS]
    num_batches: int
    num_train_rows: int
    num_validation_rows: int
    num_test_rows: int
    num_test_groups: int
    label_counts: Annotated[dict[str, dict[str, int]], Private.LABELS]
    label_statistics: Annotated[list[LabelStatistics], Private.LABELS]
    rare_labels: Annotated[list[str], Private.LABELS]
    left_out: dict[str, int]
    num_labels_set_aside: int
    labels_set_aside: Annotated[list[LabelSetAside], Private.COUNTED]
    labels_untested: Annotated[list[str], Private.LABELS]
    num_labels_without_validation_row: int
    num_groups_moved: int
    kappa: float | None = None
    kappa_per_label: Annotated[dict[str, float] | None, Private.LABELS] = None
    num_items_annotated_twice: int | None = None
    batches_left_out: list[str]
    parts: Annotated[dict[str, FrozenBatch], Private.COUNTED]
    text_tokens: dict[str, int]
    num_rows_over_max_tokens: int
    general: str | None = None
    num_general_tokens: int | None = None
    num_packed_rows: int | None = None
    packing_fill: float | None = None
    packing_capacity: int | None = None
    packing_cuts_to_fill: bool | None = None
    replay: str | None = None
    num_replay_rows: int | None = None
    num_replay_tokens: int | None = None
    num_evaluation_texts: dict[str, int] | None = None
    erasures: list[Erasure] | None = None

    def drawn(self) -> dict[str, str]:
        """Return the refs of what was drawn for the snapshot: `general`, `replay`."""
        return {
            kind: ref
            for kind, ref in {"general": self.general, "replay": self.replay}.items()
            if ref is not None
        }


class NearDuplicateIndexMetadata(Metadata):
    """Metadata of `near_duplicate_index`: the batch and its rows."""

    batch: str
    num_rows: int


class GeneralMetadata(Metadata):
    """Metadata of `general_documents`.

    Attributes:
        num_rows, num_tokens: of the documents that were drawn.
        num_unusable: rows that could not be drawn, by reason.
        num_files: files that were drawn from.
        num_erased: documents that erasures removed.
    """

    num_rows: int
    num_tokens: int
    num_unusable: dict[str, int]
    num_files: int
    num_erased: int | None = None


class ReplayMetadata(GeneralMetadata):
    """Metadata of `replay_documents`.

    Attributes:
        share: of the replayed tokens among all training tokens.
        num_near_held_out, num_screened, num_near_general: documents passed over because they overlap held-out
        rows, external
            evaluation texts, or the general set.
    """

    share: float
    num_near_held_out: int
    num_screened: int
    num_near_general: int
