"""What a use case's YAML may say: plain pydantic, one module a stage, no Dagster.

Each field carries a description, a bound and the default that a practitioner would choose. Only
`base_model`, `documents.path` and `examples.label` have no default.
"""

from fullft_assets.settings.alerts import AlertsSettings
from fullft_assets.settings.base import Settings
from fullft_assets.settings.chunks import ChunksSettings
from fullft_assets.settings.documents import DocumentsSettings
from fullft_assets.settings.evaluation import MODELS, EvaluationSettings
from fullft_assets.settings.examples import RULES, ExamplesSettings, Expectation
from fullft_assets.settings.guards import GuardSettings
from fullft_assets.settings.launcher import (
    LAUNCHER_SECTIONS,
    AwsLauncherSettings,
    ClusterLauncherSettings,
    ComputeSettings,
    ContainerLauncherSettings,
    DataEngineSettings,
    EcsLauncherSettings,
    KubernetesLauncherSettings,
    LauncherSettings,
    OtherLauncherSettings,
    RemoteLauncherSettings,
    SageMakerLauncherSettings,
    SshLauncherSettings,
)
from fullft_assets.settings.monitoring import MonitoringSettings, WindowSettings
from fullft_assets.settings.planning import BedrockSettings, PlanningSettings
from fullft_assets.settings.release import ReleaseSettings
from fullft_assets.settings.retraining import AutomationSettings, RetentionSettings, RetrainingSettings
from fullft_assets.settings.snapshot import GeneralSettings, ReplaySettings, SnapshotSettings
from fullft_assets.settings.training import OF_WHOLE_WEIGHTS, DistillationSettings, TrainingSettings
from fullft_assets.settings.use_case import UseCaseSettings
