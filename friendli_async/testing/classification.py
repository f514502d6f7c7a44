"""The embedded server's text classification: probabilities that depend only on the text."""

from __future__ import annotations

import hashlib
from typing import Final

from friendli_async.testing.chat import tokenize
from friendli_async.testing.embeddings import inputs
from friendli_async.testing.received import ReceivedRequest
from friendli_async.testing.route import deployed
from friendli_async.testing.script import Script, json_body

__all__ = ["ROUTES", "classify"]

_LABELS: Final = ("NEGATIVE", "NEUTRAL", "POSITIVE")


def classify(request: ReceivedRequest) -> Script:
    """Answer a classification request.

    Args:
        request: The request.
    """
    texts = inputs(request)
    if isinstance(texts, Script):
        return texts
    count = sum(len(tokenize(text)) for text in texts)
    data = [_classification(index, text) for index, text in enumerate(texts)]
    return json_body({"object": "list", "data": data, "usage": {"prompt_tokens": count, "total_tokens": count}})


def _classification(index: int, text: str) -> dict[str, object]:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    weights = [byte + 1 for byte in digest[: len(_LABELS)]]
    probabilities = [round(weight / sum(weights), 6) for weight in weights]
    label = _LABELS[weights.index(max(weights))]
    return {"index": index, "label": label, "num_classes": len(_LABELS), "probs": probabilities}


ROUTES: Final = deployed(
    "/classify",
    classify,
    body="{}TextClassificationBody",
    reply="DedicatedTextClassificationSuccess",
    on=("Dedicated", "Container"),
)
"""Classification, for the deployments that support it."""
