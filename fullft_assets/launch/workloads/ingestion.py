"""ingested_batch: delivered files of a batch -> raw_documents, labeled_examples, quarantined_examples,
tokenized_chunks.

Run by a launcher or by hand: `python -m fullft_assets.launch.workloads.ingestion --job URI`. The assets of
the data stages find what it writes; its own artifact only says which these are.
"""

from pathlib import Path

from fullft_assets import chunks, documents, examples
from fullft_assets.chunks import ingestion
from fullft_assets.errors import SettingsError
from fullft_assets.job import Job
from fullft_assets.launch.entry import run_workload
from fullft_assets.progress import Progress
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import Store


def work(job: Job, store: Store, progress: Progress) -> None:
    """Read, validate and tokenise one batch; a red gate of its examples holds it back before it is tokenised.

    Raises:
        SettingsError: what is made here would be found by nobody.
    """
    root = Path(job.project_root)
    # The place of the YAML is for messages about its lines, of which there are none here.
    use_case = UseCase(job.case, job.settings, root, root)
    assert job.batch is not None, "written by the asset of a batch"
    if ingestion.key(use_case, job.batch) != job.key:
        raise SettingsError(
            f"{job.batch}: the tokenizer, or a package that finds personal data, is another one here than"
            " where it was launched, which would not find what is made here; install the same there and in"
            " launcher.image, and launch again"
        )
    with store.create(
        job.case, job.stage, job.key, version=ingestion.version(use_case), seed=job.settings.seed
    ) as draft:
        progress.say(f"reading {job.batch}")
        raw = documents.keep(store, use_case, job.batch)
        progress.raise_if_stopped()
        valid, quarantined = examples.validate(store, use_case, raw)
        progress.raise_if_stopped()
        artifacts = [raw, valid, quarantined]
        if valid.red_gates:
            progress.say(f"held back: {', '.join(check.name for check in valid.red_gates)}")
        else:
            progress.say(f"tokenising {examples.ExamplesMetadata.of(valid).num_valid:,} examples")
            artifacts.append(chunks.tokenize(store, use_case, valid))
        refs = {manifest.stage: manifest.ref for manifest in artifacts}
        draft.commit(
            settings={}, inputs={"batch": job.batch}, metadata=ingestion.IngestedMetadata(made=refs).as_dict()
        )


if __name__ == "__main__":
    run_workload(work)
