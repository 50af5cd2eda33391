"""Bedrock's runtime as far as Converse goes, on a port of this machine: it checks requests as the service
does, and answers by a function.
"""

import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

from tests.serving import Handler, serving


class BedrockServer(ThreadingHTTPServer):
    """Answers each conversation; the first `failures` requests are throttled."""

    def __init__(self, answer: Callable[[str], str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.failures = answer, 0
        self.requests: list[dict[str, Any]] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(Handler):
    server: BedrockServer

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        found = re.fullmatch(r"/model/(.+)/converse", unquote(self.path))
        roles = [message["role"] for message in request["messages"]]
        texts = [
            part["text"]
            for message in [*request["messages"], {"content": request["system"]}]
            for part in message["content"]
        ]
        if not self.headers.get("Authorization", "").startswith("AWS4-HMAC-SHA256"):
            self._answer(403, {"message": "not signed"}, "AccessDeniedException")
        elif found is None or found[1] != "vendor.model-1:0":
            self._answer(400, {"message": f"no such model; the text was {texts[0]}"}, "ValidationException")
        elif roles != ["user", "assistant"] * (len(roles) // 2) + ["user"] or not all(
            text.strip() for text in texts
        ):
            self._answer(
                400, {"message": "roles must alternate, and texts not be blank"}, "ValidationException"
            )
        elif self.server.failures > 0:
            self.server.failures -= 1
            self._answer(429, {"message": "slow down"}, "ThrottlingException")
        else:
            self.server.requests.append(request)
            said = self.server.answer(request["messages"][-1]["content"][0]["text"])
            message = {"role": "assistant", "content": [{"text": said}]}
            usage = {
                "inputTokens": sum(map(len, texts)),
                "outputTokens": 2,
                "totalTokens": sum(map(len, texts)) + 2,
            }
            self._answer(
                200,
                {
                    "output": {"message": message},
                    "stopReason": "end_turn",
                    "usage": usage,
                    "metrics": {"latencyMs": 1},
                },
            )

    def _answer(self, status: int, body: dict[str, Any], error: str = "") -> None:
        headers = {"Content-Type": "application/json", **({"x-amzn-ErrorType": error} if error else {})}
        self.reply(status, json.dumps(body).encode(), headers)


def serve(answer: Callable[[str], str]) -> AbstractContextManager[BedrockServer]:
    return serving(BedrockServer(answer))
