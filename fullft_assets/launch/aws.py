"""What the launchers of Amazon's services share: clients whose errors are one line each, and the output of
containers in CloudWatch Logs.
"""

import json
import time
from abc import abstractmethod
from functools import cached_property
from typing import Any, ClassVar, cast

from fullft_assets.aws import aws_client
from fullft_assets.errors import WorkloadError
from fullft_assets.launch.base import Launcher, Logs, Unreachable
from fullft_assets.launch.container import LAST_LINE
from fullft_assets.settings import AwsLauncherSettings, PlanningSettings

#: Output arrives some seconds after it was written; so often it is looked for after a job's end.
LATE_LOOKS = 15
#: Pause between two of these looks.
LATE_SECONDS = 2.0
#: Time between two looks at a job that was asked to stop.
STOP_LOOK_SECONDS = 3.0
#: Another try of the same request may succeed. botocore itself has tried ten times.
_BUSY = frozenset(
    {
        "ThrottlingException",
        "Throttling",
        "TooManyRequestsException",
        "RequestLimitExceeded",
        "ServiceUnavailable",
    }
)
#: What credentials or an account lack for now.
_FOR_NOW = frozenset({"ResourceLimitExceeded", "ExpiredTokenException", "ExpiredToken"})


class Missing(Exception):
    """The service has nothing of this name."""


class Exists(Exception):
    """The service has a job of this name."""


class AwsLauncher(Launcher):
    """Runs workloads by a service of Amazon whose containers write to CloudWatch Logs."""

    #: An `AwsLauncherSettings`, of which each launcher has one of its own.
    settings: Any
    look_seconds = (5.0, 90.0)
    #: Name of the service for people; in small letters it is that of its client.
    title: ClassVar[str]

    def __init__(self, settings: AwsLauncherSettings):
        super().__init__(settings)
        #: Jobs whose container has run and whose end `poll` has seen: the rest of their output is waited for.
        self._ended: set[str] = set()

    @property
    @abstractmethod
    def log_group(self) -> str:
        """Group of CloudWatch Logs."""

    @abstractmethod
    def stream_prefix(self, name: str) -> str:
        """Return how the names of a job's log streams begin, one stream for each start of its container, in
        their order.
        """

    def logs(self, name: str, cursor: str) -> Logs:
        """Return the output of the container of rank 0 after a cursor; each start of the container has a
        stream and a token of its own.

        A stream is read to its end when it has the container's last line; after a job's end that is waited
        for a while.
        """
        state: dict[str, Any] = json.loads(cursor) if cursor else {"tokens": {}, "looks": 0}
        tokens: dict[str, str | None] = state["tokens"]  # None: read to its end
        text = ""
        is_more = False
        for stream in self.streams(name):
            if tokens.setdefault(stream, "") is None:
                continue
            lines, token = self.lines(stream, tokens[stream])
            # One page a look is enough while the job runs, and half of the requests.
            is_more = is_more or (name in self._ended and token != tokens[stream])
            tokens[stream] = None if any(line.startswith(LAST_LINE) for line in lines) else token
            text += "".join(f"{line}\n" for line in lines if not line.startswith(LAST_LINE))
        is_complete = bool(tokens) and all(token is None for token in tokens.values())
        if name in self._ended and not is_more and not is_complete and state["looks"] < LATE_LOOKS:
            time.sleep(LATE_SECONDS)
            state["looks"] += 1
            is_more = True
        return Logs(json.dumps(state), stdout=text, is_more=is_more)

    def streams(self, name: str) -> list[str]:
        """Return the log streams of a job in the order of their starts."""
        try:
            answer = self.ask(
                "logs",
                "describe_log_streams",
                logGroupName=self.log_group,
                logStreamNamePrefix=self.stream_prefix(name),
            )
        except Missing:  # the group is made with the account's first job
            return []
        return sorted(stream["logStreamName"] for stream in answer["logStreams"])

    def lines(self, stream: str, token: str | None = None) -> tuple[list[str], str]:
        """Return the lines of a stream from a token on (the empty one is its beginning), and the token to
        read on from, which is the same one at its end; without a token the stream's last lines.
        """
        try:
            answer = self.ask(
                "logs",
                "get_log_events",
                logGroupName=self.log_group,
                logStreamName=stream,
                startFromHead=token is not None,
                **({"nextToken": token} if token else {}),
            )
        except Missing:  # deleted since it was listed
            return [], token or ""
        return [event["message"].rstrip("\n") for event in answer["events"]], answer["nextForwardToken"]

    @cached_property
    def region(self) -> str:
        """That of the section, else of the environment."""
        import boto3

        region = self.settings.region or boto3.Session().region_name
        if region is None:
            raise WorkloadError(
                f"launcher.kind: {self.settings.kind} needs a region; set launcher.region or"
                " AWS_DEFAULT_REGION",
                "settings",
            )
        return region

    @cached_property
    def _clients(self) -> dict[str, Any]:
        from botocore.config import Config

        # Waits longer and asks more rarely the more the service throttles.
        retries = Config(
            retries={"mode": "adaptive", "total_max_attempts": 10}, connect_timeout=15, read_timeout=60
        )
        return {
            name: aws_client(name, self.title, self.region, config=retries)
            for name in (self.title.lower(), "logs")
        }

    def ask(self, service: str, operation: str, **request: Any) -> dict[str, Any]:
        """Send a request and return the answer.

        Raises:
            Missing: there is no such job or stream.
            Exists: a job has this name.
            Unreachable: the service does not answer, or not now.
            WorkloadError: it refuses.
        """
        from botocore import exceptions as aws

        about = f"{self.title} {self.place}: {operation}"
        try:
            return cast(dict[str, Any], getattr(self._clients[service], operation)(**request))
        except aws.ClientError as error:
            code = error.response["Error"]["Code"]
            message = " ".join(error.response["Error"].get("Message", "").split())
            line = f"{about}: {message or code} ({code})"
            # So SageMaker says of an unknown job.
            is_unknown = code == "ValidationException" and "resource not found" in message.lower()
            if is_unknown or code in ("ResourceNotFound", "ResourceNotFoundException"):
                raise Missing(line) from None
            if code in ("ResourceInUse", "ConflictException") or "already exists" in message:
                raise Exists(line) from None
            # How the service refuses a signature of another time than its own: jobs go on meanwhile, and most
            # clocks are set by themselves.
            if any(sign in message for sign in ("Signature expired", "Signature not yet current")):
                raise Unreachable(f"{line}; set the clock of this machine") from None
            if code in _BUSY or error.response["ResponseMetadata"]["HTTPStatusCode"] >= 500:
                raise Unreachable(line) from None
            raise WorkloadError(line, "infrastructure" if code in _FOR_NOW else "settings") from None
        except (aws.ConnectionError, aws.HTTPClientError, aws.CredentialRetrievalError) as error:
            raise Unreachable(f"{about}: {' '.join(str(error).split())}") from None
        except aws.BotoCoreError as error:
            raise WorkloadError(f"{about}: {' '.join(str(error).split())}", "settings") from None

    def hourly_usd(self, planning: PlanningSettings, processes: int) -> float | None:
        """Return the price of the job's instances as EC2's, where the section names their type and the plan's
        table has it.
        """
        from fullft_assets.planning.targets import hourly_usd_of

        name = self.settings.instance_type
        price = None if name is None else hourly_usd_of(name.removeprefix("ml."), planning)
        return None if price is None else price * self.settings.nodes_of(processes)
