"""What defects of a server are made of."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import grpc

from mutants.proxy import Answer, Refused, Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from mutants.proxy import Forward, Http, Rpc

__all__ = [
    "INFER",
    "answers",
    "asks",
    "ignores",
    "infers",
    "only",
    "refuses",
    "replies",
    "requests",
    "rpc_refuses",
    "says",
    "succeeds",
]

INFER = r"/infer$"


def only(path: str, http: Http) -> Http:
    """Have a defect where a path matches, and none elsewhere."""
    return lambda request, forward: (http if re.search(path, request.path) else _honest)(request, forward)


def _honest(request: Request, forward: Forward) -> Answer:
    return forward(request)


def answers(path: str, change: Callable[[Answer], Answer]) -> Http:
    """Change what is answered."""
    return only(path, lambda request, forward: change(forward(request)))


def says(path: str, change: Callable[[Any], Any]) -> Http:
    """Change the JSON of what is answered and is no error: in place, or by what the function returns."""

    def changed(answer: Answer) -> Answer:
        if answer.status >= 400:
            return answer
        document = answer.document
        found = change(document)
        return answer.saying(document if found is None else found)

    return answers(path, changed)


def asks(path: str, change: Callable[[Any], Any]) -> Http:
    """Change the JSON of what is asked, in place."""

    def changed(request: Request, forward: Forward) -> Answer:
        document = request.document
        if document is None:
            return forward(request)
        change(document)
        return forward(request.saying(document))

    return only(path, changed)


def refuses(path: str, when: Callable[[Request], bool] = lambda _: True, text: str = "no") -> Http:
    """Refuse what is right."""

    def refused(request: Request, forward: Forward) -> Answer:
        return Answer(400, {}, f'{{"error": "{text}"}}'.encode()) if when(request) else forward(request)

    return only(path, refused)


def ignores(path: str, when: Callable[[Request], bool] = lambda _: True) -> Http:
    """Answer 200 to what is not even looked at."""
    return only(path, lambda request, forward: Answer() if when(request) else forward(request))


def succeeds(path: str, when: Callable[[Request], bool] = lambda _: True) -> Http:
    """Answer 200 in place of an error."""

    def succeeded(request: Request, forward: Forward) -> Answer:
        answer = forward(request)
        if answer.status >= 400 and when(request):
            return Answer(200, {"content-type": "application/json"}, b'{"outputs": []}')
        return answer

    return only(path, succeeded)


def infers(change: Callable[[dict[str, Any]], Any], name: str = "") -> Http:
    """Change each output, or that of a name, of what a model answers in JSON."""

    def changed(document: Any) -> None:
        for output in document.get("outputs", []):
            if not name or output["name"] == name:
                change(output)

    return says(INFER, changed)


def replies(method: str, change: Callable[[Any], Any]) -> Rpc:
    """Change what is answered over gRPC: in place, or by what the function returns."""

    def changed(called: str, question: Any, forward: Callable[[Any], Any]) -> Any:
        answer = forward(question)
        if called == method:
            found = change(answer)
            answer = answer if found is None else found
        return answer

    return changed


def requests(method: str, change: Callable[[Any], Any]) -> Rpc:
    """Change what is asked over gRPC, in place."""

    def changed(called: str, question: Any, forward: Callable[[Any], Any]) -> Any:
        if called == method:
            change(question)
        return forward(question)

    return changed


def rpc_refuses(method: str, when: Callable[[Any], bool] = lambda _: True) -> Rpc:
    """Refuse what is right over gRPC."""

    def refused(called: str, question: Any, forward: Callable[[Any], Any]) -> Any:
        if called == method and when(question):
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "no")
        return forward(question)

    return refused
