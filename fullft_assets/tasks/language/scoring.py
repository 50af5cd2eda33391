"""Scores language models on the test documents: the loss of the candidate, each baseline and the champion on
the trained tokens.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import cast

import numpy as np
import pyarrow as pa
from transformers import PreTrainedModel

from fullft_assets import chunks, report
from fullft_assets.base_model import ModelFolder
from fullft_assets.chunks import Tokenization
from fullft_assets.chunks.chat import Message
from fullft_assets.evaluation import BASE_MODEL, CHAMPION, FINETUNED, harness
from fullft_assets.evaluation.answers import AnswerScores, measure_answers
from fullft_assets.evaluation.rows import one_of_each_group_first
from fullft_assets.models.inference import load_causal
from fullft_assets.models.token_loss import score_documents
from fullft_assets.snapshot import Split, load_messages
from fullft_assets.task import task_of
from fullft_assets.tasks.baseline import Baseline
from fullft_assets.tasks.context import EvaluationContext, EvaluationResult
from fullft_assets.tasks.language import assessment
from fullft_assets.tasks.language.assessment import DocumentScores, LanguageEvaluation
from fullft_assets.tasks.language.generation import Writer

#: Test documents whose beginnings are continued for the report, and by how much.
NUM_CONTINUATIONS = 4
MAX_NEW_TOKENS = 40
#: Tokens that a model may write for an answer; conversations whose held-out answer has more are excluded.
MAX_ANSWER_TOKENS = 256
#: Characters of a document that are given; what follows is the model's.
_PROMPT_CHARACTERS = 160


@dataclass(frozen=True)
class Prompt:
    """The beginning of a test document, or of its conversation, and what really follows."""

    id: str
    group: str
    given: str | Sequence[Message]
    shown: str
    real: str


@dataclass(frozen=True)
class SystemOutput:
    """What a system scored on the test documents, how it continued the prompts, and what it scored on the
    tasks of lm-eval.
    """

    scores: DocumentScores
    written: list[str]
    on_tasks: harness.RowScores = field(default_factory=dict)


def evaluate(context: EvaluationContext, test: Split) -> EvaluationResult:
    """Score every system on the test documents' trained tokens."""
    scorer = _Scorer(context, test)
    outputs = context.predict_with_all(test, scorer.score_checkpoint, scorer.score_baseline)
    scores = {name: output.scores for name, output in outputs.items()}
    answers = scorer.score_answers(
        {name: output.written for name, output in outputs.items() if output.written}
    )
    num_bytes = bytes_scored(test, scorer.base_tokenization)
    on_tasks = {name: output.on_tasks for name, output in outputs.items() if output.on_tasks}
    other_tasks = (
        harness.task_scores(on_tasks, context.job.settings.evaluation.confidence) if on_tasks else []
    )
    evaluation = assessment.assess(
        scores, test.ids, test.groups, context.comparison(test), num_bytes, answers, other_tasks
    )
    continuations = [
        report.Continuation(
            prompt.id, prompt.shown, *(report.shorten(text) for text in (prompt.real, base, tuned))
        )
        for prompt, base, tuned in zip(
            scorer.prompts, outputs[BASE_MODEL].written, outputs[FINETUNED].written, strict=True
        )
    ][:NUM_CONTINUATIONS]
    written = [] if answers is None else scorer.written(outputs)
    return EvaluationResult(
        evaluation, _headline(evaluation), _rows(test, scores, num_bytes), continuations, written=written
    )


class _Scorer:
    """Loads the model of each system once, scores the documents, has it continue the prompts, and
    frees it.
    """

    def __init__(self, context: EvaluationContext, test: Split):
        self._context, self._test = context, test
        self._settings = context.job.settings
        self._task = self._settings.examples.task
        self._messages = self._load_messages()
        self._max_new_tokens, self._num_too_long = MAX_NEW_TOKENS, 0
        asked = self._settings.evaluation.generated_answers
        if self._messages is None or not asked:
            self.prompts = pick_prompts(test, self._messages, self._settings.seed)
            self._answers_count = False
        else:
            self.prompts = self._pick_answered(self._messages, asked)
            self._answers_count = True

    def score_baseline(self, name: str, baseline: Baseline) -> SystemOutput:
        """Score a baseline; the base model continues the prompts as well."""
        if name != BASE_MODEL:
            return SystemOutput(baseline.predict(self._test), [])
        folder, added_tokens = self._context.base_model, self._settings.chunks.added_tokens
        return self._score(folder, added_tokens, self.base_tokenization, self._test, self.prompts, True)

    def score_checkpoint(self, name: str) -> SystemOutput:
        """Score a fine-tuned model; one with another tokenizer reads the documents with its own."""
        folder = self._context.model_folder(name)
        tokenization = Tokenization.load_saved(folder, self._settings.chunks, self._task)
        # A page shows what the candidate writes; champions only write what is scored, and the first one not
        # even that.
        prompts = (
            self.prompts
            if name == "finetuned_checkpoint" or (name == CHAMPION and self._answers_count)
            else []
        )
        takes_tasks = name in ("finetuned_checkpoint", CHAMPION)
        if self._context.has_tokenizer_of_snapshot(name):
            return self._score(folder, (), tokenization, self._test, prompts, takes_tasks)
        base_reading, reading = self._read(self.base_tokenization), self._read(tokenization)
        output = self._score(folder, (), tokenization, reading.split, prompts, takes_tasks)
        counted = DocumentScores(_num_scored(self._test), np.zeros(len(self._test)), None)
        return replace(
            output,
            scores=assessment.in_tokens_of(output.scores, reading.lengths, counted, base_reading.lengths),
        )

    def _score(
        self,
        folder: ModelFolder,
        added_tokens: Sequence[str],
        tokenization: Tokenization,
        documents: Split,
        prompts: Sequence[Prompt],
        takes_tasks: bool,
    ) -> SystemOutput:
        progress, model = self._context.progress, load_causal(folder, added_tokens)
        scores = score_documents(model, documents.windows, documents.marks, progress=progress)
        writer = Writer(model, tokenization, self._max_new_tokens)
        written = writer.write_all([prompt.given for prompt in prompts], progress)
        on_tasks = self._score_tasks(model, folder) if takes_tasks else {}
        del model, writer
        # Two large models at a time may not fit.
        gc.collect()
        return SystemOutput(
            DocumentScores(scores.num_tokens, scores.loss, scores.num_right), written, on_tasks
        )

    def _score_tasks(self, model: PreTrainedModel, folder: ModelFolder) -> harness.RowScores:
        """Score a model on the tasks of lm-eval that the YAML asks for."""
        asked, copies = self._settings.evaluation.lm_eval, self._context.inputs.get(harness.STAGE)
        if asked is None or copies is None:
            return {}
        from fullft_assets.tasks.language.harness import score_tasks

        tasks = self._context.store.folder(copies) / harness.FOLDER
        return score_tasks(model, folder, tasks, asked, self._settings.seed, self._context.progress)

    def score_answers(self, written: Mapping[str, list[str]]) -> AnswerScores | None:
        """Score what the systems wrote; None where answers were not asked for, or are of too few groups."""
        if not self._answers_count:
            return None
        counted = {"num_too_long": self._num_too_long, "max_new_tokens": self._max_new_tokens}
        truth, groups = [prompt.real for prompt in self.prompts], [prompt.group for prompt in self.prompts]
        modules = self._context.modules
        scores = measure_answers(truth, written, groups, self._settings, modules=modules, **counted)
        if scores is None:
            self._context.progress.say(
                "written answers are not scored: fewer than two groups have one"
                " (evaluation.generated_answers)"
            )
        return scores

    def written(self, outputs: Mapping[str, SystemOutput]) -> list[dict[str, str]]:
        """Return what each system wrote for each prompt, with the row's id and its group."""
        columns = {name: output.written for name, output in outputs.items() if output.written}
        return [
            {
                "id": prompt.id,
                "group": prompt.group,
                **{name: texts[number] for name, texts in columns.items()},
            }
            for number, prompt in enumerate(self.prompts)
        ]

    def _pick_answered(self, messages: Sequence[Sequence[Message]], most: int) -> list[Prompt]:
        """Draw conversations whose last answer is short enough, one of each group first, and bound what is
        written by the longest of them.
        """
        test = self._test
        limit = MAX_ANSWER_TOKENS
        tokenizer = self.base_tokenization.tokenizer
        prompts, longest = [], 0
        for row in one_of_each_group_first(test.groups, self._settings.seed):
            if len(prompts) == most:
                break
            prompt = _answered(test.ids[row], test.groups[row], messages[row])
            if prompt is None:
                continue
            length = len(tokenizer.encode(prompt.real, add_special_tokens=False).ids)
            if length > limit:
                self._num_too_long += 1
                continue
            prompts.append(prompt)
            longest = max(longest, length)
        # Who writes twice as much as the longest answer is wrong already.
        self._max_new_tokens = max(1, min(limit, 2 * longest))
        return prompts

    @cached_property
    def base_tokenization(self) -> Tokenization:
        """The base model's, which made the test set's windows."""
        return Tokenization.load(self._context.base_model, self._settings.chunks, self._task)

    def _read(self, tokenization: Tokenization) -> _Reading:
        """Cut the test documents into a tokenizer's windows."""
        test, count = self._test, len(self._test)
        columns: dict[str, Sequence[object]] = {
            "id": test.ids,
            "text": test.texts,
            "source": test.ids,
            "row": list(range(count)),
        }
        if self._messages is not None:
            columns["messages"] = self._messages
        table = chunks.chunk(pa.table(columns), tokenization, self._task).table
        # Of a conversation only the answers cost anything; the template around them may be another.
        marks = table["marks"].to_pylist() if self._messages is not None else None
        split = Split(test.ids, test.texts, test.labels, test.groups, table["windows"].to_pylist(), marks)
        return _Reading(split, _num_scored(split) if marks is not None else table["num_tokens"].to_numpy())

    def _load_messages(self) -> list[list[Message]] | None:
        if not task_of(self._settings.examples).has_messages:
            return None
        by_id = load_messages(self._context.store, self._context.inputs["training_snapshot"], "test")
        return [cast("list[Message]", by_id[id_]) for id_ in self._test.ids]


@dataclass(frozen=True)
class _Reading:
    """The test documents in a tokenizer's windows, and the tokens of each in all [n]."""

    split: Split
    lengths: np.ndarray


def pick_prompts(test: Split, messages: Sequence[Sequence[Message]] | None, seed: int) -> list[Prompt]:
    """Draw test documents at random that are long enough to be continued, or whose conversation ends with an
    answer.
    """
    prompts: list[Prompt] = []
    for row in np.random.default_rng(seed).permutation(len(test)).tolist():
        if len(prompts) == NUM_CONTINUATIONS:
            break
        about = test.ids[row], test.groups[row]
        prompt = _answered(*about, messages[row]) if messages is not None else _begun(*about, test.texts[row])
        if prompt is not None:
            prompts.append(prompt)
    return prompts


def _begun(id_: str, group: str, text: str) -> Prompt | None:
    if len(text) < 2 * _PROMPT_CHARACTERS:
        return None
    # A tokenizer joins a space to the word behind it.
    beginning = text[:_PROMPT_CHARACTERS].rsplit(maxsplit=1)[0]
    return (
        Prompt(id_, group, beginning, report.shorten(beginning), text[len(beginning) :])
        if beginning.strip()
        else None
    )


def _answered(id_: str, group: str, messages: Sequence[Message]) -> Prompt | None:
    last = max(
        (number for number, message in enumerate(messages) if message["role"] == "assistant"), default=0
    )
    if not last:
        return None
    return Prompt(
        id_, group, messages[:last], report.shorten(messages[last - 1]["content"]), messages[last]["content"]
    )


def _num_scored(documents: Split) -> np.ndarray:
    """Return how many tokens of each document can be predicted: the trained ones, but the first of a
    window.
    """
    if documents.marks is None:
        return np.array(
            [sum(len(window) - 1 for window in windows) for windows in documents.windows], np.int64
        )
    return np.array(
        [sum(sum(mark == 1 for mark in marks[1:]) for marks in windows) for windows in documents.marks],
        np.int64,
    )


def bytes_scored(documents: Split, tokenization: Tokenization) -> np.ndarray:
    """Return how many UTF-8 bytes of text the tokens of each document have that can be predicted: int64 [n];
    special tokens have none.
    """
    decode = tokenization.tokenizer.decode
    num_bytes = np.zeros(len(documents), np.int64)
    for row, windows in enumerate(documents.windows):
        for number, ids in enumerate(windows):
            marks = [1] * len(ids) if documents.marks is None else documents.marks[row][number]
            is_scored = np.array([False, *(mark == 1 for mark in marks[1:]), False])
            edges = np.flatnonzero(is_scored[1:] != is_scored[:-1]) + 1
            # With what is before them: a decoder drops the space that begins a text.
            for first, last in edges.reshape(-1, 2).tolist():
                num_bytes[row] += len(decode(ids[:last]).encode()) - len(decode(ids[:first]).encode())
    return num_bytes


def _headline(evaluation: LanguageEvaluation) -> dict[str, object]:
    return {
        **evaluation.headline,
        "num_test_tokens": evaluation.num_test_tokens,
        "num_rows_without_tokens": evaluation.num_rows_without_tokens,
        "num_rows_better_than_base": evaluation.changes.num_better,
        "num_rows_worse_than_base": evaluation.changes.num_worse,
        "share_better_than_base": evaluation.changes.share_better,
    }


def _rows(test: Split, scores: dict[str, DocumentScores], num_bytes: np.ndarray) -> pa.Table:
    columns = {
        "id": test.ids,
        "group": test.groups,
        "num_tokens": scores[BASE_MODEL].num_tokens,
        "num_bytes": num_bytes,
    }
    columns |= {f"loss_{name}": each.loss for name, each in scores.items()}
    columns |= {f"num_tokens_{name}": each.num_tokens for name, each in scores.items()}
    columns |= {
        f"num_right_{name}": each.num_right for name, each in scores.items() if each.num_right is not None
    }
    return pa.table(columns)
