"""planning: training_snapshot -> feasibility_plan, cheaper_baselines, pilot_run, in one process.

Run by a launcher or by hand: `python -m fullft_assets.workloads.planning --job URI`.
"""

from __future__ import annotations

import json
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import torch

from fullft_assets import planning
from fullft_assets.base_model import resolve_base_model
from fullft_assets.evaluation import accuracy, macro_f1
from fullft_assets.jobs import Job
from fullft_assets.settings import UseCaseSettings
from fullft_assets.snapshot import Split, label_names, load_split
from fullft_assets.store import Draft, Manifest, Store
from fullft_assets.training import plan_settings
from fullft_assets.workloads import baselines, layers, precision, telemetry
from fullft_assets.workloads.entry import Progress, run_workload
from fullft_assets.workloads.finetuning import accumulation_steps, fine_tune, peak_memory_bytes, planned_order
from fullft_assets.workloads.inference import collate, device, embed, load_for_training

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Micro-batches timed for the plan, spread over the lengths that occur.
_TIMED_PASSES = 6
_METRICS = {"macro_f1": macro_f1, "accuracy": accuracy}


@dataclass
class Planning:
    """The inputs that the three artifacts share; the splits are read once."""

    job: Job
    store: Store
    progress: Progress
    snapshot: Manifest
    base_model: Path
    labels: list[str]
    train: Split
    validation: Split

    @property
    def added_tokens(self) -> list[str]:
        """Tokens that the base model's tokenizer did not have; the snapshot was made with them."""
        return self.job.settings.chunks.added_tokens

    def write(self, stage: str, make: Callable[[Draft], Manifest]) -> Manifest:
        """Return the artifact of a stage, made now unless it exists."""
        found = self.store.find(self.job.case, stage, self.job.key)
        if found is not None:
            return found
        self.progress.raise_if_stopped()
        self.progress.say(f"{stage} ...")
        with self.store.create(self.job.case, stage, self.job.key, version=planning.VERSION, seed=self.job.settings.seed) as draft:
            return make(draft)

    def commit(self, draft: Draft, metadata: dict, checks: list) -> Manifest:
        """Commit a draft with the shared settings and inputs."""
        return draft.commit(
            settings={"planning": self.job.settings.planning.model_dump(), "training": plan_settings(self.job.settings)},
            inputs={"training_snapshot": self.snapshot.content_digest},
            metadata=metadata,
            checks=checks,
        )


def work(job: Job, store: Store, progress: Progress) -> None:
    """Write the three planning artifacts.

    Raises:
        SettingsError: training could not divide its batch or reach a tracker, or the rows are too few for a learning curve.
    """
    settings = job.settings
    # Said now: training would only find out after all that is measured here.
    accumulation_steps(settings.training, settings.launcher.processes)
    telemetry.require(settings.training.track)
    snapshot = job.load_inputs(store)["training_snapshot"]
    base_model = resolve_base_model(settings.base_model, Path(job.project_root))
    train, validation = load_split(store, snapshot, "train"), load_split(store, snapshot, "validation")
    _pilot_rows(train, settings)
    shared = Planning(job, store, progress, snapshot, base_model, label_names(snapshot), train, validation)
    shared.write("feasibility_plan", lambda draft: _write_plan(shared, draft))
    cheaper = shared.write("cheaper_baselines", lambda draft: _write_baselines(shared, draft))
    shared.write("pilot_run", lambda draft: _write_pilot(shared, draft, cheaper))


def _write_plan(shared: Planning, draft: Draft) -> Manifest:
    measured = measure(shared)
    headline, checks = planning.plan_checks(measured, shared.job.settings.planning)
    (draft.path / "plan.json").write_text(json.dumps(headline, indent=1))
    for check in checks:
        shared.progress.say(f"{check.name}: {check.description}")
    return shared.commit(draft, headline, checks)


def measure(shared: Planning) -> planning.Measured:
    """Time real training passes of the lengths that occur and predict the whole run from them.

    Left out is what is not training: loading, scoring the validation rows, writing checkpoints.
    """
    settings = shared.job.settings.training
    lengths = np.array([len(window) for document in shared.train.windows for window in document])
    order = planned_order(lengths.tolist(), settings.epochs, settings.batch_size, shared.job.settings.seed)
    micro = [order[i : i + settings.micro_batch_size] for i in range(0, len(order), settings.micro_batch_size)]
    longest = np.array([lengths[batch].max() for batch in micro])
    model = load_for_training(shared.base_model, shared.labels, settings.attention_dropout, shared.added_tokens).train().to(device())
    layers.freeze(model, settings)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    # Held for its memory alone: a copy of the pretrained weights.
    anchor = layers.Anchor(model, settings.l2_sp) if settings.l2_sp else None
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, fused=True)
    windows = [window for document in shared.train.windows for window in document]
    by_length = np.argsort(-longest, kind="stable")
    # The longest first: it decides the memory, and warms everything up.
    picks = by_length[np.linspace(0, len(micro) - 1, min(_TIMED_PASSES, len(micro))).round().astype(int)]
    chosen = precision.resolve(settings.precision)
    _timed_pass(model, optimizer, [windows[i] for i in micro[picks[0]]], chosen)
    timed = np.array([_timed_pass(model, optimizer, [windows[i] for i in micro[pick]], chosen) for pick in picks])
    del anchor
    num_steps = -(-len(order) // settings.batch_size)
    # Passes between the timed lengths cost what a line between them says.
    passes = float(np.interp(longest, longest[picks][::-1], timed[::-1, 0]).sum())
    # Processes on GPUs of their own share the passes; on a CPU they share its cores.
    sharing = min(shared.job.settings.launcher.processes, max(1, torch.cuda.device_count()))
    predicted = passes / sharing + num_steps * float(np.median(timed[:, 1]))
    return planning.Measured(
        num_parameters=model.num_parameters(),
        num_rows=len(shared.train),
        num_steps=num_steps,
        num_tokens=int(lengths[order].sum()),
        num_padded_tokens=int(sum(length * len(batch) for length, batch in zip(longest, micro, strict=True))),
        predicted_seconds=predicted,
        peak_memory_bytes=peak_memory_bytes(),
        available_memory_bytes=_available_memory_bytes(),
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU {platform.machine()}",
        precision=chosen,
    )


def _timed_pass(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, windows: list[list[int]], chosen: precision.Precision
) -> tuple[float, float]:
    """Return the seconds of one micro-batch's forward and backward pass, and of one optimizer step."""
    inputs = {k: v.to(device()) for k, v in collate(windows, model.config.pad_token_id or 0).items()}
    labels = torch.zeros(len(windows), dtype=torch.long, device=device())
    started = _now()
    with precision.autocast(chosen):
        loss = model(**inputs, labels=labels).loss
    loss.backward()
    passed = _now()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return passed - started, _now() - passed


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _available_memory_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return psutil.virtual_memory().total


def _write_baselines(shared: Planning, draft: Draft) -> Manifest:
    train, validation, num_labels = shared.train, shared.validation, len(shared.labels)
    metric = _METRICS[shared.job.settings.primary_metric]
    scores, seconds = {}, {}
    for name in baselines.KINDS:
        started = time.monotonic()
        if name == "frozen_probe":
            embeddings = embed(shared.base_model, train.windows, added_tokens=shared.added_tokens, progress=shared.progress)
            fitted = baselines.FrozenProbe.fit(shared.base_model, embeddings, train.labels, num_labels, shared.added_tokens)
        else:
            fitted = baselines.KINDS[name].fit(train, num_labels)
        fitted.save(draft.path)
        scores[name] = metric(validation.labels, fitted.predict(validation).argmax(1))
        seconds[name] = time.monotonic() - started
        shared.progress.say(f"{name}: validation {shared.job.settings.primary_metric} {scores[name]:.4f}")
    best = max(scores, key=scores.__getitem__)
    return shared.commit(
        draft, {"labels": shared.labels, "scores": scores, "seconds": seconds, "best": best, "best_score": scores[best]}, []
    )


def _pilot_rows(train: Split, settings: UseCaseSettings) -> list[int]:
    return planning.pilot_rows(len(train), settings.training.epochs, settings.planning.pilot_share, settings.training.batch_size)


def _write_pilot(shared: Planning, draft: Draft, cheaper: Manifest) -> Manifest:
    settings = shared.job.settings
    rows = _pilot_rows(shared.train, settings)
    # The training rows stand in the order of their hash, so the first ones are a random draw.
    subset = shared.train.select(range(rows[-1]))
    windows_a_row = sum(map(len, subset.windows)) / len(subset)
    steps = [max(1, round(count * windows_a_row / settings.training.batch_size)) for count in rows]
    training = settings.training.model_copy(update={"epochs": 1.0, "scheduler": "constant_with_warmup"})
    with tempfile.TemporaryDirectory(prefix="fullft-pilot-") as folder:
        fit = fine_tune(
            shared.base_model,
            subset,
            shared.validation,
            shared.labels,
            training,
            settings.seed,
            Path(folder),
            shared.progress,
            added_tokens=shared.added_tokens,
            evaluate_at=tuple(steps),
            resumable=False,
        )
    key = f"validation_{settings.primary_metric}"
    scored = {line["step"]: line[key] for line in fit.history if key in line}
    points = [planning.Point(rows=count, score=scored[min(step, fit.num_steps)]) for count, step in zip(rows, steps, strict=True)]
    prediction = planning.extrapolate(points, round(len(shared.train) * settings.training.epochs))
    check = planning.pilot_check(prediction, cheaper.metadata["best"], cheaper.metadata["best_score"], settings.planning)
    shared.progress.say(check.description)
    metadata = {
        "learning_curve": [{"rows": p.rows, settings.primary_metric: p.score} for p in points],
        "predicted": prediction.predicted,
        "predicted_low": prediction.low,
        "predicted_high": prediction.high,
        "target_rows": prediction.target_rows,
        "best_baseline": cheaper.metadata["best"],
        "best_baseline_score": cheaper.metadata["best_score"],
        "seconds": fit.seconds,
        "num_tokens": fit.num_tokens,
    }
    (draft.path / "pilot.json").write_text(json.dumps({**metadata, "history": fit.history}, indent=1))
    return shared.commit(draft, metadata, [check])


if __name__ == "__main__":
    run_workload(work)
