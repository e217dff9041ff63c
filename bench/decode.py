"""Tokens per second of the whole engine (scheduling, sampling, text) beside transformers, CTranslate2 and llama.cpp.

LLaMA shapes of 15M, 125M and 1.1B parameters with random weights; a cell is a shape, a precision, threads and a task:
decoding after a prompt of 64 or 512 tokens, several answers at once, or a prompt of 512 alone. Everyone decodes
greedily; `sampled` is fledge with sampling on. Peers that aren't installed are left out and named: `pip install
ctranslate2 llama-cpp-python gguf` (or a folder of them in BENCH_PEERS). One thread is measured by CPU time, two by wall
time.

The bar: fp32 at least 1.0 x transformers and 0.95 x the best; INT8 at least 0.85 x CTranslate2 on one thread and 1.0 x
in half of the cells; INT4 at least 1.0 x the best 4-bit peer on one thread and 0.8 x on two.
Words choose cells: `python bench/decode.py 15m float32 1 decode64`. Cells are kept in bench/results/decode.json.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness import RESULTS, clock, compare, keep, peer_process, summary

sys.path[:0] = [os.environ["BENCH_PEERS"]] if "BENCH_PEERS" in os.environ else []
SHAPES = {  # width, hidden, layers, heads, vocabulary
    "15m": (288, 768, 6, 6, 32000),
    "125m": (768, 2048, 12, 12, 32000),
    "1b": (2048, 5632, 22, 32, 32000),
}
CONTEXT = 1024
TASKS = {  # answers at once, prompt tokens, new tokens
    "decode64": (1, 64, 128),
    "decode512": (1, 512, 64),
    "prefill512": (1, 512, 1),
    "batch8": (8, 64, 32),
    "batch32": (32, 64, 32),
}
PRECISIONS = {
    "float32": ("fledge", "sampled", "transformers", "ctranslate2", "llama.cpp F32"),
    "int8": ("fledge", "sampled", "ctranslate2", "llama.cpp Q8_0"),
    "int4": ("fledge", "sampled", "llama.cpp Q4_0", "llama.cpp Q4_K_M"),
}
NEEDS = {"ctranslate2": ("ctranslate2",), "llama.cpp": ("llama_cpp", "gguf")}
THREADS = ("1", "2")
ROUNDS = 7


def missing(peer: str) -> list[str]:
    return [name for name in NEEDS.get(peer.split()[0], ()) if importlib.util.find_spec(name) is None]


def transformers_model(shape: str) -> Any:
    """The same random model for everybody."""
    import torch
    import transformers

    width, hidden, layers, heads, vocabulary = SHAPES[shape]
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=hidden, num_hidden_layers=layers,
        num_attention_heads=heads, max_position_embeddings=CONTEXT, tie_word_embeddings=shape == "15m",
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def prompts(task: str) -> list[list[int]]:
    rows, tokens, _ = TASKS[task]
    return [[100 + (7 * i + 11 * row) % 20_000 for i in range(tokens)] for row in range(rows)]


def transformers_generate(shape: str, precision: str, task: str) -> Callable[[], None]:
    import torch

    model, ids, new = transformers_model(shape), torch.tensor(prompts(task)), TASKS[task][2]

    def generate() -> None:
        with torch.inference_mode():
            mask = torch.ones_like(ids)
            out = model.generate(ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False)
        assert out.shape[1] == ids.shape[1] + new

    return generate


def fledge_engine(shape: str, precision: str, task: str, sampled: bool = False) -> Callable[[], None]:
    import torch

    from fledge.engine.config import EngineConfig
    from fledge.engine.core import Engine
    from fledge.engine.request import Request, Sampling
    from fledge.engine.runner import Runner
    from fledge.model.folder import load_model
    from fledge.nn.native import library
    from fledge.text.tokenizer import characters

    library.build()
    folder = Path(tempfile.mkdtemp())
    transformers_model(shape).save_pretrained(folder)
    tokenizer = characters("".join(chr(0x4E00 + i) for i in range(20_000)) + "".join(map(chr, range(0xAC00, 0xD6F8))))
    rows, _, new = TASKS[task]
    with torch.no_grad():
        model = quantised(load_model(folder), precision)
    config = EngineConfig(n_slots=rows, prefix_cache=False)
    engine = Engine(Runner(model, n_slots=rows), tokenizer, config)
    sampling = Sampling(max_tokens=new, temperature=float(sampled), ignore_eos=True)
    numbers = itertools.count()

    def generate() -> None:
        asked = [Request(f"{next(numbers)}", tuple(prompt), sampling) for prompt in prompts(task)]
        assert all(len(done.token_ids) == new for done in engine.complete(asked))

    return generate


def quantised(model: Any, precision: str) -> Any:
    """Rounded to nearest, the output matrix to 8 bits in both, as the peers have it."""
    from fledge.compress.quantize import quantize, quantize_output, uniform
    from fledge.model.quantization import INT8, int4

    if precision != "float32":
        quantize(model, uniform(model, INT8 if precision == "int8" else int4(32)))
        quantize_output(model)
    return model


def ctranslate2_generate(shape: str, precision: str, task: str, threads: int) -> Callable[[], None]:
    import ctranslate2
    from ctranslate2.converters.transformers import LlamaLoader

    theirs = transformers_model(shape)
    spec = LlamaLoader().get_model_spec(theirs)
    spec.register_vocabulary([f"t{i}" for i in range(SHAPES[shape][4])])
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = "t1", "t2", "t0"
    spec.config.layer_norm_epsilon = theirs.config.rms_norm_eps
    spec.validate()
    spec.optimize(quantization="int8" if precision == "int8" else None)
    folder = tempfile.mkdtemp()
    spec.save(folder)
    del theirs
    kind = "int8" if precision == "int8" else "float32"
    generator = ctranslate2.Generator(folder, device="cpu", intra_threads=threads, inter_threads=1, compute_type=kind)
    words, new = [[f"t{i}" for i in prompt] for prompt in prompts(task)], TASKS[task][2]

    def generate() -> None:
        found = generator.generate_batch(
            words, max_length=new, min_length=new, sampling_topk=1, include_prompt_in_result=False, max_batch_size=64
        )
        assert all(len(one.sequences_ids[0]) == new for one in found)

    return generate


def write_gguf(shape: str, path: Path) -> None:
    """The model as llama.cpp reads it, without a vocabulary: it is asked by ids alone."""
    import gguf

    theirs = transformers_model(shape)
    width, hidden, layers, heads, vocabulary = SHAPES[shape]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(vocabulary)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(heads)
    writer.add_rope_dimension_count(width // heads)
    writer.add_layer_norm_rms_eps(theirs.config.rms_norm_eps)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("none")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    for name, weight in theirs.state_dict().items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):  # the channels that rotate together lie side by side
            weight = weight.view(heads, 2, -1, width).transpose(1, 2).reshape(width, width)
        tied = shape == "15m" and name == "lm_head.weight"
        if not tied:
            writer.add_tensor(names.get_name(name, (".weight",)), weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_cpp_generate(shape: str, kind: str, task: str, threads: int) -> Callable[[], None]:
    import ctypes

    import llama_cpp as lc
    import numpy as np

    lc.llama_log_set(QUIET := lc.llama_log_callback(lambda *_: None), ctypes.c_void_p(0))
    path = Path(tempfile.mkdtemp()) / "model.gguf"
    write_gguf(shape, path)
    if kind != "F32":
        how = lc.llama_model_quantize_default_params()
        how.ftype = {"Q8_0": lc.LLAMA_FTYPE_MOSTLY_Q8_0, "Q4_0": lc.LLAMA_FTYPE_MOSTLY_Q4_0}.get(
            kind, lc.LLAMA_FTYPE_MOSTLY_Q4_K_M
        )
        target = path.with_name("quantized.gguf")
        assert lc.llama_model_quantize(str(path).encode(), str(target).encode(), ctypes.byref(how)) == 0
        path = target
    model = lc.llama_model_load_from_file(str(path).encode(), lc.llama_model_default_params())
    rows, prompt_tokens, new = TASKS[task]
    settings = lc.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch, settings.n_seq_max = rows * CONTEXT, 2048, 512, rows
    settings.n_threads = settings.n_threads_batch = threads
    context = lc.llama_init_from_model(model, settings)
    batch, vocabulary = lc.llama_batch_init(2048, 0, 1), SHAPES[shape][4]
    asked = prompts(task)

    def decode(tokens: list[tuple[int, int, int, bool]]) -> None:
        """(id, position, sequence, whether its logits are wanted) of each token."""
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
            batch.seq_id[i][0] = sequence
        assert lc.llama_decode(context, batch) == 0

    def best(i: int) -> int:
        logits = lc.llama_get_logits_ith(context, i)
        return int(np.ctypeslib.as_array(logits, (vocabulary,)).argmax())

    def generate() -> None:
        assert QUIET is not None
        lc.llama_memory_clear(lc.llama_get_memory(context), True)
        said = []
        for row, prompt in enumerate(asked):
            decode([(token, at, row, at == prompt_tokens - 1) for at, token in enumerate(prompt)])
            said.append([best(prompt_tokens - 1)])
        for step in range(new - 1):
            decode([(answer[-1], prompt_tokens + step, row, True) for row, answer in enumerate(said)])
            for row, answer in enumerate(said):
                answer.append(best(row))

    return generate


def measure(peer: str, shape: str, precision: str, task: str) -> Callable[[int], Iterator[float]]:
    """A peer of the harness: tokens a second."""

    def figures(threads: int) -> Iterator[float]:
        if peer in ("fledge", "sampled"):
            generate = fledge_engine(shape, precision, task, peer == "sampled")
        elif peer == "transformers":
            generate = transformers_generate(shape, precision, task)
        elif peer == "ctranslate2":
            generate = ctranslate2_generate(shape, precision, task, threads)
        else:
            generate = llama_cpp_generate(shape, peer.split()[1], task, threads)
        rows, prompt, new = TASKS[task]
        tokens = prompt if new == 1 else rows * new
        generate()
        yield 0.0
        while True:
            began = clock(threads)
            generate()
            yield tokens / (clock(threads) - began)

    return figures


def cell(shape: str, precision: str, threads: str, task: str) -> dict[str, Any]:
    left_out = {peer: missing(peer) for peer in PRECISIONS[precision] if missing(peer)}
    here = [peer for peer in PRECISIONS[precision] if peer not in left_out]
    names = [f"{peer}|{shape}|{precision}|{task}" for peer in here]
    figures = compare(__file__, names, int(threads), ROUNDS)
    table = summary({name.split("|")[0]: values for name, values in figures.items()}, "fledge")
    return {"tokens_per_second": table, "not_installed": left_out}


def main() -> None:
    if "--peer" in sys.argv:
        name, threads = sys.argv[sys.argv.index("--peer") + 1], int(sys.argv[sys.argv.index("--threads") + 1])
        peer, shape, precision, task = name.split("|")
        peer_process({name: measure(peer, shape, precision, task)}, name, threads)
        return
    words = set(sys.argv[1:])
    path = RESULTS / "decode.json"
    cells = json.loads(path.read_text())["cells"] if path.exists() and "cells" in path.read_text() else {}
    for one in itertools.product(SHAPES, PRECISIONS, THREADS, TASKS):
        if words - set(itertools.chain(SHAPES, PRECISIONS, THREADS, TASKS)):
            raise SystemExit(f"expected words of {[*SHAPES, *PRECISIONS, *THREADS, *TASKS]}, got {words}")
        if all(
            not words & set(group) or part in words
            for part, group in zip(one, (SHAPES, PRECISIONS, THREADS, TASKS), strict=True)
        ):
            cells[" ".join(one)] = cell(*one)
            print(" ".join(one), json.dumps(cells[" ".join(one)]["tokens_per_second"]), flush=True)
            keep(
                "decode", {"clock": "CPU time at one thread, wall at two", "rounds": ROUNDS, "cells": cells}, quiet=True
            )


if __name__ == "__main__":
    main()
