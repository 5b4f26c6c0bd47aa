"""Messages, a byte tokenizer with special tokens, chat templates that behave like those of real families."""

import tokenizers
from transformers import PreTrainedTokenizerFast

USER = {"role": "user", "content": "Hi"}
GOOD = {"role": "assistant", "content": "Hello"}
BAD = {"role": "assistant", "content": "What"}

CHATML = (
    "{% for m in messages %}"
    "{% if loop.first and m.role != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{{- bos_token }}\n"
    "{%- if not date_string is defined %}\n{%- if strftime_now is defined %}\n"
    "{%- set date_string = strftime_now('%d %b %Y') %}\n{%- else %}\n"
    "{%- set date_string = '26 Jul 2024' %}\n{%- endif %}\n{%- endif %}\n"
    "{{- '<|start|>system\n\nToday Date: ' + date_string + '\n\n' }}\n"
    "{%- if tools is not none %}{{- 'Tools: ' }}{%- for t in tools %}{{- t | tojson }}{%- endfor %}"
    "{%- endif %}{{- '<|eot|>' }}\n"
    "{%- for m in messages %}\n{%- if m.tool_calls %}{{- '<|start|>assistant\n\n' }}"
    "{%- for call in m.tool_calls %}{{- call.function | tojson }}{%- endfor %}{{- '<|eot|>' }}\n"
    "{%- else %}{{- '<|start|>' + m.role + '\n\n' + m.content | trim + '<|eot|>' }}\n{%- endif %}"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n{{- '<|start|>assistant\n\n' }}\n{%- endif %}"
)
THINKING = (  # opens the answer for the model, and does not write that again
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is not defined or enable_thinking %}{{ '<think>\n' }}{% endif %}{% endif %}"
)
OPENED = (  # opens the answer for the model, and writes that again
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m.content + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}"
    "{{ '<|start|>' + (m.role if m.role == 'user' else 'model') + '\n' }}"
    "{% if m.content is string %}{{ m.content | trim }}{% else %}"
    "{% for part in m.content %}{{ part.text | trim }}{% endfor %}{% endif %}{{ '<|eot|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
ONLY_PARTS = (
    "{% for m in messages %}{{ m.role | capitalize }}: "
    "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}"
    "{{ eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)
NO_END = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
SPECIAL = "<s> </s> <|im_start|> <|im_end|> <|start|> <|eot|> <think> </think> [INST] [/INST]"


def chat_tokenizer(template: str | None, eos: str = "</s>", bos: str | None = "<s>", greedy: bool = False):
    """A token a byte, one for two line ends and special ones: like those of large models, but small.

    Args:
        template: the chat template, or None.
        eos: one of SPECIAL.
        bos: one of SPECIAL. None: there is none.
        greedy: whether special tokens swallow the white space behind them, as Phi-3's do.
    """
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    entries = {character: n for n, character in enumerate([*alphabet, "ĊĊ"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=entries, merges=[("Ċ", "Ċ")]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    special = [tokenizers.AddedToken(token, rstrip=greedy, normalized=False) for token in SPECIAL.split()]
    tokenizer.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=eos,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template
    return tokenizer


def tool(name, **properties):
    """What a template is told of a function: its arguments' JSON schemas by name."""
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": "d",
            "parameters": {"type": "object", "properties": properties, "required": [*properties]},
        },
    }


def call(name, **arguments):
    """A message that calls a function."""
    return {
        "role": "assistant",
        "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}],
    }


def ids(tokenizer, messages, **arguments):
    """What transformers makes of messages by the chat template."""
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **arguments)


def full_ids(table, i=0):
    """Prompt and response of a row of a table, for each of its responses."""
    return [
        [*table.prompt(i).tolist(), *table.response(i, p).tolist()] for p in range(table.responses_per_row)
    ]
