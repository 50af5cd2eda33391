"""monitoring: is production today like the data that the model learned from?"""

from fullft_assets.monitoring.detectors import MIN_EXPECTED_COUNT, compare_embeddings, compare_lengths, compare_predictions
from fullft_assets.monitoring.features import Features, build_features, one_per_group, vocabulary_of
from fullft_assets.monitoring.metadata import DriftMetadata, ReferenceMetadata
from fullft_assets.monitoring.predictions import PREDICTIONS, PREDICTIONS_VERSION, PredictionsMetadata, predictions_key
from fullft_assets.monitoring.rendering import render_report, render_table
from fullft_assets.monitoring.verdict import CHECKS, VERSION, DriftVerdict, Status, check, compare, insufficient, key_settings
