"""Alerts on AWS: a notification of SNS, or a count in CloudWatch that an alarm can watch."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar

from pydantic import Field

from fullft_assets.alerts.alert import Alert
from fullft_assets.alerts.registered import AlertError
from fullft_assets.extras import require
from fullft_assets.settings.alerts import ChannelSettings

#: Longest subject that SNS takes, in characters.
_SUBJECT_CHARACTERS = 100


class SnsSettings(ChannelSettings):
    """The topic that alerts are published to."""

    topic_arn: str = Field(pattern=r"^arn:aws[\w-]*:sns:", description="ARN of the topic.")


class Sns:
    """Publishes each alert to a topic."""

    settings_class: ClassVar[type[ChannelSettings]] = SnsSettings

    def __init__(self, settings: SnsSettings):
        require("boto3", "the channel")
        self.settings = settings

    def send(self, alert: Alert) -> None:
        """Publish an alert."""
        subject = alert.subject.encode("ascii", "replace").decode()[:_SUBJECT_CHARACTERS]
        _call("sns", "publish", TopicArn=self.settings.topic_arn, Subject=subject, Message=alert.text)


class CloudWatchSettings(ChannelSettings):
    """The namespace of the metrics."""

    namespace: str = Field(
        default="fullft_assets",
        pattern=r"^[A-Za-z0-9_./#:-]+$",
        max_length=255,
        description="Namespace of the metrics.",
    )


class CloudWatch:
    """Counts each alert in the metric `Alerts` twice: with the dimensions UseCase and Event, and with Event
    alone.

    An alarm watches the values of one set of dimensions, and is to be there before the use cases are.
    """

    settings_class: ClassVar[type[ChannelSettings]] = CloudWatchSettings

    def __init__(self, settings: CloudWatchSettings):
        require("boto3", "the channel")
        self.settings = settings

    def send(self, alert: Alert) -> None:
        """Count an alert."""
        event, use_case = (
            {"Name": "Event", "Value": alert.event},
            {"Name": "UseCase", "Value": alert.use_case},
        )
        count = {"MetricName": "Alerts", "Timestamp": datetime.now(UTC), "Value": 1, "Unit": "Count"}
        data = [{**count, "Dimensions": dimensions} for dimensions in ([use_case, event], [event])]
        _call("cloudwatch", "put_metric_data", Namespace=self.settings.namespace, MetricData=data)


def _call(service: str, method: str, **arguments: Any) -> None:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        getattr(boto3.client(service), method)(**arguments)
    except (BotoCoreError, ClientError) as error:
        raise AlertError(f"{service} refused {method}: {error}") from error
