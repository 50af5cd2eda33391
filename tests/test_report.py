"""The report: one self-contained HTML file with pictures, Markdown beside it, texts only in the HTML."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import markupsafe
import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, strategies as st

from fullft_assets import markdown, release, report
from fullft_assets.escaping import quoted
from fullft_assets.evaluation import CHAMPION, FINETUNED, Comparison
from fullft_assets.settings import EvaluationSettings, ReleaseSettings
from fullft_assets.tasks.classification import assessment as evaluation

pytestmark = pytest.mark.quick

VOID = {"meta", "img", "br", "link", "hr"}
LABELS = ["notice", "re|ference", "<b>tag</b>", "text"]


#: What the page has to answer, in this order.
ORDER = [
    "The gates",
    "All systems",
    "Is it worth it?",
    "Promise and outcome",
    "What it forgot",
    "Where it is wrong",
    "What this cannot tell you",
    "What to do next",
    "Lineage",
]


class Checker(HTMLParser):
    """Collects images, checks that tags are balanced, finds what would be loaded from elsewhere."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str]] = []
        self.loaded: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(attributes)
        self.loaded += [
            v for k, v in attributes.items() if k in ("src", "href") and not v.startswith("data:")
        ]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def evaluation_of(
    labels: list[str], *, n: int = 400, champion: bool = False, seed: int = 1
) -> evaluation.ClassificationEvaluation:
    rng = np.random.default_rng(seed)
    k = len(labels)
    truth = rng.integers(0, k, n)

    def probabilities(share: float) -> np.ndarray:
        predicted = np.where(rng.random(n) < share, truth, rng.integers(0, k, n))
        scores = rng.dirichlet(np.ones(k), n)
        scores[np.arange(n), predicted] += 1 + rng.random(n)
        return scores / scores.sum(1, keepdims=True)

    systems = {
        FINETUNED: probabilities(0.85),
        "tfidf": probabilities(0.6),
        "frozen_probe": probabilities(0.5),
    }
    if champion:
        systems[CHAMPION] = probabilities(0.8)
    groups = [f"group {g}" for g in rng.integers(0, n // 4, n)]
    return evaluation.assess(
        truth,
        systems,
        groups,
        labels,
        Comparison(EvaluationSettings(), "macro_f1", seed, "classification"),
    )


def full_report(found: evaluation.ClassificationEvaluation, **changed) -> report.EvaluationReport:
    return report.EvaluationReport(
        **{
            "case": "licences",
            "evaluation": found,
            "verdict": release.verdict(found, ReleaseSettings()),
            "base_model": "models/tiny",
            "answers": [
                report.AnsweredRow(
                    "doc", "Licensed <script>alert(1)</script> under & terms", "notice", "text", "notice"
                )
            ],
            "training_log": (
                [{"step": s, "loss": 1 / s} for s in range(1, 9)] + [{"step": 8, "validation_loss": 0.3}]
            ),
            "learning_curve": [{"rows": 100, "macro_f1": 0.5}, {"rows": 200, "macro_f1": 0.6}],
            "data": [("training rows", "1,000")],
            "lineage": [("checkpoint", "licences/finetuned_checkpoint/abc/1")],
            "cost": [("training time", "3 min 12 s")],
            **changed,
        }
    )


def parse(path: Path) -> Checker:
    checker = Checker()
    checker.feed(path.read_text(encoding="utf-8"))
    checker.close()
    assert checker.open == []
    return checker


@pytest.mark.heavy
def test_html_is_whole_self_contained_and_shows_real_pictures(tmp_path):
    pictures = report.write(tmp_path, full_report(evaluation_of(LABELS, champion=True)))
    assert pictures == ["scores", "learning_curve", "confusion", "reliability", "loss"]
    page = parse(tmp_path / "report.html")
    assert page.loaded == [] and "@import" not in (tmp_path / "report.html").read_text()
    for name, image in zip(pictures, page.images, strict=True):
        assert image["alt"]
        data = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"), validate=True)
        pixels = matplotlib.image.imread(io.BytesIO(data), format="png")
        assert min(pixels.shape[:2]) > 150
        assert pixels[..., :3].std() > 0.02, f"{name} is blank"
    on_disk = {path.stem: path.read_bytes() for path in (tmp_path / "pictures").glob("*.png")}
    assert set(on_disk) == set(pictures)
    assert {base64.b64decode(image["src"].split(",")[1]) for image in page.images} == set(on_disk.values())
    assert plt.get_fignums() == [], "pyplot is left alone"
    # Small enough for Dagster's event log.
    assert all(len(data) < 60_000 for data in on_disk.values())


@pytest.mark.heavy
def test_html_says_what_it_should_and_escapes_the_texts(tmp_path):
    found = evaluation_of(LABELS, champion=True)
    shown = full_report(found)
    report.write(tmp_path, shown)
    text = " ".join(" ".join(parse(tmp_path / "report.html").text).split())
    for expected in (
        shown.verdict.sentence,
        found.justification.sentence,
        f"{found.score.estimate:.3f}",
        "frozen base model + trained head",
        "TF-IDF + logistic regression",
        "licences/finetuned_checkpoint/abc/1",
        "3 min 12 s",
        "<b>tag</b>",
        "Licensed <script>alert(1)</script> under & terms",
        f"{found.gain_over_champion.estimate:+.3f}",
    ):
        assert expected in text, expected
    places = [text.index(part) for part in (shown.verdict.headline, shown.verdict.sentence, *ORDER)]
    assert places == sorted(places)


@pytest.mark.heavy
def test_each_system_is_shown_with_its_time_and_price(tmp_path):
    found = evaluation_of(LABELS)
    costs = {
        FINETUNED: report.SystemCost(5_400, 3.5, 0.0123, 8.5, 0.25),
        "tfidf": report.SystemCost(8.2, 0.005),
    }
    report.write(tmp_path, full_report(found, costs=costs, not_asked=["lora", "zero_shot"]))
    markdown = (tmp_path / "report.md").read_text()
    table = markdown.split("## Is it worth it?")[1].split("##")[0].splitlines()
    rows = {line.split(" | ")[0]: line for line in table if line.startswith("| ")}
    assert rows["| fully fine-tuned model"].endswith("| 1 h 30 min | 3.50 | 12.3 | 8.50 | +0.250 |")
    assert rows["| TF-IDF + logistic regression"].endswith("| 8 s | 0.01 | – | – | – |")
    assert "LoRA (`lora`), base model, zero-shot prompt (`zero_shot`)" in markdown


@pytest.mark.parametrize(
    ("changed", "answer", "action"),
    [
        ({"min_effective_groups": 2}, "promote", "Materialise champion_model"),
        ({"min_score": 1.0}, "keep", "score_is_sufficient says no: deliver more documents"),
        (
            {"min_effective_groups": 1_000},
            "insufficient_data",
            "Deliver documents of so many more groups that about",
        ),
    ],
)
def test_what_to_do_next(changed, answer, action):
    found, settings = evaluation_of(LABELS), ReleaseSettings(**changed)
    decision = release.verdict(found, settings)
    assert decision.answer == answer
    assert report.next_action("letters", decision, found, settings).startswith(action)


@pytest.mark.heavy
@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_overflows_on_a_desk_or_a_telephone(tmp_path, width):
    from tests.ui import BROKEN, SCREENSHOTS, chromium, open_file

    long = (
        "a label whose name is a whole sentence, as it happens where answers are texts, without_any_space_"
        + "x" * 60
    )
    names = [long, *(f"label {n} $_$" for n in range(14)), "<b>tag</b>"]
    found = evaluation_of(names, n=1_500, champion=True)
    gates = release.verdict(found, ReleaseSettings(min_score=0.99))
    refs = [
        ("checkpoint", f"licences/finetuned_checkpoint/{'0123456789abcdef' * 4}/1"),
        ("training settings", "epochs 3, " * 40),
    ]
    costs = {name: report.SystemCost(90.0, 0.1) for name in found.scores["macro_f1"]}
    report.write(
        tmp_path,
        full_report(found, verdict=gates, lineage=refs, costs=costs),
    )
    with chromium() as page:
        assert open_file(page, tmp_path / "report.html", width) == []
        # Beside their numbers, names of gates stay whole.
        assert page.locator("table:has(td.yes, td.no) tr:not([data-document]) td:first-child").count() > 3
        assert (
            width < 800
            or page.evaluate(BROKEN, "table:has(td.yes, td.no) tr:not([data-document]) td:first-child") == []
        )
        assert page.evaluate("document.body.scrollHeight") < 14_000
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SCREENSHOTS / f"report-{width}.png", full_page=True)


@pytest.mark.heavy
def test_markdown_has_the_metrics_the_pictures_and_no_text_of_a_row(tmp_path):
    found = evaluation_of(LABELS)
    pictures = report.write(tmp_path, full_report(found))
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "Licensed" not in markdown
    # Dagster's event log keeps it, and groups may be persons.
    assert not re.search(r"group \d", markdown)
    assert re.findall(r"\((pictures/.*?)\)", markdown) == [f"pictures/{name}.png" for name in pictures]
    assert (
        f"| fully fine-tuned model | {found.score.estimate:.3f} ({found.score.low:.3f} to"
        f" {found.score.high:.3f}) |" in markdown
    )
    # Every table is whole: its rows have as many cells as its head, whatever the labels contain.
    for table in re.findall(r"(?:^\|.*\n)+", markdown, flags=re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


@pytest.mark.heavy
def test_missing_parts_are_not_shown(tmp_path):
    bare = full_report(
        evaluation_of(LABELS), answers=[], training_log=[], learning_curve=[], data=[], lineage=[], cost=[]
    )
    assert report.write(tmp_path, bare) == ["scores", "confusion", "reliability"]
    page = parse(tmp_path / "report.html")
    assert len(page.images) == 3 and "no general text" in " ".join(page.text)
    assert "side by side" not in " ".join(page.text)
    other_metric = full_report(
        evaluation_of(LABELS), learning_curve=[{"rows": 100, "accuracy": 0.5}], training_log=[{"step": 1}]
    )
    assert report.write(tmp_path, other_metric) == ["scores", "confusion", "reliability"]


#: matplotlib reads what is between two `$` as a formula; some of these are none that it can draw.
FORMULAS = ["$_$", "a_$b_$", r"$\frac$", "$", "$$", r"\$_\$", "cost in $ and $"]


@pytest.mark.heavy
def test_a_name_between_dollar_signs_is_drawn_as_it_is(tmp_path):
    found = evaluation_of(FORMULAS)
    for scores in (*found.scores.values(), *found.gains.values()):
        for metric in FORMULAS:
            scores[metric] = scores["tfidf"]
    named = found.model_copy(
        update={"justification": found.justification.model_copy(update={"best_baseline": FORMULAS[0]})}
    )
    general = [{"step": step, "general_loss": 1.0 + step / 10} for step in range(3)]
    log = [*full_report(named).training_log, *general]
    assert report.write(tmp_path / "one", full_report(named, training_log=log)) == [
        "scores",
        "learning_curve",
        "general",
        "confusion",
        "reliability",
        "loss",
    ]


@pytest.mark.heavy
def test_a_label_without_a_test_row_is_unknown_not_zero(tmp_path):
    labels = np.array([0, 1] * 50)
    probabilities = np.eye(3)[labels]
    found = evaluation.assess(
        labels,
        {FINETUNED: probabilities, "tfidf": probabilities},
        [str(i) for i in range(100)],
        ["a", "b", "never"],
        Comparison(EvaluationSettings(), "macro_f1", seed=1, task="classification"),
    )
    report.write(tmp_path, full_report(found))
    assert "| never | unknown | unknown | unknown | 0 |" in (tmp_path / "report.md").read_text()
    page = (tmp_path / "report.html").read_text()
    columns = ("precision", "recall", "F1")
    unknown = "".join(
        f'<td style="text-align:right" data-column="{column}">unknown</td>' for column in columns
    )
    assert f"<tr><td>never</td>{unknown}" in page


@given(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc", "Co"])).map(report.shorten),
    st.text(max_size=20),
)
def test_what_users_wrote_is_shown_as_it_is(text: str, group: str) -> None:
    group = group.replace("\x00", "")
    row = f"| {markdown.about_row('group', group)}{markdown.escape(text)} | end |"
    page = markdown.to_html(f"| a | b |\n|---|---|\n{row}\n\n- {markdown.escape(text)}\n", {})
    # As an erasure looks for it.
    assert f'<tr data-group="{markupsafe.escape(group)}"><td' in page
    assert re.findall(r"<td[^>]*>(.*?)</td>", page) == [str(markupsafe.escape(text)), "end"]
    assert "<" not in markdown.escape(text)


@pytest.mark.parametrize(
    "text",
    ["a \\| b", "![x](y)", "[x]: y", "<img src=x>", "&lt;", "`a`", "*a* _b_ ~~c~~", "a\\", "a_b_c", "x | y"],
)
def test_what_markdown_means_otherwise_is_text(text: str) -> None:
    page = markdown.to_html(f"| a | b |\n|---|---|\n| {markdown.escape(text)} | end |\n", {})
    assert re.findall(r"<td[^>]*>(.*?)</td>", page) == [str(markupsafe.escape(text)), "end"]


@pytest.mark.parametrize(
    "name", ["` ![x](http://example.org/x.png)", "` [y](http://example.org) `", "a\u202eb", "<img src=x>"]
)
def test_a_label_that_cannot_be_measured_is_named_as_it_is(name: str) -> None:
    found = evaluation_of(LABELS, n=40).model_copy(update={"rare_labels": [name], "rare_micro_f1": None})
    page = markdown.to_html(
        report.render("report.md.j2", found, report=full_report(found), is_page=True, pictures=[]), {}
    )
    (item,) = re.findall(r"<li>1 labels have too few test groups to be measured: (.*)</li>", page)
    assert item == f"<code>{markupsafe.escape(quoted(name)[1:-1])}</code>."
    assert "<a " not in page
    assert "<img" not in page
    assert "\u202e" not in page
