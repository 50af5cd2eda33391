"""The systems that an evaluation compares beside the baselines, and what people call systems and metrics."""

from fullft_assets.settings import MODELS
from fullft_assets.task import BASELINES, METRICS

#: The anchor is the last champion that was promoted as better, where it is not the present one: many small
#: losses in a row must not add up.
FINETUNED, CHAMPION, ANCHOR = MODELS
BASE_MODEL = "base_model"
#: Inputs of an evaluation, `seed_run_0` and so on: reports on trainings that tell how much the seed alone
#: changes.
SEED_RUN = "seed_run_"
#: Inputs of an evaluation, `look_0` and so on: reports on the candidates that this champion was compared with
#: before.
LOOK = "look_"
_SYSTEMS = {
    FINETUNED: "fully fine-tuned model",
    CHAMPION: "champion",
    ANCHOR: "last champion that was better",
}


def title(name: str) -> str:
    """Return the title of a system or a metric in a text."""
    if name in _SYSTEMS:
        return _SYSTEMS[name]
    registry = METRICS if name in METRICS else BASELINES
    return registry.get(name).title if name in registry else name.replace("_", " ")
