"""The embedded server's model catalogue: two made-up models."""

from __future__ import annotations

from typing import Final

from friendli_async.testing.examples import fill
from friendli_async.testing.received import ReceivedRequest
from friendli_async.testing.script import Script, json_body

_PRICES: Final = {"input": "0.0000001", "output": "0.0000004", "prompt": "0.0000001", "completion": "0.0000004"}


def list_models(_: ReceivedRequest) -> Script:
    """Answer a request for the model catalogue."""
    models = [_model("meta-llama-3.1-8b-instruct", reasoning=False), _model("friendli-testing", reasoning=True)]
    return json_body({"data": models})


def _model(name: str, *, reasoning: bool) -> dict[str, object]:
    return fill(
        "ModelCatalogResponseItem",
        id=name,
        name=name.replace("-", " "),
        created=1_700_000_000,
        context_length=131_072,
        max_completion_tokens=8_192,
        description="A model of the embedded server.",
        pricing=fill("PricingModel", **_PRICES, input_cache_read=None, cache_write=None, audio_minute=None),
        deprecation_date=None,
        base_model=None,
        reasoning=reasoning,
        interleaved="reasoning_content" if reasoning else False,
        reasoning_options=fill("ModelCatalogResponseItem")["reasoning_options"] if reasoning else None,
        input_modalities=["text"],
        output_modalities=["text"],
    )
