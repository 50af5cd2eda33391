"""The demo as a plain script: the stages of `fullft run licences` in one process, on the usual libraries
alone (its data: `plain_data`).

Only the settings are read with this package, so that both sides do the same work. What the platform is
for is missing: no Dagster, no artifacts, no checkpoints on the way, no plan, no gates. Prints one JSON
object: seconds by stage, and the scores.

    python -m benchmarks.plain_demo --output FOLDER [--defs YAML] [--rows N]
"""

# pandas annotates the result of an indexing as a frame or a column, scipy and scikit-learn theirs too
# narrowly:
# pyright: reportArgumentType=false, reportCallIssue=false, reportAssignmentType=false

from __future__ import annotations

import argparse
import base64
import html
import io
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
from scipy.stats import chi2_contingency, ks_2samp
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import classification_report, confusion_matrix, f1_score, log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, get_scheduler
from transformers.utils import logging

from benchmarks.plain_data import WORD, clean, label_names, read, split
from fullft_assets.base_model import resolve_base_model
from fullft_assets.checking.project import DEFS
from fullft_assets.checking.validation import load_use_case
from fullft_assets.settings import UseCaseSettings

matplotlib.use("Agg")
import matplotlib.pyplot as plt

logging.set_verbosity_error()
RESAMPLES, NUM_BINS = 1_000, 10
logging.disable_progress_bar()

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
#: bf16 where the hardware has units for it, as the platform chooses.
USE_BF16 = (
    torch.cuda.is_bf16_supported()
    if torch.cuda.is_available()
    else any(torch.cpu.get_capabilities().get(name, False) for name in ("amx_bf16", "avx512_bf16"))
)
#: Padded tokens a forward pass without gradients.
BATCH_TOKENS = 32_768 if torch.cuda.is_available() else 2_048
#: Of the drift tests: held-out rows, permutations, and the share of unchanged windows that may alarm.
REFERENCE_ROWS, PERMUTATIONS, FALSE_ALARM_RATE = 1_000, 1_000, 0.05


class Clock:
    """Seconds by stage, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started
        print(f"{name}: {self.seconds[name]:.1f} s", flush=True)


def autocast():
    return torch.autocast(DEVICE.type, torch.bfloat16) if USE_BF16 else nullcontext()


# --------------------------------------------------------------------- forward


def padded(ids: list[list[int]], pad_id: int) -> dict[str, torch.Tensor]:
    batch = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row) for row in ids], batch_first=True, padding_value=pad_id
    )
    lengths = torch.tensor([len(row) for row in ids])
    return {
        "input_ids": batch.to(DEVICE),
        "attention_mask": (torch.arange(batch.shape[1]) < lengths[:, None]).long().to(DEVICE),
    }


@torch.inference_mode()
def forward(model, ids: list[list[int]]) -> tuple[np.ndarray | None, np.ndarray]:
    """Return label probabilities [rows, labels] (None for a model without a head) and mean-pooled embeddings
    [rows, hidden].
    """
    model.eval()
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    logits, embeddings, done = [], [], 0
    while done < len(order):
        batch = order[done : done + max(1, BATCH_TOKENS // len(ids[order[done]]))]
        inputs = padded([ids[i] for i in batch], model.config.pad_token_id)
        with autocast():
            output = model(**inputs, output_hidden_states=True)
        mask = inputs["attention_mask"].unsqueeze(-1)
        embeddings.append(((output.hidden_states[-1].float() * mask).sum(1) / mask.sum(1)).cpu().numpy())
        if "logits" in output:
            logits.append(output.logits.double().softmax(-1).cpu().numpy())
        done += len(batch)
    back = np.argsort(order)
    return np.concatenate(logits)[back] if logits else None, np.concatenate(embeddings)[back]


# -------------------------------------------------------------------- training


def length_grouped(lengths: np.ndarray, epochs: int, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Return batches of similar length in random order, each row once an epoch."""
    batches = []
    for _ in range(epochs):
        rows, epoch = rng.permutation(len(lengths)), []
        for start in range(0, len(rows), 50 * size):
            pool = rows[start : start + 50 * size]
            pool = pool[np.argsort(-lengths[pool])]
            epoch += [pool[i : i + size] for i in range(0, len(pool), size)]
        batches += [epoch[i] for i in rng.permutation(len(epoch))]
    return batches


def train(
    base: Path,
    rows: pd.DataFrame,
    validation: pd.DataFrame,
    settings: UseCaseSettings,
    *,
    scores: int | None = None,
):
    """Train every weight; return the model and the log of (step, loss) and validation scores.

    `scores`: how often they are scored, evenly; each half epoch by default.
    """
    chosen, num_labels = settings.training, len(label_names(settings))
    torch.manual_seed(settings.seed)
    options = {
        "num_labels": num_labels,
        "attention_probs_dropout_prob": 0.0,
        "dtype": torch.float32,
    }
    model = AutoModelForSequenceClassification.from_pretrained(base, **options).to(DEVICE)
    plain = [p for n, p in model.named_parameters() if n.endswith("bias") or "LayerNorm" in n]
    decayed = [p for n, p in model.named_parameters() if not (n.endswith("bias") or "LayerNorm" in n)]
    groups = [
        {"params": decayed, "weight_decay": chosen.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=chosen.learning_rate or 1e-4, fused=True)
    ids, labels = rows["ids"].tolist(), rows["label"].to_numpy()
    rng = np.random.default_rng(settings.seed)
    batches = length_grouped(
        np.array([len(row) for row in ids]), round(chosen.num_epochs), chosen.batch_size, rng
    )
    schedule = get_scheduler(
        chosen.scheduler, optimizer, round(chosen.warmup_share * len(batches)), len(batches)
    )
    scores = scores or 2 * round(chosen.num_epochs)
    score_at = {round(len(batches) * i / scores) for i in range(1, 1 + scores)}
    log: list[dict[str, float]] = []
    model.train()
    for step, batch in enumerate(batches, start=1):
        with autocast():
            loss = model(
                **padded([ids[i] for i in batch], model.config.pad_token_id),
                labels=torch.tensor(labels[batch]).to(DEVICE),
            ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), chosen.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        log.append({"step": step, "loss": loss.item()})
        if step in score_at:
            probabilities, _ = forward(model, validation["ids"].tolist())
            log.append({"step": step, **scores_of(validation["label"].to_numpy(), probabilities)})
            print(f"step {step}/{len(batches)}: {log[-1]}", flush=True)
            model.train()
    return model, log


def scores_of(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    predicted = probabilities.argmax(1)
    return {
        "validation_loss": float(log_loss(labels, probabilities, labels=range(probabilities.shape[1]))),
        "accuracy": float((predicted == labels).mean()),
        "macro_f1": float(f1_score(labels, predicted, average="macro")),
    }


# -------------------------------------------------------------------- planning


class Baselines:
    """Majority label, TF-IDF and a probe on the frozen model, fitted on the training rows."""

    def __init__(self, base: Path, rows: pd.DataFrame, num_labels: int):
        labels = rows["label"].to_numpy()
        self.shares = np.bincount(labels, minlength=num_labels) / len(labels)
        vectorizer = TfidfVectorizer(
            ngram_range=(1, 2), sublinear_tf=True, min_df=2, max_features=50_000, token_pattern=r"(?u)\b\w+\b"
        )
        self.tfidf = make_pipeline(vectorizer, LogisticRegression(C=10.0, max_iter=1_000)).fit(
            rows["text"], labels
        )
        self.frozen = AutoModel.from_pretrained(base, dtype=torch.float32).to(DEVICE)
        embeddings = forward(self.frozen, rows["ids"].tolist())[1]
        self.probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1_000)).fit(
            embeddings, labels
        )

    def predict(self, rows: pd.DataFrame) -> dict[str, np.ndarray]:
        return {
            "majority": np.tile(self.shares, (len(rows), 1)),
            "tfidf": self.tfidf.predict_proba(rows["text"]),
            "frozen_probe": self.probe.predict_proba(forward(self.frozen, rows["ids"].tolist())[1]),
        }


def pilot_rows(num_rows: int, settings: UseCaseSettings) -> int:
    """Return the rows of the pilot's training."""
    return max(2 * settings.training.batch_size, int(num_rows * settings.planning.pilot_share))


# ------------------------------------------------------------------ evaluation


def intervals(
    labels: np.ndarray, predictions: dict[str, np.ndarray], groups: pd.Series, settings: UseCaseSettings
) -> dict[str, Any]:
    """Return each system's scores with percentile intervals from resampling groups, and the gains of the
    fine-tuned model.
    """
    num_labels = len(label_names(settings))
    index, names = pd.factorize(groups)
    rng = np.random.default_rng(settings.seed)
    weights = np.stack(
        [np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names)) for _ in range(RESAMPLES)]
    )
    weights = np.concatenate([np.ones((1, len(names))), weights])

    def resampled(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
        counts = np.bincount(rows * num_labels + values, minlength=len(names) * num_labels)
        return weights @ counts.reshape(len(names), num_labels)

    support, drawn = resampled(index, labels), {}
    for name, predicted in predictions.items():
        right = predicted == labels
        hits = resampled(index[right], labels[right])
        drawn[name, "macro_f1"] = (2 * hits / np.maximum(support + resampled(index, predicted), 1)).sum(1) / (
            support > 0
        ).sum(1)
        drawn[name, "accuracy"] = hits.sum(1) / support.sum(1)
    ends = [(1 - settings.evaluation.confidence) / 2, (1 + settings.evaluation.confidence) / 2]
    found = {
        f"{name} {metric}": [values[0], *np.quantile(values[1:], ends)]
        for (name, metric), values in drawn.items()
    }
    for name in predictions:
        gain = drawn["finetuned", "macro_f1"] - drawn[name, "macro_f1"]
        found[f"gain over {name}"] = [gain[0], *np.quantile(gain[1:], ends)]
    return {name: [float(number) for number in numbers] for name, numbers in found.items()}


def write_report(
    folder: Path,
    test: pd.DataFrame,
    probabilities: np.ndarray,
    found: dict[str, Any],
    log: list[dict],
    pilot: list[dict],
    settings: UseCaseSettings,
) -> None:
    """Write report.html with five pictures, a per-class table and five answers."""
    labels, names = test["label"].to_numpy(), label_names(settings)
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    pictures = {
        "scores": plt.subplots(figsize=(6.4, 2.6)),
        "confusion": plt.subplots(figsize=(4.8, 3.9)),
        "reliability": plt.subplots(figsize=(4.9, 4)),
        "loss": plt.subplots(figsize=(4.9, 4)),
        "learning curve": plt.subplots(figsize=(4.9, 4)),
    }
    systems = [name for name in found if name.endswith("macro_f1")]
    middle = np.array([found[name] for name in systems])
    axes = {name: axis for name, (_, axis) in pictures.items()}
    axes["scores"].errorbar(
        middle[:, 0], range(len(systems)), xerr=np.abs(middle[:, 1:] - middle[:, :1]).T, fmt="o"
    )
    axes["scores"].set_yticks(range(len(systems)), systems)
    matrix = confusion_matrix(labels, predicted, normalize="true")
    axes["confusion"].imshow(matrix, cmap="Blues")
    for row, column in np.ndindex(*matrix.shape):
        axes["confusion"].text(column, row, f"{matrix[row, column]:.2f}", ha="center", va="center")
    axes["confusion"].set_xticks(range(len(names)), names)
    axes["confusion"].set_yticks(range(len(names)), names)
    bins = np.clip(
        (confidence * NUM_BINS).astype(int),
        0,
        NUM_BINS - 1,
    )
    curve = [
        (confidence[bins == b].mean(), (predicted == labels)[bins == b].mean(), (bins == b).mean())
        for b in np.unique(bins)
    ]
    error = sum(share * abs(x - y) for x, y, share in curve)
    axes["reliability"].plot([0, 1], [0, 1], "--")
    axes["reliability"].plot([x for x, _, _ in curve], [y for _, y, _ in curve], "o-")
    axes["loss"].plot(
        [line["step"] for line in log if "loss" in line], [line["loss"] for line in log if "loss" in line]
    )
    scored = [line for line in log if "validation_loss" in line]
    axes["loss"].plot([line["step"] for line in scored], [line["validation_loss"] for line in scored], "o-")
    axes["learning curve"].plot([line["rows"] for line in pilot], [line["macro_f1"] for line in pilot], "o-")
    images = []
    for figure, _ in pictures.values():
        figure.tight_layout()
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=110)
        plt.close(figure)
        images.append(f'<img src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">')
    answers = test.assign(predicted=[names[i] for i in predicted], label=[names[i] for i in labels]).sample(
        5, random_state=0
    )
    tables = [
        pd.DataFrame(found, index=["estimate", "low", "high"]).T.to_html(),
        answers[["text", "label", "predicted"]].to_html(),
        (
            "<pre>"
            + html.escape(classification_report(labels, predicted, target_names=names, zero_division=0))
            + "</pre>"
        ),
    ]
    (folder / "report.html").write_text(
        f"<h1>Report</h1><p>Calibration error {error:.4f}</p>{''.join(images + tables)}", encoding="utf-8"
    )
    test.assign(predicted=predicted, probability=confidence).drop(columns="ids").to_parquet(
        folder / "predictions.parquet"
    )


# ------------------------------------------------------------------ monitoring


def features(
    texts: list[str],
    lengths: list[int],
    vocabulary: set[str],
    probabilities: np.ndarray,
    embeddings: np.ndarray,
) -> dict[str, np.ndarray]:
    words = [WORD.findall(text.casefold()) for text in texts]
    counts = np.array([max(1, len(row)) for row in words])
    return {
        "length": np.array(lengths),
        "fertility": np.array(lengths) / counts,
        "unknown": np.array([sum(word not in vocabulary for word in row) for row in words]) / counts,
        "entropy": -(probabilities * np.log(np.maximum(probabilities, 1e-12))).sum(1),
        "predicted": probabilities.argmax(1),
        "embeddings": embeddings.astype(np.float64),
    }


def drift(
    old: dict[str, np.ndarray], new: dict[str, np.ndarray], permutations: int, seed: int
) -> dict[str, float]:
    """Return the p-values of six tests."""
    p_values = {
        name: float(ks_2samp(old[name], new[name], method="asymp")[1])
        for name in ("length", "fertility", "unknown", "entropy")
    }
    size = 1 + max(old["predicted"].max(), new["predicted"].max())
    table = np.stack([np.bincount(side["predicted"], minlength=size) for side in (old, new)])
    p_values["predicted"] = float(chi2_contingency(table[:, table.sum(0) > 0])[1])
    rows = np.concatenate([old["embeddings"], new["embeddings"]])
    weights = np.concatenate(
        [
            np.full(len(old["length"]), 1 / len(old["length"])),
            np.full(len(new["length"]), -1 / len(new["length"])),
        ]
    )
    weights = np.concatenate(
        [weights[None], np.random.default_rng(seed).permuted(np.tile(weights, (permutations, 1)), axis=1)]
    )
    squares = (rows**2).sum(1)
    distances = squares[:, None] + squares - 2 * rows @ rows.T
    discrepancy = ((weights @ np.exp(-distances / np.median(distances))) * weights).sum(1)
    centred = rows - rows.mean(0)
    values, vectors = np.linalg.eigh(centred.T @ centred / len(rows))
    kept = values[-64:] > values[-1] * 1e-9
    shift = ((weights @ (centred @ (vectors[:, -64:][:, kept] / np.sqrt(values[-64:][kept])))) ** 2).sum(1)
    ranks = [
        1 - np.searchsorted(np.sort(statistic), statistic) / len(statistic)
        for statistic in (discrepancy, shift)
    ]
    extremes = np.minimum(*ranks)
    p_values["embeddings"] = float((extremes <= extremes[0]).mean())
    return p_values


def watch(
    folder: Path,
    model,
    tokenizer,
    train: pd.DataFrame,
    held_out: pd.DataFrame,
    outputs: list[np.ndarray],
    settings: UseCaseSettings,
) -> dict[str, Any]:
    """Compare each production file with held-out rows, one a group; `outputs` are these rows' probabilities
    and embeddings.
    """
    vocabulary = {word for text in train["text"] for word in WORD.findall(text.casefold())}
    chosen = np.flatnonzero(~held_out["group"].duplicated())[:REFERENCE_ROWS]
    texts, lengths = (held_out[name].iloc[chosen].tolist() for name in ("text", "length"))
    reference = features(texts, lengths, vocabulary, *(values[chosen] for values in outputs))
    verdicts = {}
    for path in sorted(folder.glob("*.jsonl")):
        rows = pd.read_json(path, lines=True, dtype=False)
        if settings.examples.group in rows:
            rows = rows.drop_duplicates(settings.examples.group)
        ids = tokenizer(rows["text"].tolist(), add_special_tokens=False)["input_ids"]
        cut = tokenizer(rows["text"].tolist(), truncation=True, max_length=settings.chunks.max_tokens)[
            "input_ids"
        ]
        window = features(rows["text"].tolist(), [len(row) for row in ids], vocabulary, *forward(model, cut))
        p_values = drift(reference, window, PERMUTATIONS, settings.seed)
        drifted = min(p_values.values()) <= FALSE_ALARM_RATE / len(p_values)
        verdicts[path.stem] = {"drifted": bool(drifted), "p_values": p_values}
    return verdicts


# ------------------------------------------------------------------------ main


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for model, report and result.json")
    parser.add_argument(
        "--defs", type=Path, default=DEFS / "licences" / "defs.yaml", help="the use case's YAML"
    )
    parser.add_argument("--rows", type=int, help="fewer training rows than the YAML says, for a quick look")
    arguments = parser.parse_args()
    use_case = load_use_case(arguments.defs)
    settings = use_case.settings
    if arguments.rows:
        settings = settings.model_copy(
            update={"snapshot": settings.snapshot.model_copy(update={"max_train_rows": arguments.rows})}
        )
    assert settings.chunks.max_chunks == 1, "this script cuts a text after one window"
    base = resolve_base_model(settings.base_model, use_case.project_root)
    arguments.output.mkdir(parents=True, exist_ok=True)
    production = settings.monitoring.path
    assert production is not None, "this script also compares production's documents"
    result = run(
        settings,
        base,
        use_case.resolve(settings.documents.path),
        use_case.resolve(production),
        arguments.output,
    )
    (arguments.output / "result.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(json.dumps(result), flush=True)


def run(
    settings: UseCaseSettings, base: Path, documents: Path, production: Path, output: Path
) -> dict[str, Any]:
    clock = Clock()
    with clock.stage("ingest"):
        rows = clean(read(documents, settings), label_names(settings))
        tokenizer = AutoTokenizer.from_pretrained(base)
        whole = tokenizer(rows["text"].tolist(), add_special_tokens=False)["input_ids"]
        room = settings.chunks.max_tokens - 2
        ids = [[tokenizer.cls_token_id, *row[:room], tokenizer.sep_token_id] for row in whole]
        label = rows["label"].map(label_names(settings).index)
        rows = rows.assign(ids=ids, length=[len(row) for row in whole], label=label)
    with clock.stage("snapshot"):
        parts = split(rows, settings.snapshot, settings.seed)
        training, validation, test = parts["train"], parts["validation"], parts["test"]
        print({name: (len(part), dict(Counter(part["label"]))) for name, part in parts.items()}, flush=True)
    with clock.stage("planning"):
        baselines = Baselines(base, training, len(label_names(settings)))
        cheaper = {
            name: scores_of(validation["label"].to_numpy(), found)
            for name, found in baselines.predict(validation).items()
        }
        num_rows = pilot_rows(len(training), settings)
        _, small = train(base, training.head(num_rows), validation, settings, scores=1)
        pilot = [{**small[-1], "rows": num_rows}]
    with clock.stage("training"):
        model, log = train(base, training, validation, settings)
        model.save_pretrained(output / "model")
        tokenizer.save_pretrained(output / "model")
    with clock.stage("evaluation"):
        read_by_model = forward(model, test["ids"].tolist())
        probabilities = {"finetuned": read_by_model[0], **baselines.predict(test)}
        labels = test["label"].to_numpy()
        found = intervals(
            labels, {name: p.argmax(1) for name, p in probabilities.items()}, test["group"], settings
        )
        write_report(output, test, probabilities["finetuned"], found, log, pilot, settings)
    with clock.stage("monitoring"):
        # The test rows were read for the evaluation, and one process still has them.
        outputs = [
            np.concatenate(pair)
            for pair in zip(forward(model, validation["ids"].tolist()), read_by_model, strict=True)
        ]
        verdicts = watch(
            production, model, tokenizer, training, pd.concat([validation, test]), outputs, settings
        )
    return {
        "seconds": clock.seconds,
        "num_rows": {name: len(part) for name, part in parts.items()},
        "accuracy": found["finetuned accuracy"][0],
        "macro_f1": found["finetuned macro_f1"][0],
        "baselines": {name: scores["macro_f1"] for name, scores in cheaper.items()},
        "pilot": pilot,
        "drift": verdicts,
    }


if __name__ == "__main__":
    main()
