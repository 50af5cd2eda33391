"""Names of the artifacts, which are those of their assets, and of the files in them that several stages
read.
"""

RAW_DOCUMENTS = "raw_documents"
PRODUCTION_DOCUMENTS = "production_documents"
LABELED_EXAMPLES = "labeled_examples"
QUARANTINED_EXAMPLES = "quarantined_examples"
TOKENIZED_CHUNKS = "tokenized_chunks"
TOKENIZER_AUDIT = "tokenizer_audit"
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
DOCUMENTS_FILE = "documents.parquet"
EXAMPLES_FILE = "examples.parquet"
EVALUATION_FILE = "evaluation.json"
REPORT_PAGE = "report.html"
