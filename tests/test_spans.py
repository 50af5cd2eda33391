"""Labelled spans: tags and back, the chunks' shares of a text, exact-span scores against plain ones, the
recipe, the baselines.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from fullft_assets import chunks
from fullft_assets.errors import DataError, StoreError
from fullft_assets.evaluation import FINETUNED, Comparison, read_evaluation
from fullft_assets.models.token_loss import IGNORED
from fullft_assets.settings import ChunksSettings, EvaluationSettings
from fullft_assets.tasks.baseline import load_all
from fullft_assets.tasks.context import open_recipe
from fullft_assets.tasks.heads import fit_on_states
from fullft_assets.tasks.token_classification import assessment as spans
from fullft_assets.tasks.token_classification.baselines import Dictionary
from fullft_assets.tasks.token_classification.recipe import (
    Frame,
    Span,
    TokenizedTexts,
    decode,
    in_order,
    labels_of_tags,
    normal,
    owned,
    tag,
    tag_names,
    tags_of,
)
from tests import licence_labels
from tests.optimizer_steps import check_steps
from tests.prepared import MINILM, QUIET, Prepared, prepare

pytestmark = pytest.mark.numeric

PLAIN = {"id": "plain", "text": "Nothing of that kind is in here.", "spans": [], "expression": "none"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    rows = [
        *licence_labels.spanned_rows(260),
        *({**PLAIN, "id": f"plain{n}", "text": f"{n} {PLAIN['text']}"} for n in range(20)),
    ]
    # Chunks so short that many texts have several.
    return prepare(
        tmp_path_factory.mktemp("spans"),
        tiny=True,
        delivered=rows,
        examples=licence_labels.SPANS,
        chunks={"max_tokens": 24, "max_chunks": None, "stride": 7},
    )


@pytest.fixture(scope="module")
def tokenization() -> chunks.Tokenization:
    from fullft_assets.base_model import resolve_base_model

    return chunks.Tokenization.load(
        resolve_base_model(MINILM, Path()), ChunksSettings(max_tokens=12, stride=3), "token_classification"
    )


class TestTags:
    def test_names_and_back(self):
        assert tag_names(["x", "a-b"]) == ["O", "B-x", "I-x", "B-a-b", "I-a-b"]
        assert labels_of_tags(tag_names(["x", "a-b"])) == ["x", "a-b"]
        for wrong in (["negative", "positive"], ["O", "I-x", "B-x"], ["O", "B-x"]):
            with pytest.raises(StoreError, match="no tags of"):
                labels_of_tags(wrong)

    def test_marks_become_tags(self):
        np.testing.assert_array_equal(tags_of([0, 1, -1, 2, 0, -2], [1, 0]), [0, 3, 4, 1, 0, 2])
        np.testing.assert_array_equal(tags_of([0, 0], []), [0, 0])

    def test_tags_become_spans(self):
        text, characters = "ab cd ef gh", np.array([[0, 2], [3, 5], [6, 8], [9, 11]])
        for tags, expected in (
            ([1, 2, 0, 3], [(0, 5, 0), (9, 11, 1)]),
            ([1, 1, 2, 2], [(0, 2, 0), (3, 11, 0)]),
            ([2, 2, 4, 0], [(0, 5, 0), (6, 8, 1)]),  # an I- without its B- begins one
            ([0, 2, 0, 2], [(3, 5, 0), (9, 11, 0)]),
            ([0, 0, 0, 0], []),
            ([0, 0], []),  # the rest of the text is in no chunk
        ):
            assert decode(np.array(tags), characters[: len(tags)], text) == expected

    def test_white_space_at_the_ends_is_no_part_of_a_span(self):
        assert decode(np.array([1, 0]), np.array([[0, 3], [3, 4]]), " a b") == [(1, 2, 0)]
        assert normal([" a "], [[(0, 3, 1), (2, 3, 0)]]) == [[(1, 2, 1)]]

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_spans_of_whole_words_come_back_through_marks_and_tags(
        self, tokenization: chunks.Tokenization, data: st.DataObject
    ):
        words = data.draw(
            st.lists(
                st.sampled_from(["licence", "Apache-2.0", "unbelievably", "x", "http://a.b/c"]),
                min_size=1,
                max_size=30,
            )
        )
        text, edges = " ".join(words), []
        for word in words:
            begin = edges[-1][1] + 1 if edges else 0
            edges.append((begin, begin + len(word)))
        cuts = sorted(data.draw(st.sets(st.integers(0, len(words)), max_size=8)))
        pairs = [pair for pair in zip(cuts, cuts[1:], strict=False) if data.draw(st.booleans())]
        true = [(edges[a][0], edges[b - 1][1], data.draw(st.integers(0, 2))) for a, b in pairs]
        encoded, cut = tokenization.read([text], spans=True)
        span_marks, num_without = chunks.cutting.locate_spans(
            encoded, [text], [[(start, end) for start, end, _ in true]]
        )
        frame, zeros = (
            Frame.of(tokenization),
            ([0] * len(tokenization.prefix), [0] * len(tokenization.suffix)),
        )
        marks = chunks.cutting.to_lists(*chunks.cutting.gather(span_marks, cut, *zeros), cut)[0]
        tags = frame.tags(marks, [label for *_, label in true])
        once = np.concatenate([np.array(chunk)[np.array(chunk) != IGNORED] for chunk in tags])
        assert decode(once, encoded.spans, text) == true


class TestOwnership:
    @settings(max_examples=100, deadline=None)
    @given(st.integers(1, 12), st.lists(st.integers(1, 20), min_size=1, max_size=6))
    def test_each_token_belongs_to_the_chunk_where_it_is_farthest_from_an_edge(
        self, stride: int, more: list[int]
    ):
        lengths = [stride + length for length in more]
        begins = [sum(length - stride for length in lengths[:n]) for n in range(len(lengths))]
        mine = owned(lengths, stride)
        owners = [
            [n for n, begin in enumerate(begins) if 0 <= t - begin < lengths[n] and mine[n][t - begin]]
            for t in range(begins[-1] + lengths[-1])
        ]
        assert all(len(found) == 1 for found in owners)
        for t, (owner,) in enumerate(owners):

            def distance(n: int, t: int = t) -> float:
                left = t - begins[n] if n else np.inf
                return min(left, begins[n] + lengths[n] - 1 - t if n < len(lengths) - 1 else np.inf)

            assert distance(owner) == max(
                distance(n) for n, begin in enumerate(begins) if 0 <= t - begin < lengths[n]
            )

    def test_special_tokens_belong_to_nobody(self):
        frame = Frame(prefix=1, suffix=1, stride=2)
        assert [mine.tolist() for mine in frame.owned([[9] * 6, [9] * 5])] == [
            [False, True, True, True, False, False],
            [False, False, True, True, False],
        ]
        assert [chunk.tolist() for chunk in frame.tags([[0, 0, 1, -1, -1, 0], [0, -1, -1, 0, 0]], [0])] == [
            [-100, 0, 1, 2, -100, -100],
            [-100, -100, 2, 0, -100],
        ]


def entities(tags: list[str]) -> set[tuple[str, int, int]]:
    """The entities of a tagged sentence, as conlleval's script reads them: slowly, with two flags a token."""
    found, start = set(), 0
    for n in range(len(tags) + 1):
        before, now = (tags[n - 1] if n else "O"), (tags[n] if n < len(tags) else "O")
        ends = before != "O" and (now == "O" or now[0] == "B" or now[2:] != before[2:])
        begins = now != "O" and (before == "O" or now[0] == "B" or now[2:] != before[2:])
        if ends:
            found.add((before[2:], start, n))
        if begins:
            start = n
    return found


class TestScores:
    names = tag_names(["a", "b", "c"])
    sentences = st.lists(
        st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12), min_size=1, max_size=5
    )

    @settings(max_examples=150, deadline=None)
    @given(sentences)
    def test_equal_those_of_a_slow_conlleval(self, sentences):
        def spans_of(which: int) -> list[list[Span]]:
            found = []
            for sentence in sentences:
                tags = np.array([pair[which] for pair in sentence], int)
                found.append(
                    decode(
                        tags,
                        np.stack([np.arange(len(tags)), np.arange(len(tags)) + 1], axis=1),
                        "x" * len(tags),
                    )
                )
            return found

        truth, found = (
            [entities([self.names[pair[which]] for pair in sentence]) for sentence in sentences]
            for which in (0, 1)
        )
        right = [(n, e) for n, (t, f) in enumerate(zip(truth, found, strict=True)) for e in t & f]
        num_true, num_found = (sum(map(len, each)) for each in (truth, found))
        each = []
        for label in "abc":
            mine = [sum(entity[0] == label for row in rows for entity in row) for rows in (truth, found)]
            if mine[0]:
                each.append(2 * sum(entity[0] == label for _, entity in right) / sum(mine))
        got = spans.scores(spans_of(0), spans_of(1), 3)
        assert got["micro_f1"] == pytest.approx(
            2 * len(right) / (num_true + num_found) if num_true + num_found else 0.0
        )
        assert got["macro_f1"] == pytest.approx(np.mean(each) if each else 0.0)

    def test_errors_are_sorted_by_what_is_wrong(self):
        truth = [[(0, 4, 0), (10, 14, 1), (20, 24, 0), (30, 34, 1)], []]
        assert spans.errors(
            truth, [[(0, 4, 0), (10, 14, 0), (21, 24, 0), (50, 54, 0)], [(0, 1, 1)]]
        ) == spans.SpanErrors(num_right=1, num_wrong_label=1, num_wrong_edges=1, num_invented=2, num_missed=1)

    def test_assessed(self):
        truth = [[(0, 3, 0)], [(1, 2, 0), (4, 9, 1)], [], [(0, 3, 0)]] * 10
        tuned = [row if n % 4 else [] for n, row in enumerate(truth)]
        other: list[list[Span]] = [[(0, 1, 2)] for _ in truth]
        found = spans.assess(
            truth,
            {FINETUNED: tuned, "no_spans": [[] for _ in truth], "dictionary": other},
            [f"g{n // 4}" for n in range(len(truth))],
            ["a", "b", "c"],
            Comparison(EvaluationSettings(), "micro_f1", seed=1, task="token_classification"),
        )
        assert (found.num_spans, found.num_rows_without_spans) == (40, 10)
        assert found.score.estimate == pytest.approx(2 * 30 / 70)
        assert found.scores["macro_f1"][FINETUNED].estimate == pytest.approx((2 * 20 / 50 + 1) / 2)
        assert [found.scores["micro_f1"][name].estimate for name in ("no_spans", "dictionary")] == [0.0, 0.0]
        assert found.unmeasured == ["c"] and found.justification.justified
        assert read_evaluation(found.model_dump_json()) == found


class TestRecipe:
    @pytest.mark.parametrize("micro_batch_size", [8, 2, 1])
    def test_loss_and_gradient_equal_a_plain_mean_over_the_steps_tokens(
        self, tiny: Prepared, tmp_path: Path, micro_batch_size: int
    ):
        def losses_of(logits: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
            return torch.stack(
                [
                    -torch.log_softmax(logits[at], 0)[tag]
                    for at, tag in enumerate(tags.tolist())
                    if tag != IGNORED
                ]
            )

        check_steps(tiny, tmp_path, micro_batch_size, losses_of)

    def test_every_token_of_a_text_is_trained_once(self, tiny: Prepared):
        recipe = tiny.recipe
        chosen = tiny.use_case.settings.training
        feed = recipe.prepare(recipe.load(chosen), chosen, 1).feed
        trained = sum(int((batch["labels"] != IGNORED).sum()) for batch in feed.batches())
        reading = TokenizedTexts.of(recipe.tokenization, recipe.train.texts)
        kept = [[chunk.tolist() for chunk in document] for document in recipe.train.chunks]
        assert max(map(len, reading.chunks)) >= 3 and reading.chunks == kept
        assert trained == sum(map(len, reading.characters))

    def test_predictions_and_loss_equal_a_slow_loop(self, tiny: Prepared, fp32: None):
        recipe = tiny.recipe
        model = recipe.load(tiny.use_case.settings.training).eval()
        frame, truth = Frame.of(recipe.tokenization), recipe._validation_tags
        found = tag(model, recipe.validation.chunks, frame, truth)
        loss, count = 0.0, 0
        for document, tags, mine in zip(recipe.validation.chunks, truth, found.tags, strict=True):
            slow = []
            for chunk, true in zip(document, tags, strict=True):
                with torch.no_grad():
                    logits = model(input_ids=torch.tensor([chunk])).logits[0]
                kept = [at for at, each in enumerate(true) if each != IGNORED]
                slow += logits[kept].argmax(-1).tolist()
                loss += sum(-torch.log_softmax(logits[at], 0)[true[at]].item() for at in kept)
                count += len(kept)
            assert np.array(slow).tolist() == mine.tolist()
        assert found.num_tokens == count and found.loss == pytest.approx(loss, rel=1e-5)
        assert recipe.score(model, QUIET)["loss"] == pytest.approx(loss / count, rel=1e-5)

    def test_weights_that_are_not_finite_have_no_score(self, tiny: Prepared):
        model = tiny.recipe.load(tiny.use_case.settings.training)
        with torch.no_grad():
            model.classifier.weight.fill_(float("nan"))
        assert all(np.isnan(value) for value in tiny.recipe.score(model, QUIET).values())


class TestDictionary:
    texts = ["The MIT License (MIT).", "mit  license, or GPL.", "GPL GPL GPL", "as is: GPL"]
    spans: list[list[Span]] = [[(4, 15, 1), (17, 20, 0)], [(0, 12, 1)], [], [(7, 10, 0)]]

    def test_longest_phrase_counts_and_a_phrase_that_is_mostly_no_span_does_not(self):
        found = Dictionary.of_spans(self.texts, self.spans)
        # GPL is a span once in five places.
        assert sorted(found.phrases.values()) == [0, 1]
        assert found.find(["MIT license MIT", "GPL", "", "mit"]) == [
            [(0, 11, 1), (12, 15, 0)],
            [],
            [],
            [(0, 3, 0)],
        ]

    def test_saved_it_finds_the_same(self, tmp_path: Path):
        found = Dictionary.of_spans(self.texts, self.spans)
        found.save(tmp_path)
        assert Dictionary.load(tmp_path, None).find(self.texts) == found.find(self.texts) != [[]] * 4
        assert "mit" not in (tmp_path / "dictionary.json").read_text()


def test_baselines_find_the_same_again(tiny: Prepared, tmp_path: Path) -> None:
    recipe = tiny.recipe
    names = tiny.use_case.settings.baselines
    scored = dict(recipe.score_baselines(names, tmp_path, tiny.baseline_context))
    assert tuple(scored) == names == ("no_spans", "dictionary", "token_probe")
    assert scored["no_spans"] == {"micro_f1": 0.0, "macro_f1": 0.0}
    assert scored["dictionary"]["micro_f1"] > 0
    for name, baseline in load_all(names, tmp_path, tiny.baseline_context).items():
        assert (
            spans.scores(recipe._truth, baseline.predict(recipe.validation), len(recipe.labels))
            == scored[name]
        ), name
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".npz"}


@pytest.mark.parametrize("present", [[0], [0, 2], [0, 1, 2]])
def test_a_probe_never_gives_a_tag_that_it_has_not_seen(present: list[int]) -> None:
    rng = np.random.default_rng(1)
    states, tags = rng.normal(size=(200, 8)), rng.choice(present, 200)
    head = fit_on_states(states, tags, 5, (states, tags), intercept=True)
    assert set(head.probabilities(rng.normal(size=(1_000, 8)) * 9).argmax(1).tolist()) <= set(present)


def test_labels_of_another_order_are_brought_into_ours() -> None:
    assert in_order([[(0, 1, 0), (2, 3, 1)]], ["gone", "b"], ["a", "b"]) == [[(2, 3, 1)]]
    with pytest.raises(StoreError, match="none of .* `a`, `b`, only `x`"):
        in_order([[]], ["x"], ["a", "b"])


def test_a_snapshot_without_any_span_has_nothing_to_learn(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {**PLAIN, "id": str(n), "text": f"{n} {n * 7} {PLAIN['text']} {n * 13}"} for n in range(60)
    ]
    prepared = prepare(tmp_path, tiny=True, delivered=rows, examples={**licence_labels.SPANS, "group": None})
    with pytest.raises(DataError, match="no label at all; .* examples.label "):
        open_recipe(prepared.job("finetuned_checkpoint"), prepared.store, prepared.snapshot)
