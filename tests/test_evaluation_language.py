"""The evaluation of language models against slow references: ratios of sums over whole groups, other
tokenizers, who got worse.
"""

import math

import numpy as np
import pytest

from fullft_assets import release
from fullft_assets.errors import DataError, SettingsError
from fullft_assets.evaluation import BASE_MODEL, CHAMPION, FINETUNED, Comparison, read_evaluation
from fullft_assets.settings import EvaluationSettings, ReleaseSettings
from fullft_assets.tasks.language import assessment as language
from fullft_assets.tasks.language.assessment import DocumentScores, LanguageEvaluation

pytestmark = pytest.mark.quick


def drawn(n: int = 60, *, champion: float | None = None) -> tuple[dict[str, DocumentScores], list[str]]:
    """Documents of very different lengths, whose groups are easy or hard together; the base model loses 0.3
    nats a token more.
    """
    rng = np.random.default_rng(1)
    tokens = rng.integers(5, 400, n)
    index = rng.integers(0, n // 4, n)
    hard = rng.normal(2.0, 0.5, n // 4)[index]

    def scores(shift: float) -> DocumentScores:
        mean = np.maximum(0.05, hard + shift + rng.normal(0, 0.1, n))
        return DocumentScores(tokens, mean * tokens, rng.binomial(tokens, np.exp(-mean)))

    systems = {FINETUNED: scores(0.0), BASE_MODEL: scores(0.3)}
    if champion is not None:
        systems[CHAMPION] = scores(champion)
    return systems, [f"g{number}" for number in index]


def assessed(systems: dict[str, DocumentScores], groups: list[str], **changed) -> LanguageEvaluation:
    options = {
        "settings": EvaluationSettings(),
        "metric": "token_probability",
        "seed": 3,
        "task": "language_modeling",
        **changed,
    }
    return language.assess(systems, groups, Comparison(**options))


def test_tokens_count_not_documents() -> None:
    # One long document at 1 nat a token, nine short ones at 3: the mean of means would be 2.8, that of all
    # tokens 1.18. The long one counts as the 100 tokens that nine in ten stay within.
    tokens = np.array([910] + [10] * 9)
    scores = DocumentScores(tokens, np.where(tokens > 100, 1.0, 3.0) * tokens, np.zeros(10, int))
    found = assessed({FINETUNED: scores, BASE_MODEL: scores}, [f"g{n}" for n in range(10)])
    assert found.score.estimate == pytest.approx(math.exp(-370 / 190))
    assert found.perplexity[FINETUNED].estimate == pytest.approx(math.exp(370 / 190))


def test_the_sentence_names_both_metrics_and_scores_survive_json() -> None:
    found = assessed(*drawn(200, champion=0.2))
    assert found.justification.justified and found.gain_over_champion.low > 0
    assert ": token probability is 0." in found.justification.sentence
    assert found.justification.sentence.endswith(
        f" Perplexity is {found.perplexity[FINETUNED].estimate:.2f} against"
        f" {found.perplexity[BASE_MODEL].estimate:.2f}."
    )
    assert read_evaluation(found.model_dump_json()) == found
    assert release.verdict(found, ReleaseSettings()).promote
    asked = release.verdict(found, ReleaseSettings(gates={"is_calibrated": {"max_error": 0.1}}))
    assert [reason.gate for reason in asked.reasons if not reason.passed] == ["is_calibrated"]


def test_who_got_better_and_who_worse() -> None:
    tokens = np.array([10, 10, 10, 100, 20])
    base = DocumentScores(tokens, tokens * 2.0, tokens)
    found = language.changes(
        DocumentScores(tokens, tokens * np.array([1.0, 2.0, 2.5, 4.0, 1.9]), tokens), base
    )
    assert (found.num_better, found.num_equal, found.num_worse, found.share_better) == (2, 1, 2, 0.4)


def test_another_tokenizer_that_is_as_sure_of_the_text_scores_the_same() -> None:
    # The same text in half as many tokens, each twice as expensive: equal nats on equal text.
    ours = DocumentScores(np.array([99, 199]), np.array([198.0, 398.0]), np.array([1, 1]))
    theirs = DocumentScores(np.array([49, 99]), np.array([196.0, 396.0]), np.array([9, 9]))
    found = language.in_tokens_of(theirs, np.array([50, 100]), ours, np.array([100, 200]))
    assert found.num_tokens.tolist() == [99, 199] and found.num_right is None
    assert found.loss == pytest.approx(ours.loss)


def test_a_cut_text_is_not_cheaper_for_the_tokenizer_that_reads_less_of_it() -> None:
    # Theirs reads half of the text before its window ends; what it read costs as much as ours.
    ours, theirs = (DocumentScores(np.array([100]), np.array([200.0]), np.array([1])) for _ in range(2))
    found = language.in_tokens_of(theirs, np.array([200]), ours, np.array([100]))
    assert found.loss == pytest.approx([400.0])


def test_token_accuracy_is_not_compared_over_other_tokens() -> None:
    systems, groups = drawn(champion=0.1)
    systems[CHAMPION] = DocumentScores(systems[CHAMPION].num_tokens, systems[CHAMPION].loss, None)
    found = assessed(systems, groups)
    assert found.rescaled == [CHAMPION]
    assert (
        set(found.columns["token_accuracy"]) == {FINETUNED, BASE_MODEL}
        and CHAMPION in found.scores["token_probability"]
    )
    with pytest.raises(SettingsError, match="token_accuracy .* of the champion"):
        assessed(systems, groups, metric="token_accuracy")


def test_a_candidate_with_another_tokenizer_has_all_scores_but_token_accuracy() -> None:
    systems, groups = drawn()
    systems[FINETUNED] = DocumentScores(systems[FINETUNED].num_tokens, systems[FINETUNED].loss, None)
    found = assessed(systems, groups)
    assert found.columns["token_accuracy"] == {} and found.score == assessed(*drawn()).score


def test_documents_without_a_token_are_left_out_and_counted() -> None:
    systems, groups = drawn()
    whole = assessed(systems, groups)
    more = {
        name: DocumentScores(np.append(s.num_tokens, 0), np.append(s.loss, 0.0), np.append(s.num_right, 0))
        for name, s in systems.items()
    }
    found = assessed(more, [*groups, groups[0]])
    assert found.num_rows_without_tokens == 1 and found.num_test_rows == len(groups)
    assert found.score == whole.score
    nothing = DocumentScores(np.zeros(2, int), np.zeros(2), np.zeros(2, int))
    with pytest.raises(DataError, match="no test row has"):
        assessed({FINETUNED: nothing, BASE_MODEL: nothing}, ["a", "b"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": np.array([1.0, np.nan, 1.0])}, "finetuned: the loss of row 1 is not finite"),
        ({"num_tokens": np.array([3, 3, 4])}, "base_model: other numbers of tokens than finetuned's"),
    ],
)
def test_bad_scores_are_named(change: dict, message: str) -> None:
    good = {"num_tokens": np.array([3, 3, 3]), "loss": np.ones(3), "num_right": np.ones(3, int)}
    with pytest.raises(ValueError, match=message):
        assessed(
            {FINETUNED: DocumentScores(**good | change), BASE_MODEL: DocumentScores(**good)}, ["a", "b", "c"]
        )
