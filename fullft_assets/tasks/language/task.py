"""The tasks sft and language_modeling."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fullft_assets.task import Task


class NextToken(Task):
    """What both tasks share: a causal language model learns the next token."""

    is_generative = True
    # It is a whole model from the start, and forgets with each pass.
    min_rows_read = 0
    defaults = {"training": {"batch_size": 32}}
    plain_task = "language_modeling"
    metrics = ("token_probability", "token_accuracy")
    shown_metrics = ("token_probability", "perplexity", "token_accuracy")
    slice_metric = "token_probability"
    baselines = ("base_model",)
    more_baselines = ("lora",)
    required_baseline = "base_model"
    no_label_weights = "its rows have no labels"
    templates = Path(__file__).parent / "templates"
    scoring = "fullft_assets.tasks.language.scoring:evaluate"
    evaluation = "fullft_assets.tasks.language.assessment:LanguageEvaluation"

    def open_recipe(self, data: Any) -> Any:
        from fullft_assets.tasks.language.recipe import NextTokenRecipe

        return NextTokenRecipe(
            data.base_model, data.packed, data.validation, data.added_tokens, data.general, data.start
        )

    def predict(
        self, model: Any, settings: Any, labels: Sequence[str], texts: Sequence[str], max_new_tokens: int
    ) -> Iterator[dict[str, Any]]:
        from fullft_assets.chunks import Tokenization
        from fullft_assets.models.inference import load_causal
        from fullft_assets.tasks.language.scoring import Writer

        writer = Writer(
            load_causal(model), Tokenization.load_saved(model, settings.chunks, self.name), max_new_tokens
        )
        yield from ({"text": self._write(writer, text)} for text in texts)

    def show(self, prediction: Mapping[str, Any]) -> Iterator[str]:
        yield prediction["text"]

    @abstractmethod
    # The writer is a `scoring.Writer`.
    def _write(self, writer: Any, text: str) -> str: ...


class Sft(NextToken):
    """Conversations: the assistant's turns are learned."""

    name = "sft"
    has_messages = True
    answer_metrics = ("exact_match", "rouge_l", "chrf")

    def _write(self, writer: Any, text: Any) -> str:
        return writer.write([{"role": "user", "content": text}] if isinstance(text, str) else text)


class LanguageModeling(NextToken):
    """Plain text: every token is learned."""

    name = "language_modeling"
    ends_texts = True
    defaults = {**NextToken.defaults, "chunks": {"stride": 0}}

    def _write(self, writer: Any, text: str) -> str:
        return text + writer.write(text)


SFT = Sft()
LANGUAGE_MODELING = LanguageModeling()
