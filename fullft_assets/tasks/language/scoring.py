"""Scores language models on the test documents: the loss of the candidate, each baseline and the champion on
the trained tokens; and what they write. A model continues texts (language_modeling) or answers
conversations (sft) greedily, so that it always writes the same.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch
from transformers import GenerationConfig, PreTrainedModel

from fullft_assets import chunks, report
from fullft_assets.artifacts import CHUNKS_COLUMN, FINETUNED_CHECKPOINT, TRAINING_SNAPSHOT
from fullft_assets.base_model import ModelFolder
from fullft_assets.chunks import Tokenization
from fullft_assets.conversations import Message
from fullft_assets.errors import DataError
from fullft_assets.evaluation import BASE_MODEL, CHAMPION
from fullft_assets.models.document_scores import DocumentScores
from fullft_assets.models.inference import (
    device,
    evaluating,
    in_batches,
    is_sharded,
    load_causal,
    move,
)
from fullft_assets.models.token_loss import score_documents
from fullft_assets.progress import Listener
from fullft_assets.snapshot import Split, load_values
from fullft_assets.task import task_of
from fullft_assets.tasks.baseline import Baseline
from fullft_assets.tasks.context import EvaluationContext, EvaluationResult
from fullft_assets.tasks.language import assessment
from fullft_assets.training import sharding

#: Test documents whose beginnings are continued for the report, and by how much.
NUM_CONTINUATIONS = 4
MAX_NEW_TOKENS = 40
#: Tokens that a model may write for an answer; conversations whose held-out answer has more are excluded.
MAX_ANSWER_TOKENS = 256
#: Characters of a document that are given; what follows is the model's.
_PROMPT_CHARACTERS = 160


@dataclass(frozen=True)
class Writer:
    """A causal language model that writes with its tokenizer; it is moved to the accelerator, if there is
    one.
    """

    _model: PreTrainedModel
    _tokenization: Tokenization
    _max_new_tokens: int

    def write(self, prompt: str | Sequence[Message]) -> str:
        """Return the continuation of a text, or the answer to a conversation, without special tokens.

        A prompt that leaves no room to write is cut at its beginning.

        Raises:
            DataError: there is nothing to continue, or the chat template refuses the conversation.
        """
        return self.write_all([prompt])[0]

    def write_all(
        self, prompts: Sequence[str | Sequence[Message]], progress: Listener | None = None
    ) -> list[str]:
        prompt_ids = [self._read(prompt) for prompt in prompts]
        # Longest first: a batch that does not fit fails at once.
        order = sorted(range(len(prompt_ids)), key=lambda number: -len(prompt_ids[number]))
        lengths = [len(prompt_ids[number]) + self._max_new_tokens for number in order]

        def forward(start: int, end: int) -> list[tuple[int, str]]:
            numbers = order[start:end]
            return list(zip(numbers, self._continue([prompt_ids[number] for number in numbers]), strict=True))

        text_by_number = dict(
            pair for batch in in_batches(lengths, forward, self._model, progress) for pair in batch
        )
        return [text_by_number[number] for number in range(len(prompt_ids))]

    def _continue(self, prompts: Sequence[Sequence[int]]) -> list[str]:
        longest = max(map(len, prompts))
        pad_id = self._end_ids[0]
        inputs = torch.tensor(
            [[pad_id] * (longest - len(ids)) + list(ids) for ids in prompts], device=device()
        )
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts], device=device())
        # Not the model folder's own settings: they may sample, and then no two answers are alike.
        config = GenerationConfig(
            max_new_tokens=self._max_new_tokens,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            eos_token_id=self._end_ids,
            pad_token_id=pad_id,
        )
        move(self._model)
        # Processes that share the model go on until all are done.
        is_shared = is_sharded(self._model)
        # In the weights' own format: one token at a time, casting them costs more than it saves.
        with evaluating(self._model), torch.no_grad() if is_shared else torch.inference_mode():
            rows = cast(Any, self._model).generate(
                inputs, attention_mask=mask, generation_config=config, synced_gpus=is_shared
            )
        return [_answer(self._tokenization, self._until_end(row)) for row in rows[:, longest:].tolist()]

    def _until_end(self, ids: list[int]) -> list[int]:
        ends = [position for position, token in enumerate(ids) if token in self._end_ids]
        return ids[: ends[0] + 1] if ends else ids

    def _read(self, prompt: str | Sequence[Message]) -> list[int]:
        tokenization = self._tokenization
        prefix = tokenization.prefix if isinstance(prompt, str) else []
        if not isinstance(prompt, str):
            assert tokenization.chat is not None, "loaded for the task sft"
            prompt = tokenization.chat.render(prompt, add_generation_prompt=True)
        if not (ids := tokenization.tokenizer.encode(prompt, add_special_tokens=False).ids) and not prefix:
            raise DataError("nothing to continue: the text is empty; give its beginning")
        if isinstance(
            (longest := getattr(self._model.config.get_text_config(), "max_position_embeddings", None)), int
        ):
            ids = ids[-max(1, longest - self._max_new_tokens - len(prefix)) :]
        return [*prefix, *ids]

    @cached_property
    def _end_ids(self) -> list[int]:
        """The tokens that end what is written: the model's own, the text's end, and those that may end a
        turn.
        """
        candidates = [
            getattr(self._model.config.get_text_config(), "eos_token_id", None),
            getattr(self._model.generation_config, "eos_token_id", None),
            self._tokenization.end_id,
        ]
        if self._tokenization.chat is not None:
            chat = self._tokenization.chat
            candidates += [
                self._tokenization.tokenizer.token_to_id(token)
                for token in [token for token in chat.ends if token not in chat.inner]
            ]
        return list(
            dict.fromkeys(
                id_
                for id_ in [
                    id_ for entry in candidates for id_ in (entry if isinstance(entry, list) else [entry])
                ]
                if id_ is not None
            )
        ) or [0]


def _written(tokenization: Tokenization, conversation: Sequence[Message]) -> list[int]:
    """Return the tokens of the last turn as a model writes it, with its reasoning and its calls."""
    assert tokenization.chat is not None, "loaded for the task sft"
    text, spans = tokenization.chat.render_trained(conversation, "last_turn")
    [ids] = tokenization.encode(["".join(text[start:end] for start, end in spans)])
    return list(ids)


def _answer(tokenization: Tokenization, ids: Sequence[int]) -> str:
    """Return what is written, without special tokens; an answer to a conversation from behind the last token
    that its template has inside of a turn, such as the one between reasoning and answer of gpt-oss.
    """
    inner_tokens = () if tokenization.chat is None else tokenization.chat.inner
    inner_ids = {tokenization.tokenizer.token_to_id(token) for token in inner_tokens}
    start = max((number for number, id_ in enumerate(ids, start=1) if id_ in inner_ids), default=0)
    return tokenization.tokenizer.decode(list(ids[start:]), skip_special_tokens=True)


@dataclass(frozen=True)
class Prompt:
    """The beginning of a test document, or of its conversation, and what really follows."""

    id: str
    group: str
    beginning: str | Sequence[Message]
    real: str

    @property
    def shown(self) -> str:
        """What the report shows of it."""
        return report.shorten(
            self.beginning if isinstance(self.beginning, str) else self.beginning[-1]["content"]
        )


@dataclass(frozen=True)
class SystemOutput:
    """What a system scored on the test documents, and how it continued the prompts."""

    scores: DocumentScores
    written: list[str]


def evaluate(context: EvaluationContext, test: Split) -> EvaluationResult:
    """Score every system on the test documents' trained tokens."""
    scorer = _Scorer(context, test)
    outputs = context.predict_with_all(test, scorer.score_checkpoint, scorer.score_baseline)
    scores = {name: output.scores for name, output in outputs.items()}
    texts = {name: output.written for name, output in outputs.items() if output.written}
    answers = scorer.score_answers(texts)
    evaluation = assessment.assess(scores, test.groups, context.comparison(test), answers)
    return EvaluationResult(
        evaluation,
        {
            **evaluation.headline,
            "num_test_tokens": evaluation.num_test_tokens,
            "num_rows_without_tokens": evaluation.num_rows_without_tokens,
            "num_rows_better_than_base": evaluation.changes.num_better,
            "num_rows_worse_than_base": evaluation.changes.num_worse,
            "share_better_than_base": evaluation.changes.share_better,
        },
        _rows(test, scores),
        [
            report.AnsweredRow(
                prompt.id, prompt.shown, *(report.shorten(text) for text in (prompt.real, base, answer))
            )
            for prompt, base, answer in zip(
                scorer.prompts, outputs[BASE_MODEL].written, outputs[context.candidate].written, strict=True
            )
        ][:NUM_CONTINUATIONS],
        written=[]
        if answers is None
        else [
            {
                "id": prompt.id,
                "group": prompt.group,
                **{name: texts_of_system[number] for name, texts_of_system in texts.items()},
            }
            for number, prompt in enumerate(scorer.prompts)
        ],
    )


class _Scorer:
    def __init__(self, context: EvaluationContext, test: Split):
        self._context = context
        self._test = test
        self._settings = context.job.settings
        self._task = self._settings.examples.task
        self._max_new_tokens = MAX_NEW_TOKENS
        self._num_too_long = 0
        self._messages: list[list[Message]] | None = None
        if task_of(self._settings.examples).has_messages:
            by_id = load_values(context.store, context.inputs[TRAINING_SNAPSHOT], "test", "messages")
            self._messages = [cast("list[Message]", by_id[id_]) for id_ in test.ids]
            self.prompts = self._pick_answered(self._messages, self._settings.evaluation.generated_answers)
        else:
            self.prompts = _beginnings(test, self._settings.seed)

    def score_baseline(self, name: str, baseline: Baseline) -> SystemOutput:
        return (
            SystemOutput(baseline.predict(self._test), [])
            if name != BASE_MODEL
            else self._score(
                self._context.base_model,
                self._settings.chunks.added_tokens,
                self.base_tokenization,
                self._test,
                self.prompts,
            )
        )

    def score_checkpoint(self, name: str) -> SystemOutput:
        """Score a fine-tuned model; one with another tokenizer reads the documents with its own."""
        folder = self._context.model_folder(name)
        tokenization = Tokenization.load_saved(folder, self._settings.chunks, self._task)
        # A page shows what the candidate writes; champions only write what is scored, and the first one not
        # even that.
        prompts = (
            self.prompts
            if name == FINETUNED_CHECKPOINT or (name == CHAMPION and self._messages is not None)
            else []
        )
        if self._context.has_tokenizer_of_snapshot(name):
            return self._score(folder, (), tokenization, self._test, prompts)
        _, base_lengths = self._read(self.base_tokenization)
        documents, lengths = self._read(tokenization)
        output = self._score(folder, (), tokenization, documents, prompts)
        return replace(
            output,
            scores=assessment.in_tokens_of(
                output.scores,
                lengths,
                DocumentScores(_num_scored(self._test), np.zeros(len(self._test)), None),
                base_lengths,
            ),
        )

    def _score(
        self,
        folder: ModelFolder,
        added_tokens: Sequence[str],
        tokenization: Tokenization,
        documents: Split,
        prompts: Sequence[Prompt],
    ) -> SystemOutput:
        model = sharding.load_scored(
            partial(load_causal, folder, added_tokens),
            self._settings.training,
            is_shared=self._context.shares_models,
        )
        progress = self._context.listener
        scores = score_documents(model, documents.chunks, documents.marks, progress=progress)
        return SystemOutput(
            scores,
            Writer(model, tokenization, self._max_new_tokens).write_all(
                [prompt.beginning for prompt in prompts], progress
            ),
        )

    def score_answers(self, texts: Mapping[str, list[str]]) -> assessment.AnswerScores | None:
        if self._messages is None or not self.prompts:
            return None
        scores = assessment.measure_answers(
            [prompt.real for prompt in self.prompts],
            texts,
            [prompt.group for prompt in self.prompts],
            self._settings,
            num_too_long=self._num_too_long,
            max_new_tokens=self._max_new_tokens,
            modules=self._context.modules,
            candidate=self._context.candidate,
        )
        if scores is None:
            self._context.progress.say(
                "written answers are not scored: fewer than two groups have one"
                " (evaluation.generated_answers)"
            )
        return scores

    def _pick_answered(self, messages: Sequence[Sequence[Message]], most: int) -> list[Prompt]:
        """Draw conversations whose last answer is short enough, one of each group first, and bound what is
        written by the longest of them.
        """
        test = self._test
        tokenization = self.base_tokenization
        has_inner_tokens = tokenization.chat is not None and bool(tokenization.chat.inner)
        prompts = []
        longest = 0
        for row in _one_of_each_group_first(test.groups, self._settings.seed):
            if len(prompts) == most:
                break
            conversation = messages[row]
            is_learned = [turn["role"] == "assistant" and turn.get("weight") != 0 for turn in conversation]
            if not (last := max(np.flatnonzero(is_learned).tolist(), default=0)):
                continue
            answer = conversation[last]["content"]
            ids = tokenization.tokenizer.encode(answer, add_special_tokens=False).ids
            if conversation[last].get("extras") or has_inner_tokens:
                ids = _written(tokenization, conversation[: last + 1])
                answer = _answer(tokenization, ids)
            if len(ids) > MAX_ANSWER_TOKENS:
                self._num_too_long += 1
            else:
                prompts.append(Prompt(test.ids[row], test.groups[row], conversation[:last], answer))
                longest = max(longest, len(ids))
        # Who writes twice as much as the longest answer is wrong already.
        self._max_new_tokens = max(1, min(MAX_ANSWER_TOKENS, 2 * longest))
        return prompts

    @cached_property
    def base_tokenization(self) -> Tokenization:
        return Tokenization.load(self._context.base_model, self._settings.chunks, self._task)

    def _read(self, tokenization: Tokenization) -> tuple[Split, np.ndarray]:
        """Return the test documents in a tokenizer's chunks, and the tokens of each in all [n]."""
        test = self._test
        columns: dict[str, Sequence[object]] = {
            "id": test.ids,
            "text": test.texts,
            "source": test.ids,
            "row": list(range(len(test))),
        }
        if self._messages is not None:
            columns["messages"] = self._messages
        table = chunks.chunk(pa.table(columns), tokenization, self._task).table
        # Of a conversation only the answers cost anything; the template around them may be another.
        marks = table["marks"].to_pylist() if self._messages is not None else None
        split = Split(test.ids, test.texts, test.labels, test.groups, table[CHUNKS_COLUMN].to_pylist(), marks)
        return split, _num_scored(split) if marks is not None else table["num_tokens"].to_numpy()


def _beginnings(test: Split, seed: int) -> list[Prompt]:
    prompts: list[Prompt] = []
    for row in np.random.default_rng(seed).permutation(len(test)).tolist():
        text = test.texts[row]
        # A tokenizer joins a space to the word behind it.
        beginning = text[:_PROMPT_CHARACTERS].rsplit(maxsplit=1)[0] if text.strip() else ""
        if len(text) >= 2 * _PROMPT_CHARACTERS and beginning.strip():
            prompts.append(Prompt(test.ids[row], test.groups[row], beginning, text[len(beginning) :]))
    return prompts[:NUM_CONTINUATIONS]


def _num_scored(documents: Split) -> np.ndarray:
    return (
        np.array([sum(len(chunk) - 1 for chunk in chunks) for chunks in documents.chunks], np.int64)
        if documents.marks is None
        else np.array(
            [sum(sum(mark == 1 for mark in marks[1:]) for marks in chunks) for chunks in documents.marks],
            np.int64,
        )
    )


def _rows(test: Split, scores: dict[str, DocumentScores]) -> pa.Table:
    columns = {
        "id": test.ids,
        "group": test.groups,
        "num_tokens": scores[BASE_MODEL].num_tokens,
    }
    columns |= {f"loss_{name}": system_scores.loss for name, system_scores in scores.items()}
    columns |= {f"num_tokens_{name}": system_scores.num_tokens for name, system_scores in scores.items()}
    columns |= {
        f"num_right_{name}": system_scores.num_right
        for name, system_scores in scores.items()
        if system_scores.num_right is not None
    }
    return pa.table(columns)


def _one_of_each_group_first(groups: Sequence[str], seed: int) -> list[int]:
    """Return the rows [n] in an order drawn by the seed: one of each group, then a second one, and so on.
    Rows of one group are alike.
    """
    order: list[int] = np.random.default_rng(seed).permutation(len(groups)).tolist()
    counts: dict[str, int] = defaultdict(int)
    turn = {}
    for row in order:
        turn[row] = counts[groups[row]]
        counts[groups[row]] += 1
    return sorted(order, key=turn.__getitem__)
