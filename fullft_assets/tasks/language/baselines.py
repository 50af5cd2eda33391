"""The baseline of language models: the base model as it is."""

from __future__ import annotations

from fullft_assets.snapshot import Split
from fullft_assets.tasks.baseline import UntrainedBaseline
from fullft_assets.tasks.language.assessment import DocumentScores


class BaseModel(UntrainedBaseline):
    """The base model without any training."""

    name, title, tasks = "base_model", "base model, not fine-tuned", ("sft", "language_modeling")

    def predict(self, rows: Split) -> DocumentScores:
        from fullft_assets.models.inference import load_causal
        from fullft_assets.models.token_scores import score_documents

        model = load_causal(self.context.base_model, self.context.added_tokens)
        found = score_documents(model, rows.windows, rows.marks, progress=self.context.progress)
        return DocumentScores(found.num_tokens, found.loss, found.num_right)
