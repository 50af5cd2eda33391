"""An SQS queue of a bucket's S3 events: which objects arrived, without listing the prefix.

Understood are S3's own notifications, the same wrapped by SNS, and EventBridge's events. An event only names
an
object: the object is looked at as it is now, so repeated, late and disordered events do no harm.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus, urlsplit

from fullft_assets.documents.sources import S3Prefix, SourceFile
from fullft_assets.errors import DataError

if TYPE_CHECKING:
    from botocore.client import BaseClient

#: Most messages that one look receives: the rest stays in the queue for the next.
MAX_MESSAGES = 1_000
_PER_REQUEST = 10
#: Waiting asks all of SQS's servers; without, a short queue often looks empty.
_WAIT_SECONDS = 1


@dataclass
class Received:
    """The messages of one look, read."""

    #: Objects below the prefix that the messages name, as they are now.
    files: list[SourceFile] = field(default_factory=list)
    #: Handles of the messages that are done with once `files` are recorded.
    handles: list[str] = field(default_factory=list)
    #: Objects named outside the prefix, or with an ending that is not read.
    num_outside: int = 0
    #: Messages that are no S3 event. They stay, so that the queue's redrive policy takes them aside.
    num_unknown: int = 0


class EventQueue:
    """A queue that gets the events of one prefix; its messages are removed when `delete` is called, not
    before.
    """

    def __init__(self, url: str, prefix: S3Prefix):
        self.url, self.prefix = url, prefix
        with _one_line_errors(url):
            self._client = _client(url)

    def receive(self, most: int = MAX_MESSAGES) -> Received:
        """Receive messages until the queue seems empty or `most` are in hand, and look at the objects that
        they name.

        Raises:
            DataError: the queue is not there, may not be read or cannot be reached.
        """
        received, named = Received(), dict[str, None]()
        for message in self._messages(most):
            urls = list(_objects(message["Body"]))
            if None in urls:
                received.num_unknown += 1
                continue
            received.handles.append(message["ReceiptHandle"])
            named |= dict.fromkeys(filter(None, urls))
        start = f"{self.prefix.uri}/"
        paths = self.prefix.documents_among(url.removeprefix(start) for url in named if url.startswith(start))
        received.num_outside = len(named) - len(paths)
        # An object that is gone by now was deleted or will come again; one that may not be read is named once
        # the prefix is listed.
        received.files = sorted(file for file in self.prefix.statuses(paths).values() if file is not None)
        return received

    def delete(self, received: Received) -> None:
        """Remove messages for good; call it once their objects are recorded."""
        with _one_line_errors(self.url):
            for start in range(0, len(received.handles), _PER_REQUEST):
                handles = received.handles[start : start + _PER_REQUEST]
                entries = [
                    {"Id": str(number), "ReceiptHandle": handle} for number, handle in enumerate(handles)
                ]
                self._client.delete_message_batch(QueueUrl=self.url, Entries=entries)

    def _messages(self, most: int) -> Iterator[dict[str, Any]]:
        seen: set[str] = set()
        while len(seen) < most:
            with _one_line_errors(self.url):
                answer = self._client.receive_message(
                    QueueUrl=self.url,
                    MaxNumberOfMessages=min(_PER_REQUEST, most - len(seen)),
                    WaitTimeSeconds=_WAIT_SECONDS,
                )
            # A queue that shows messages again at once would be read round and round.
            new = [message for message in answer.get("Messages", ()) if message["MessageId"] not in seen]
            if not new:
                return
            seen |= {message["MessageId"] for message in new}
            yield from new


def _objects(body: str) -> Iterator[str | None]:
    """Yield the URL of each object that a message reports as created; None if the message is no S3 event."""
    try:
        event = json.loads(body)
        if isinstance(event, dict) and event.get("Type") == "Notification":
            event = json.loads(event["Message"])
        if event.get("Event") == "s3:TestEvent":  # sent once, when the notification is set up
            return
        if event.get("source") == "aws.s3":
            if event["detail-type"] == "Object Created":
                # EventBridge gives keys as they are, S3's own notifications as in a form's URL.
                yield f"s3://{event['detail']['bucket']['name']}/{event['detail']['object']['key']}"
            return
        for record in event["Records"]:
            if record["eventName"].removeprefix("s3:").startswith("ObjectCreated:"):
                yield f"s3://{record['s3']['bucket']['name']}/{unquote_plus(record['s3']['object']['key'])}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        yield None


def _client(url: str) -> BaseClient:
    import boto3

    parts = urlsplit(url)
    aws = re.fullmatch(r"(?:sqs\.)?([a-z0-9-]+)\.(?:queue\.)?amazonaws\.com(?:\.cn)?", parts.hostname or "")
    # The queue's own URL names its server: AWS_ENDPOINT_URL may name another server, for S3.
    return boto3.client(
        "sqs", endpoint_url=f"{parts.scheme}://{parts.netloc}", region_name=aws[1] if aws else None
    )


@contextmanager
def _one_line_errors(url: str) -> Iterator[None]:
    """Name the queue in an error of SQS."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{url}: cannot be read ({why}); fix documents.queue or the role's rights") from error
