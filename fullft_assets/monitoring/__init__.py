"""monitoring: is production today like production when the model was new?"""

from fullft_assets.monitoring.drift_tests import SCALE, DriftTest, Outcome, Scale, open_tests
from fullft_assets.monitoring.far import (
    FAR,
    MAX_DOCUMENTS,
    FarDocument,
    exported_as_far,
    read_far,
    remember_exported,
    write_far,
)
from fullft_assets.monitoring.features import Features, Sums, Vocabulary, build_features
from fullft_assets.monitoring.history import SUMS, History, kept_reference, read_history
from fullft_assets.monitoring.live import LIVE_CHECK, LIVE_VERSION, METRIC, AtRelease, LiveMetadata
from fullft_assets.monitoring.predictions import (
    PREDICTIONS,
    PREDICTIONS_VERSION,
    PredictionsMetadata,
    predictions_artifact_key,
    read_labels,
)
from fullft_assets.monitoring.related import independent_rows, is_read_by_another_window
from fullft_assets.monitoring.rendering import (
    EXPLANATION,
    render_explanation,
    render_report,
    render_table,
    shifted_words,
)
from fullft_assets.monitoring.verdict import (
    ALARMED,
    CHECKS,
    MOST_WITHOUT_VERDICT,
    REFERENCE_WINDOWS,
    VERSION,
    WITHOUT_VERDICT,
    DriftMetadata,
    DriftVerdict,
    Past,
    ScaleMetadata,
    Status,
    check,
    insufficient,
    judge,
    key_settings,
    other_tests,
    report_key,
)
