"""What a use case's YAML may say: plain pydantic, no Dagster.

Each field carries a description, a bound and the default that a practitioner would choose. Only
`base_model`, `documents.path` and `examples.label` have no default.
"""

from fullft_assets.settings.alerts import AlertsSettings
from fullft_assets.settings.base import Settings
from fullft_assets.settings.documents import DocumentsSettings
from fullft_assets.settings.evaluation import MODELS, BedrockSettings, EvaluationSettings, PlanningSettings
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
    RayLauncherSettings,
    RemoteLauncherSettings,
    SageMakerLauncherSettings,
    ShareLauncherSettings,
    SshLauncherSettings,
)
from fullft_assets.settings.production import (
    AutomationSettings,
    MonitoringSettings,
    ReleaseSettings,
    RetentionSettings,
    RetrainingSettings,
    WindowSettings,
)
from fullft_assets.settings.snapshot import ChunksSettings, GeneralSettings, ReplaySettings, SnapshotSettings
from fullft_assets.settings.training import (
    DistillationSettings,
    TrainingSettings,
    contradictions,
)
from fullft_assets.settings.use_case import UseCaseSettings
