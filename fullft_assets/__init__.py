"""Full fine-tuning of language models as Dagster assets: from labelled documents to a model that is worth
having.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fullft_assets.component import FullFineTune
    from fullft_assets.resources.champion import champion

__all__ = ["FullFineTune", "champion"]


def __getattr__(name: str) -> Any:
    # Lazy, so that workloads and the check, which need no Dagster, do not pay for its import.
    if name == "FullFineTune":
        from fullft_assets.component import FullFineTune

        return FullFineTune
    if name == "champion":
        from fullft_assets.resources.champion import champion

        return champion
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
