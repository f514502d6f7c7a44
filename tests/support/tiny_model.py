"""A language model of 372 kB with random weights: thousands of tokens per second, all features of the API."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, TokenType
from numpy.typing import NDArray

Weights = NDArray[np.float32]

WIDTH, FEED_FORWARD, HEADS, CONTEXT = 64, 128, 4, 4096
WORDS = (
    "the", "a", "of", "to", "and", "in", "is", "it", "you", "that", "he", "was", "for", "on", "are", "with", "as",
    "his", "they", "at", "be", "this", "have", "from",
)  # fmt: skip
ASCII = [chr(code) for code in range(33, 127)]

CHAT_TEMPLATE = """\
{%- if tools %}<|im_start|>system
Tools:
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
Call one as <tool_call>{"name": "...", "arguments": {...}}</tool_call>.<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content or '' }}
{%- for call in message.tool_calls or [] -%}
<tool_call>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""ChatML. No newline after `<tool_call>`: llama.cpp then uses the tag alone as the trigger of its tool-call grammar."""


class Vocabulary:
    """The tokens, scores and types of a GGUF file, in order."""

    def __init__(self) -> None:
        self.tokens: list[bytes] = []
        self.scores: list[float] = []
        self.types: list[int] = []

    def add(self, kind: TokenType, *texts: str, score: float = 0.0) -> int:
        """Append tokens; returns the index of the last one."""
        for text in texts:
            self.tokens.append(text.encode())
            self.scores.append(float(score))
            self.types.append(int(kind))
        return len(self.tokens) - 1


def make_tiny_model(path: Path) -> Path:
    """Write the model to `path`. Every printable ASCII character is a token, so that any grammar can be satisfied."""
    vocabulary = Vocabulary()
    vocabulary.add(TokenType.UNKNOWN, "<unk>")
    vocabulary.add(TokenType.CONTROL, "<s>", "</s>")
    vocabulary.add(TokenType.BYTE, *(f"<0x{byte:02X}>" for byte in range(256)))
    end = vocabulary.add(TokenType.CONTROL, "<|im_start|>", "<|im_end|>")
    space = vocabulary.add(TokenType.USER_DEFINED, "<tool_call>", "</tool_call>", "<think>", "</think>") + 1
    for character in ASCII:
        vocabulary.add(TokenType.NORMAL, character, score=-1000.0 - ord(character))
    vocabulary.add(TokenType.NORMAL, "▁", score=-900)
    for rank, word in enumerate(WORDS, 1):
        vocabulary.add(TokenType.NORMAL, "▁" + word, score=-rank)

    writer = GGUFWriter(path, "llama")
    _describe(writer, vocabulary, end)
    for name, tensor in _weights(len(vocabulary.tokens), end, space).items():
        writer.add_tensor(f"{name}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _describe(writer: GGUFWriter, vocabulary: Vocabulary, end: int) -> None:
    writer.add_name("tiny-random")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(vocabulary.tokens))
    writer.add_file_type(0)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(end)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _weights(tokens: int, end: int, space: int) -> dict[str, Weights]:
    """Return random tensors. Dimension 0 is constant; through it the output rows suppress bytes and control tokens."""
    random = np.random.default_rng(7)

    def normal(shape: Sequence[int], scale: float = 0.1) -> Weights:
        return (random.standard_normal(shape) * scale).astype(np.float32)

    embedding = normal((tokens, WIDTH), 0.5)
    embedding[:, 0] = 6
    output = normal((tokens, WIDTH), 0.6)
    output[:, 0] = 0
    output[:space, 0] = -8
    output[space : space + len(ASCII) + 1, 0] = -4
    output[end, 0] = 0
    output[end + 1, 0] = -1.6  # <tool_call>
    ones = np.ones(WIDTH, np.float32)
    return {
        "token_embd": embedding,
        "output_norm": ones,
        "output": output,
        "blk.0.attn_norm": ones,
        "blk.0.ffn_norm": ones,
        **{f"blk.0.attn_{part}": normal((WIDTH, WIDTH)) for part in ("q", "k", "v", "output")},
        "blk.0.ffn_gate": normal((FEED_FORWARD, WIDTH)),
        "blk.0.ffn_up": normal((FEED_FORWARD, WIDTH)),
        "blk.0.ffn_down": normal((WIDTH, FEED_FORWARD)),
    }
