"""The template on its way through folders: `convert` keeps the source's, and what ends an answer is written down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fledge.model.convert import convert
from fledge.model.convert_config import ConvertConfig
from fledge.text.chat import FORMATS, Message, renderer_for
from fledge.text.tokenizer import Tokenizer
from tests.text.chats import every_token

TALK = (Message("user", "Hi <|eot_id|>"), Message("assistant", "Yo"))
OURS = FORMATS["llama-3"].template
TEMPLATES = {
    "published, newlines written out": OURS.replace("\\n", "\n") + "\n",
    "foreign": OURS + "{# of somebody else #}",
}


def source_folder(path: Path, template: str) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = every_token()
    tokenizer.save(path)
    config = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    shape = LlamaConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=64, bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(path)
    return path


@pytest.mark.parametrize("name", TEMPLATES)
def test_convert_keeps_the_sources_template_and_its_ids(name, tmp_path):
    source = source_folder(tmp_path / "source", TEMPLATES[name])
    convert(ConvertConfig(source=str(source), target=str(tmp_path / "target")))
    assert (tmp_path / "target" / "chat_template.jinja").read_text() == TEMPLATES[name]
    before, after = (renderer_for(Tokenizer.load(tmp_path / folder)) for folder in ("source", "target"))
    assert before.in_child is after.in_child is (not name.startswith("published"))
    assert before.render(TALK, True) == after.render(TALK, True)


def test_generation_config_ends_where_the_format_ends_a_turn(tmp_path):
    header = every_token().id_of("<|start_header_id|>")
    odd = (
        "{% for m in messages %}{{ '<|im_start|>' + m.content + '<|start_header_id|>' }}{% endfor %}"
        "{{ '<|im_start|>' if add_generation_prompt }}"
    )
    for name, template, ends in (("usual", TEMPLATES["foreign"], False), ("odd", odd, True)):
        source = source_folder(tmp_path / name / "source", template)
        convert(ConvertConfig(source=str(source), target=str(tmp_path / name / "target")))
        generation = json.loads((tmp_path / name / "target" / "generation_config.json").read_text())
        stops = generation["eos_token_id"]
        assert every_token().eos_id in stops and (header in stops) is ends
