"""The evaluation of language models against slow references: ratios of sums over whole groups, other
tokenizers, who got worse.
"""

import math
import re

import numpy as np
import pytest
from scipy.stats import t as student

from fullft_assets import release
from fullft_assets.errors import DataError, SettingsError
from fullft_assets.evaluation import BASE_MODEL, CHAMPION, FINETUNED, Comparison, read_evaluation
from fullft_assets.settings import EvaluationSettings, ReleaseSettings
from fullft_assets.tasks.language import assessment as language
from fullft_assets.tasks.language.assessment import DocumentScores, LanguageEvaluation

pytestmark = pytest.mark.quick


def drawn(
    n: int = 60, *, gain: float = 0.3, champion: float | None = None, seed: int = 1
) -> tuple[dict[str, DocumentScores], list[str]]:
    """Documents of very different lengths, whose groups are easy or hard together; the base model loses
    `gain` nats a token more.
    """
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, 400, n)
    index = rng.integers(0, n // 4, n)
    hard = rng.normal(2.0, 0.5, n // 4)[index]

    def scores(shift: float) -> DocumentScores:
        mean = np.maximum(0.05, hard + shift + rng.normal(0, 0.1, n))
        return DocumentScores(tokens, mean * tokens, rng.binomial(tokens, np.exp(-mean)))

    systems = {FINETUNED: scores(0.0), BASE_MODEL: scores(gain)}
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
    return language.assess(systems, [f"d{n}" for n in range(len(groups))], groups, Comparison(**options))


@pytest.mark.parametrize("metric", ["token_probability", "token_accuracy", "perplexity"])
def test_intervals_equal_a_slow_reference(metric: str) -> None:
    systems, groups = drawn(champion=0.05)
    found = assessed(systems, groups, settings=EvaluationSettings(), seed=11, resamples=150)

    # A group counts as one, and a document at most as many tokens as nine in ten have.
    tokens = systems[FINETUNED].num_tokens
    cap = round(np.quantile(tokens, 0.9))
    weights = np.minimum(tokens, cap) / tokens / np.array([groups.count(group) for group in groups])

    def score(rows: np.ndarray, name: str) -> float:
        counted = sum(weights[row] * systems[name].num_tokens[row] for row in rows)
        if metric == "token_accuracy":
            return sum(weights[row] * systems[name].num_right[row] for row in rows) / counted
        mean = sum(weights[row] * systems[name].loss[row] for row in rows) / counted
        return math.exp(mean if metric == "perplexity" else -mean)

    names = np.unique(groups)
    rows_of = [np.flatnonzero(np.array(groups) == name) for name in names]
    picks = np.random.default_rng(11).integers(0, len(names), (150, len(names)))
    draws = {
        name: np.array([score(np.concatenate([rows_of[g] for g in pick]), name) for pick in picks])
        for name in systems
    }
    everything, k = np.arange(len(groups)), len(names)
    masses = np.array([(weights * tokens)[rows].sum() for rows in rows_of])
    effective = masses.sum() ** 2 / (masses**2).sum()
    assert (found.token_cap, found.effective_groups) == (cap, pytest.approx(effective))
    for name in systems:
        estimate = score(everything, name)
        without = np.array([score(np.setdiff1d(everything, rows), name) for rows in rows_of])
        squares, fourth = (((without - without.mean()) ** power).sum() for power in (2, 4))
        error = math.hypot(
            max(draws[name].std(ddof=1), math.sqrt((k - 1) / k * squares)), draws[name].mean() - estimate
        )
        reach = student.ppf(0.975, min(effective - 1, 2 * squares**2 / (fourth - squares**2 / k))) * error
        if metric == "perplexity":
            ends = [1 + (estimate - 1) * math.exp(side * reach / (estimate - 1)) for side in (-1, 1)]
        else:
            logit = math.log(estimate / (1 - estimate))
            ends = [1 / (1 + math.exp(-logit - side * reach / estimate / (1 - estimate))) for side in (-1, 1)]
        interval = found.columns[metric][name]
        assert (interval.estimate, interval.low, interval.high) == pytest.approx((estimate, *ends))
    for name in (BASE_MODEL, CHAMPION):
        gain, reach = (
            found.gains[metric][name],
            student.ppf(0.975, effective - 1) * (draws[FINETUNED] - draws[name]).std(ddof=1),
        )
        assert gain.estimate == pytest.approx(score(everything, FINETUNED) - score(everything, name))
        assert (gain.low, gain.high) == pytest.approx((gain.estimate - reach, gain.estimate + reach))


def test_tokens_count_not_documents() -> None:
    # One long document at 1 nat a token, nine short ones at 3: the mean of means would be 2.8, that of all
    # tokens 1.18. The long one counts as the 100 tokens that nine in ten stay within.
    tokens = np.array([910] + [10] * 9)
    loss = np.where(tokens > 100, 1.0, 3.0) * tokens
    scores = DocumentScores(tokens, loss, np.zeros(10, int))
    found = assessed({FINETUNED: scores, BASE_MODEL: scores}, [f"g{n}" for n in range(10)])
    assert found.score.estimate == pytest.approx(math.exp(-370 / 190))
    assert found.perplexity[FINETUNED].estimate == pytest.approx(math.exp(370 / 190))


def test_the_sentence_names_both_metrics_and_scores_survive_json() -> None:
    found = assessed(*drawn(200, champion=0.2))
    assert found.justification.justified and found.gain_over_champion.low > 0
    assert found.justification.sentence.startswith("Full fine-tuning was worth it: token probability is 0.")
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
    tuned = DocumentScores(tokens, tokens * np.array([1.0, 2.0, 2.5, 4.0, 1.9]), tokens)
    found = language.changes(tuned, base, list("abcde"), ["g"] * 5)
    assert (found.num_better, found.num_equal, found.num_worse, found.share_better) == (2, 1, 2, 0.4)
    assert [(c.id, c.num_tokens, c.loss, c.base_loss) for c in found.largest_regressions] == [
        ("d", 100, 4.0, 2.0),
        ("c", 10, 2.5, 2.0),
    ]


def test_weakest_groups() -> None:
    tokens = np.array([60, 60, 300, 99, 10, 20])
    tuned = DocumentScores(tokens, tokens * np.array([3.0, 1.0, 2.5, 9.0, 1.0, 1.0]), tokens)
    base = DocumentScores(tokens, tokens * 4.0, tokens)
    groups = ["a", "a", "b", "few", "c", "c"]
    found = language.weakest_groups(tuned, base, groups)
    assert [(g.group, g.num_rows, g.num_tokens) for g in found] == [("b", 1, 300), ("a", 2, 120)]
    assert found[0].perplexity == pytest.approx(math.exp(2.5)) and found[1].perplexity == pytest.approx(
        math.exp(2.0)
    )
    assert found[0].base_perplexity == pytest.approx(math.exp(4))


def test_limits_that_go_into_the_card_name_no_group() -> None:
    systems, groups = drawn()
    found = assessed(systems, groups)
    weakest = found.weakest_groups[0]
    assert (
        f"weakest on one with perplexity {weakest.perplexity:.2f} ({weakest.num_tokens:,} tokens of"
        in found.limits[0]
    )
    assert not {*re.findall(r"\w+", " ".join(found.limits))} & {*groups}


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
    with pytest.raises(
        SettingsError, match="token_accuracy counts tokens, and the tokenizer of the champion cuts others"
    ):
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
    with pytest.raises(DataError, match="no test row has a trained token"):
        assessed({FINETUNED: nothing, BASE_MODEL: nothing}, ["a", "b"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": np.array([1.0, np.nan, 1.0])}, "finetuned: the loss of row 1 is not finite"),
        ({"loss": np.array([1.0, 2.0])}, r"finetuned: loss has shape \(2,\) for 3 rows"),
        ({"num_tokens": np.array([3, 3, 4])}, "base_model: other numbers of tokens than finetuned's"),
    ],
)
def test_bad_scores_are_named(change: dict, message: str) -> None:
    good = {"num_tokens": np.array([3, 3, 3]), "loss": np.ones(3), "num_right": np.ones(3, int)}
    with pytest.raises(ValueError, match=message):
        assessed(
            {FINETUNED: DocumentScores(**good | change), BASE_MODEL: DocumentScores(**good)}, ["a", "b", "c"]
        )


def test_a_hopeless_model_has_scores_too() -> None:
    tokens = np.array([10, 10])
    good, hopeless = (
        DocumentScores(tokens, tokens * 1.0, tokens),
        DocumentScores(tokens, tokens * 1e4, tokens),
    )
    found = assessed({FINETUNED: hopeless, BASE_MODEL: good}, ["a", "b"])
    assert found.score.estimate == 0.0 and math.isfinite(found.perplexity[FINETUNED].high)
    assert not found.justification.justified
