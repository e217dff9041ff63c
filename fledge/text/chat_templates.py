"""The chat formats as Jinja, for the folders that are written here; and digests of the templates that models came with.

These are our own words for each format. Tests show that transformers, given one of them, makes the same text as
`chat_formats` does, and that both make the text of the models' own templates. The digests are of those
(`template_digest`); where each was read stands beside it.
"""

from __future__ import annotations

ROLES_TAKE_TURNS = (
    "{%- if turn['role'] != ('assistant' if loop.index0 % 2 else 'user') %}"
    "{{- raise_exception('expected user and assistant to take turns, the user first') }}{%- endif %}"
)
SPLIT_SYSTEM = (
    "{%- set has_system = messages[0]['role'] == 'system' %}"
    "{%- set turns = messages[1:] if has_system else messages %}"
    "{%- if not turns %}{{- raise_exception('expected a message of the user') }}{%- endif %}"
)
KNOWN_ROLE = (
    "{%- if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{- raise_exception('expected the role system, user or assistant') }}{%- endif %}"
)

FLEDGE = (
    "{{- '<|bos|>' }}{%- for message in messages %}" + KNOWN_ROLE + "{{- '<|' + message['role'] + '|>' "
    "+ message['content'] + '<|end|>' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)
CHATML = (
    "{%- for message in messages %}" + KNOWN_ROLE + "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>' + '\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
LLAMA3 = (
    "{{- bos_token }}{%- for message in messages %}" + KNOWN_ROLE + "{{- '<|start_header_id|>' + message['role'] "
    "+ '<|end_header_id|>\\n\\n' + message['content'].strip() + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
LLAMA2 = (
    SPLIT_SYSTEM + "{%- for turn in turns %}" + ROLES_TAKE_TURNS + "{%- if turn['role'] == 'assistant' %}"
    "{{- ' ' + turn['content'].strip() + ' ' + eos_token }}{%- else %}"
    "{%- set head = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' if has_system and loop.first else '' %}"
    "{{- bos_token + '[INST] ' + (head + turn['content']).strip() + ' [/INST]' }}{%- endif %}{%- endfor %}"
)
GEMMA = (
    "{{- bos_token }}{%- for turn in messages %}" + ROLES_TAKE_TURNS + "{{- '<start_of_turn>' "
    "+ ('model' if turn['role'] == 'assistant' else 'user') + '\\n' + turn['content'].strip() + '<end_of_turn>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}"
)

KNOWN_CHATML = ("153280e3ff55d19da1398bdb3914ee2a51b80429bfaedde11d7d216c39db80f3",)  # OpenHermes-2.5-Mistral-7B
KNOWN_QWEN2 = ("793202280c0910ab26bc6eb57c8212c2417324c6d8c4efd0d10d59092ab3e3eb",)  # Qwen2-Instruct
KNOWN_QWEN25 = ("a18cc698dd45623eb707279d08e66f7bb8d76afc89ead84016b88487b395b5cc",)  # Qwen2.5-Instruct (trl)
KNOWN_LLAMA3 = ("ba03a121d097859c7b5b9cd03af99aafe95275210d2876f642ad9929a150f122",)  # Meta-Llama-3-Instruct (trl)
KNOWN_LLAMA2 = ("9780fae5bfea3cfd7be37d328c6edfd296a8869be8131495bbe7eb37e780c88c",)  # Llama-2-13b-chat-hf
KNOWN_MISTRAL_1 = ("7e995b379ec01747807246483647cd99030abf331653f1119e16d7ac041a3495",)  # Mistral-7B-Instruct-v0.1
KNOWN_MISTRAL_2 = ("26a59556925c987317ce5291811ba3b7f32ec4c647c400c6cc7e3a9993007ba7",)  # -v0.2, Mixtral-8x7B v0.1
KNOWN_GEMMA = ("ecd6ae513fe103f0eb62e8ab5bfa8d0fe45c1074fa398b089c93a7e70c15cfd6",)  # gemma-it, gemma-2-it (trl)
KNOWN_PHI3 = ("dcaee66df77bfbb789ec541fe713218da30225a526f1db97138fc39ee6dc56aa",)  # Phi-3-mini (trl)
KNOWN_PHI35 = ("78d976a442bcde2f0be15aafbb8e3050e1104f86732266f68403251b89982a90",)  # Phi-3.5-mini (trl)


def with_default_system(template: str, system: str) -> str:
    """ChatML that begins with `system` where the conversation has no system message."""
    head = (
        "{%- if messages[0]['role'] != 'system' %}{{- '<|im_start|>system\\n" + system + "<|im_end|>\\n' }}{%- endif %}"
    )
    return head + template


def mistral(after: str) -> str:
    """`after` stands behind the EOS of an answer."""
    return (
        "{{- bos_token }}{%- for turn in messages %}" + ROLES_TAKE_TURNS + "{%- if turn['role'] == 'assistant' %}"
        "{{- turn['content'] + eos_token + '" + after + "' }}{%- else %}"
        "{{- '[INST] ' + turn['content'] + ' [/INST]' }}{%- endif %}{%- endfor %}"
    )


def phi3(keeps_empty_system: bool) -> str:
    shown = "{%- if message['role'] != 'system' or message['content'] %}"
    turn = "{{- '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}"
    body = turn if keeps_empty_system else shown + turn + "{%- endif %}"
    return (
        "{%- for message in messages %}" + KNOWN_ROLE + body + "{%- endfor %}"
        "{{- '<|assistant|>\\n' if add_generation_prompt else eos_token }}"
    )


def alpaca(system: str) -> str:
    return (
        SPLIT_SYSTEM + "{{- bos_token + (messages[0]['content'] if has_system else '" + system + "') + '\\n\\n' }}"
        "{%- for turn in turns %}" + ROLES_TAKE_TURNS + "{%- if turn['role'] == 'assistant' %}"
        "{{- turn['content'] + eos_token }}{%- else %}{{- ('' if loop.first else '\\n\\n') + '### Instruction:\\n' "
        "+ turn['content'] + '\\n\\n### Response:' }}{%- endif %}{%- endfor %}"
    )


def vicuna(system: str) -> str:
    quoted = system.replace("'", "\\'")
    return (
        SPLIT_SYSTEM + "{{- bos_token + (messages[0]['content'] if has_system else '" + quoted + "') + ' ' }}"
        "{%- for turn in turns %}" + ROLES_TAKE_TURNS + "{%- if turn['role'] == 'assistant' %}"
        "{{- ' ' + turn['content'] + eos_token }}{%- else %}{{- 'USER: ' + turn['content'] + ' ASSISTANT:' }}"
        "{%- endif %}{%- endfor %}"
    )
