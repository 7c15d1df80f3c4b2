"""What Triton's refusals of an inference request mean, and what to do about them."""

from __future__ import annotations

from mlflow_triton.errors import InferenceFailed

__all__ = ["refused"]

#: By a part of Triton's text, in lower case; the first one that is met counts.
ADVICE = (
    (
        "timeout expired",
        "It waited in the queue for longer than its timeout, and was not computed. Send it again, or give it more time.",
    ),
    (
        "exceeds maximum queue size",
        "Nothing was computed. Send it again later, or give the model more instances (-C instance_count=N) or a longer queue.",
    ),
    (
        "must specify the start flag",
        "Begin a sequence with sequence_start=True: Triton does not know this one, or has dropped it as idle.",
    ),
    (
        "correlation id",
        "The model takes sequences: pass sequence_id=, and sequence_start=True with the first request of one.",
    ),
    (
        "is not healthy",
        "The process of this Python model has ended. Bring it back: mlflow deployments update, or mlflow-triton restore.",
    ),
    ("decoupled", "Use predict_stream, in Python."),
)
DEFAULT = "Nothing was changed: look at the inputs, and at the server's log."


def refused(name: str, where: str, reason: str) -> InferenceFailed:
    """Make the error of an inference request that was answered with one.

    Args:
        name: The model.
        where: The server.
        reason: Triton's text, on one line.
    """
    text = reason.lower()
    advice = next((advice for mark, advice in ADVICE if mark in text), DEFAULT)
    return InferenceFailed(f"{name!r} on {where} failed: {reason} {advice}")
