"""The baseline `bedrock`: a model of Amazon Bedrock names each text's label through the Converse API.

It is the one baseline that sends texts of rows to a service: those that are scored, and those of the
examples. Its answers are not stored, so an evaluation asks again, and pays again. An answer that names no
label counts as the commonest training label.
"""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from fullft_assets.aws import aws_client
from fullft_assets.errors import SettingsError
from fullft_assets.settings import BedrockSettings
from fullft_assets.snapshot import Split
from fullft_assets.tasks import prompting
from fullft_assets.tasks.baseline import Baseline, BaselineContext

#: Attempts at a request that the service throttles or that fails on the way; boto3 waits longer each time.
_ATTEMPTS = 8
_MAX_ANSWER_TOKENS = 64
#: Characters of a text that are sent; the rest is cut.
_MAX_CHARACTERS = 8_000
#: Training rows that each request shows with their labels.
NUM_SHOWN = 8
_PARALLEL_REQUESTS = 4
_AROUND = re.compile(r"^[\W_]+|[\W_]+$")


@dataclass(frozen=True)
class Bedrock(Baseline):
    """A prompted model of a service, with the task's labels in its system prompt.

    Attributes:
        shown: training rows that each request has as examples.
        labels: of each, as positions in the label order.
        fallback: position of the commonest training label.
    """

    name = "bedrock"
    title = "Bedrock model, prompted"
    tasks = ("classification",)
    needs_network = True
    serving_rank = 4

    shown: Split
    labels: Sequence[int]
    fallback: int
    context: BaselineContext

    @classmethod
    def fit(cls, train: Split, context: BaselineContext) -> Self:
        examples = train.select(prompting.draw(train.labels, NUM_SHOWN, context.settings.seed))
        return cls(examples, examples.labels.tolist(), int(np.bincount(train.labels).argmax()), context)

    def predict(self, rows: Split) -> np.ndarray:
        context = self.context
        settings = _settings_of(context)
        client = _client(settings)
        system = (
            "Answer with the label of the text and nothing else. The labels are:"
            f" {', '.join(context.labels)}."
        )
        examples = [
            _message(role, text)
            for example_text, label in zip(self.shown.texts, self.labels, strict=True)
            for role, text in (
                ("user", example_text[:_MAX_CHARACTERS]),
                ("assistant", context.labels[label]),
            )
        ]

        def ask(text: str) -> tuple[str, float]:
            answer = _converse(
                client, settings, system, [*examples, _message("user", text[:_MAX_CHARACTERS])]
            )
            return (
                "".join(part.get("text", "") for part in answer["output"]["message"]["content"]),
                (
                    answer["usage"]["inputTokens"] * settings.usd_per_1k_tokens[0]
                    + answer["usage"]["outputTokens"] * settings.usd_per_1k_tokens[1]
                )
                / 1_000,
            )

        answers = []
        with ThreadPoolExecutor(_PARALLEL_REQUESTS) as pool:
            try:
                for num_done, answer in enumerate(pool.map(ask, rows.texts), start=1):
                    answers.append(answer)
                    context.progress.raise_if_stopped()
                    context.progress.step(num_done, len(rows))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        context.paid[self.name] = context.paid.get(self.name, 0.0) + sum(usd for _, usd in answers)
        labels = [read_label(text, context.labels) for text, _ in answers]
        num_none = labels.count(None)
        if num_none:
            context.progress.say(
                f"bedrock: {num_none:,} of {len(rows):,} answers name no label and count as"
                f" {context.labels[self.fallback]}"
            )
        return np.eye(len(context.labels))[[self.fallback if label is None else label for label in labels]]

    def save(self, folder: Path) -> None:
        prompting.save_examples(folder / "bedrock.json", self.shown.ids, self.labels)
        np.savez(folder / "bedrock.npz", fallback=self.fallback)

    @classmethod
    def load(cls, folder: Path, context: BaselineContext) -> Self:
        fallback = int(np.load(folder / "bedrock.npz")["fallback"])
        return cls(*prompting.load_examples(folder / "bedrock.json", context), fallback, context)


def read_label(answer: str, labels: Sequence[str]) -> int | None:
    """Return the position of the label that an answer names; case and the marks around it do not count.
    None: it names no label.
    """
    positions = {_AROUND.sub("", label).casefold(): number for number, label in enumerate(labels)}
    return positions.get(_AROUND.sub("", answer).casefold())


def _settings_of(context: BaselineContext) -> BedrockSettings:
    settings = context.settings.planning.bedrock
    if settings is None:
        raise SettingsError(
            "planning.bedrock: planning.baselines names bedrock, so it has to say which model; give model, or"
            " remove bedrock"
        )
    return settings


def _message(role: str, text: str) -> dict[str, Any]:
    # The service refuses blank texts.
    return {"role": role, "content": [{"text": text if text.strip() else "(empty)"}]}


def _client(settings: BedrockSettings) -> Any:
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    retries = Config(
        retries={"max_attempts": _ATTEMPTS, "mode": "adaptive"}, max_pool_connections=_PARALLEL_REQUESTS
    )
    try:
        arn = re.match(r"arn:[\w-]+:bedrock:([\w-]+):", settings.model)
        return aws_client(
            "bedrock-runtime",
            "planning.bedrock",
            arn and arn[1],
            endpoint_url=settings.endpoint_url,
            config=retries,
        )
    except BotoCoreError as error:
        raise SettingsError(f"planning.bedrock: {_one_line(error)}") from error


def _converse(
    client: Any, settings: BedrockSettings, system: str, messages: list[dict[str, Any]]
) -> dict[str, Any]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return client.converse(
            modelId=settings.model,
            system=[{"text": system}],
            messages=messages,
            inferenceConfig={"maxTokens": _MAX_ANSWER_TOKENS, "temperature": 0.0},
        )
    except ClientError as error:
        # The service's message may quote the request, and so a text; its code does not.
        raise SettingsError(
            f"planning.bedrock: {settings.model} refused with {error.response['Error']['Code']}; look at"
            " model, region and rights"
        ) from None
    except BotoCoreError as error:
        raise SettingsError(f"planning.bedrock: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
