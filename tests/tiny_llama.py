"""python tests/tiny_llama.py DIRECTORY: a chat model of 21 million random weights, to be served by vLLM.

Runs in the engine's own environment (transformers, torch). Each byte is a token, with its value as its id, so that a
test can count by hand how many tokens a text has. It says printable ASCII only: half of a UTF-8 character would be held
back by the engine, and events could not be counted against tokens. The same weights every time.

Not smaller: with 2 ms per token vLLM's HTTP server has no time left for anything but the running stream (its metrics,
and a client that leaves, wait for 4 s). A token takes 8 ms with these.
"""

import sys

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# What the "hermes" tool parser looks for.
TOOL_CALL = ["<tool_call>", "</tool_call>"]
TEMPLATE = """\
{%- if tools %}{{ '<|im_start|>system\\n' + (tools | tojson) + '<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + (message['content'] or '') + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"""


def letters() -> dict[str, int]:
    """Return the characters of bytes in GPT-2's byte-level alphabet: printable Latin-1, then others in order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


def tokenizer() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE(vocab=letters(), merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(SPECIAL)
    made.add_tokens([AddedToken(text, special=False, normalized=False) for text in TOOL_CALL])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = TEMPLATE
    return fast


def model(tokens: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=8,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    made = LlamaForCausalLM(config).to(torch.bfloat16)
    with torch.no_grad():
        # Among 94 random scores the highest is never one of these zeros.
        made.lm_head.weight.normal_()
        made.lm_head.weight[:33] = 0
        made.lm_head.weight[127:] = 0
    return made


def main(directory: str) -> None:
    tokens = tokenizer()
    tokens.save_pretrained(directory)
    model(tokens).save_pretrained(directory)


if __name__ == "__main__":
    main(sys.argv[1])
