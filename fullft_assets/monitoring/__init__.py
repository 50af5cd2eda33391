"""monitoring: is production today like production when the model was new?"""

from fullft_assets.monitoring.drift_test import DriftTest, Outcome, open_tests
from fullft_assets.monitoring.explanation import (
    EXPLANATION,
    Place,
    farthest,
    render_explanation,
    shifted_words,
)
from fullft_assets.monitoring.exported import exported_as_far, remember_exported
from fullft_assets.monitoring.far import FAR, MAX_DOCUMENTS, FarDocument, order, read_far, write_far
from fullft_assets.monitoring.features import Features, Vocabulary, build_features
from fullft_assets.monitoring.history import SUMS, History, kept_reference, read_history
from fullft_assets.monitoring.live import LIVE_CHECK, LIVE_VERSION, METRIC, AtRelease, LiveMetadata
from fullft_assets.monitoring.logged import LOG_CHECK, log_key, read_labels, read_log
from fullft_assets.monitoring.metadata import DriftMetadata, ScaleMetadata
from fullft_assets.monitoring.predictions import (
    PREDICTIONS,
    PREDICTIONS_VERSION,
    PredictionsMetadata,
    predictions_artifact_key,
)
from fullft_assets.monitoring.redelivery import is_read_by_another_window, without_redelivered
from fullft_assets.monitoring.rendering import render_report, render_table
from fullft_assets.monitoring.scale import SCALE, Scale
from fullft_assets.monitoring.sums import Sums
from fullft_assets.monitoring.thinning import independent_rows
from fullft_assets.monitoring.verdict import (
    ALARMED,
    CHECKS,
    MOST_WITHOUT_VERDICT,
    REFERENCE_WINDOWS,
    VERSION,
    WITHOUT_VERDICT,
    DriftVerdict,
    Past,
    Status,
    check,
    insufficient,
    judge,
    key_settings,
    other_tests,
    read_elsewhere,
    report_key,
    seen_check,
)
