"""The channels that this package registers, and the secrets that a YAML points to and never has itself."""

import http.client
import json
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar

from pydantic import Field, StringConstraints

from fullft_assets.alerts.sending import Alert, AlertError
from fullft_assets.aws import reporting_client
from fullft_assets.errors import SettingsError
from fullft_assets.extras import require
from fullft_assets.settings.alerts import ChannelSettings

#: `env:NAME` (a variable of the environment) or `secret:ID` (AWS Secrets Manager).
SecretReference = Annotated[str, StringConstraints(pattern=r"^(env|secret):\S+$")]


def read_secret(reference: str) -> str:
    """Return the secret that a reference points to.

    Raises:
        SettingsError: there is none.
    """
    kind, name = reference.split(":", 1)
    if kind == "env":
        value = os.environ.get(name)
    else:
        with reporting_client("secretsmanager", reference, SettingsError) as client:
            value = client.get_secret_value(SecretId=name)["SecretString"]
    if not value:
        raise SettingsError(f"{reference} is not set; set it where the daemon runs")
    return value


_LOGGER = logging.getLogger("fullft_assets.alerts")


class _Channel:
    settings_class: ClassVar[type[ChannelSettings]] = ChannelSettings
    #: Module of an extra that the channel needs.
    module: ClassVar[str | None] = None

    def __init__(self, settings: Any):
        if self.module is not None:
            require(self.module, "the channel")
        self.settings = settings


class Log(_Channel):
    """Writes each alert as a warning of the logger `fullft_assets.alerts`."""

    def send(self, alert: Alert) -> None:
        """Log an alert."""
        _LOGGER.warning("%s", alert.text)


_TIMEOUT_SECONDS = 10.0


class WebhookSettings(ChannelSettings):
    """Where to post."""

    REMOVED: ClassVar[Mapping[str, str]] = {
        "style": "use a channel `apprise` for Slack, Teams and other services",
        "timeout_seconds": "an answer is waited for 10 seconds",
    }
    url: SecretReference = Field(
        description=(
            "Where the address is, which lets anybody post: `env:NAME` or `secret:ID` (AWS Secrets Manager)."
        )
    )


class Webhook(_Channel):
    """Posts each alert to an address."""

    settings_class = WebhookSettings

    def send(self, alert: Alert) -> None:
        """Post an alert; an answer other than 2xx is an error."""
        url = read_secret(self.settings.url)
        try:
            request = urllib.request.Request(
                url, json.dumps(asdict(alert)).encode(), {"Content-Type": "application/json"}
            )
            urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS).close()
        except urllib.error.HTTPError as error:
            raise AlertError(f"{self.settings.url} answered {error.code} {error.reason}") from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            # The address is a secret, which some of these errors repeat.
            raise AlertError(f"{self.settings.url} cannot be reached ({type(error).__name__})") from None


class AppriseSettings(ChannelSettings):
    """The service, as an address of apprise."""

    url: SecretReference = Field(
        description=(
            "Where the service's address is, which has its token or password: `env:NAME` or `secret:ID` (AWS"
            " Secrets Manager). github.com/caronc/apprise lists the services."
        )
    )


class Apprise(_Channel):
    """Sends each alert to a service."""

    settings_class = AppriseSettings
    module = "apprise"

    def send(self, alert: Alert) -> None:
        """Send an alert."""
        import apprise

        # Its messages may have the address.
        logging.getLogger("apprise").disabled = True
        service = apprise.Apprise()
        if not service.add(read_secret(self.settings.url)):
            raise SettingsError(f"{self.settings.url} is no address of a service that apprise knows")
        if not service.notify(title=" ".join(alert.subject.split()), body=alert.text, body_format="text"):
            raise AlertError(f"{self.settings.url}: the service did not take the message")


#: Longest subject that SNS takes, in characters.
_SUBJECT_CHARACTERS = 100


class SnsSettings(ChannelSettings):
    """The topic that alerts are published to."""

    topic_arn: str = Field(pattern=r"^arn:aws[\w-]*:sns:", description="ARN of the topic.")


class Sns(_Channel):
    """Publishes each alert to a topic."""

    settings_class = SnsSettings
    module = "boto3"

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


class CloudWatch(_Channel):
    """Counts each alert in the metric `Alerts` twice: with the dimensions UseCase and Event, and with Event
    alone.

    An alarm watches the values of one set of dimensions, and is to be there before the use cases are.
    """

    settings_class = CloudWatchSettings
    module = "boto3"

    def send(self, alert: Alert) -> None:
        """Count an alert."""
        dimensions = [
            {"Name": "UseCase", "Value": alert.use_case},
            {"Name": "Event", "Value": alert.event},
        ]
        count = {"MetricName": "Alerts", "Timestamp": datetime.now(UTC), "Value": 1, "Unit": "Count"}
        data = [{**count, "Dimensions": dimensions}, {**count, "Dimensions": dimensions[1:]}]
        _call("cloudwatch", "put_metric_data", Namespace=self.settings.namespace, MetricData=data)

    def measure(self, use_case: str, figures: Mapping[str, float]) -> None:
        """Write each figure as a metric with the dimension UseCase."""
        dimensions = [{"Name": "UseCase", "Value": use_case}]
        data = [
            {"MetricName": name, "Value": value, "Dimensions": dimensions} for name, value in figures.items()
        ]
        _call("cloudwatch", "put_metric_data", Namespace=self.settings.namespace, MetricData=data)


def _call(service: str, method: str, **arguments: Any) -> None:
    with reporting_client(service, service, AlertError) as client:
        getattr(client, method)(**arguments)
