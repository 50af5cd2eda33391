"""Names of the artifacts, which are those of their assets, and of the files in them that several stages
read.
"""

RAW_DOCUMENTS = "raw_documents"
PRODUCTION_DOCUMENTS = "production_documents"
LABELED_EXAMPLES = "labeled_examples"
QUARANTINED_EXAMPLES = "quarantined_examples"
TOKENIZED_CHUNKS = "tokenized_chunks"
TOKENIZER_AUDIT = "tokenizer_audit"
#: What was drawn of general documents, for measuring and for replay.
GENERAL_DOCUMENTS = "general_documents"
REPLAY_DOCUMENTS = "replay_documents"
#: What a snapshot derives from a batch.
SCREENED_EXAMPLES = "screened_examples"
NEAR_DUPLICATE_INDEX = "near_duplicate_index"
TRAINING_SNAPSHOT = "training_snapshot"
FEASIBILITY_PLAN = "feasibility_plan"
CHEAPER_BASELINES = "cheaper_baselines"
PILOT_RUN = "pilot_run"
FINETUNED_CHECKPOINT = "finetuned_checkpoint"
BASELINE_MODEL = "baseline_model"
#: Models that may be in use: each is a folder `model` with the same metadata.
MODELS = (FINETUNED_CHECKPOINT, BASELINE_MODEL)
EVALUATION_REPORT = "evaluation_report"
CHAMPION_MODEL = "champion_model"
BATCH_PREDICTIONS = "batch_predictions"
DRIFT_SCALE = "drift_scale"
DRIFT_REPORT = "drift_report"
LIVE_QUALITY = "live_quality"

#: In the model folder of a champion that is no model of transformers: which baseline it is, and its labels.
BASELINE_FILE = "baseline.json"
#: In `cheaper_baselines`: the head of the frozen probe.
PROBE_FILE = "frozen_probe.npz"
DOCUMENTS_FILE = "documents.parquet"
CHUNKS_FILE = "chunks.parquet"
#: The column of the chunks in it; stores have had this name from the beginning.
CHUNKS_COLUMN = "windows"
EXAMPLES_FILE = "examples.parquet"
EVALUATION_FILE = "evaluation.json"
REPORT_PAGE = "report.html"
