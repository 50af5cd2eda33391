"""A drift verdict as Markdown, and why a window alarmed: the words whose share changed most.

The explanation is a file of the drift report and no part of its metadata: words may be names, so they stay
in the store, where an erasure finds them.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fullft_assets.markdown import escape
from fullft_assets.monitoring.features import words_of
from fullft_assets.monitoring.verdict import ALARMED, DriftVerdict

#: Dagster shows Markdown inline only below 1,000 characters.
MAX_TABLE_CHARACTERS = 999


def render_table(verdict: DriftVerdict) -> str:
    """Return the tests as a Markdown table short enough to be shown inline by Dagster (below 1,000
    characters).
    """
    if not verdict.comparisons:
        return verdict.summary
    lines = ["| test | windows | p-value | effect |", "|---|---|---|---|"]
    for comparison in verdict.comparisons:
        emphasis = "**" if comparison.drifted else ""
        lines.append(
            f"| {comparison.test} | {comparison.num_windows} | {emphasis}{comparison.p_value:.2g}{emphasis}"
            f" | {comparison.effect:.3f} |"
        )
    return "\n".join(lines)[:MAX_TABLE_CHARACTERS]


def render_report(
    verdict: DriftVerdict, title: str, windows: Sequence[tuple[str, Mapping[str, float]]]
) -> str:
    """Return the verdict with all its tests, and the numbers of the windows that were read, as Markdown.

    Args:
        windows: name and numbers of each window, oldest first, this one last.
    """
    lines = [f"# {title}", "", f"Status: **{verdict.status}**.", ""]
    lines += [f"- {change}" for change in (verdict.moved or [verdict.summary])] + [""]
    lines += [f"Note: {note}.\n" for note in verdict.notes if note not in verdict.summary]
    if verdict.comparisons:
        lines += [
            f"{verdict.num_rows:,} independent documents against {verdict.num_reference_rows:,} of "
            f"{verdict.num_reference_windows} reference windows.",
            "",
            render_table(verdict),
            "",
        ]
    if verdict.status in ALARMED:
        lines += ["`explanation.md` has the words whose share changed most.", ""]
    names = list(dict.fromkeys(name for _, numbers in windows for name in numbers))
    if names:
        lines += ["| window | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
        for window, numbers in windows:
            cells = (f"{numbers[name]:.4g}" if name in numbers else "" for name in names)
            lines.append(f"| {window} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


#: File of a drift report.
EXPLANATION = "explanation.md"
NUM_WORDS = 15
#: A word in fewer documents may be about one person.
_LEAST_DOCUMENTS = 5


def shifted_words(before: Iterable[str], now: Iterable[str]) -> list[tuple[str, float, float]]:
    """Return the words whose share of documents changed most, by the z-score of two proportions: each with
    the share of documents that have it in the reference windows and in this one.
    """
    counts: list[Counter[str]] = []
    sizes: list[int] = []
    for texts in (before, now):
        counter = Counter[str]()
        num_texts = 0
        for text in texts:
            num_texts += 1
            counter.update({word for word in words_of(text) if not word.isdigit()})
        counts.append(counter)
        sizes.append(max(num_texts, 1))
    names = [word for word, count in sorted((counts[0] + counts[1]).items()) if count >= _LEAST_DOCUMENTS]
    old, new = (
        np.array([count[word] for word in names]) / size for count, size in zip(counts, sizes, strict=True)
    )
    pooled = (old * sizes[0] + new * sizes[1]) / sum(sizes)
    scores = np.abs(new - old) / np.sqrt(
        np.maximum(pooled * (1 - pooled), 1e-12) * (1 / sizes[0] + 1 / sizes[1])
    )
    return [
        (names[number], float(old[number]), float(new[number]))
        for number in np.argsort(-scores, kind="stable")[:NUM_WORDS]
    ]


def render_explanation(title: str, changes: Sequence[str], words: Sequence[tuple[str, float, float]]) -> str:
    """Return the explanation as Markdown, of words as of `shifted_words`."""
    lines = [
        f"# {title}",
        "",
        *(f"- {change}" for change in changes),
        "",
        "| word | documents before | documents now |",
        "|---|---|---|",
        *(f"| {escape(word)} | {before:.1%} | {now:.1%} |" for word, before, now in words),
    ]
    return "\n".join(lines) + "\n"
