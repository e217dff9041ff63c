"""The table of verbs: name, config class, function. Names are imported only when the verb runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """One command. `config` and `run` are `module:name`; `run(config)` gives the result as plain values.

    `positionals` maps words on the command line, in order, to config keys; a name in brackets may be left out.
    `aliases` maps a flag to a config key (`--out` to `run.dir`). `yaml`: a positional ending in .yaml
    is the config file.
    """

    name: str
    summary: str
    config: str
    run: str
    positionals: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    yaml: bool = True


OUT = (("out", "run.dir"),)
TUNE = ("rank", "alpha", "targets", "rslora", "dora", "freeze")
READING = (("text-field", "reading.text_field"), ("max-bad-share", "reading.max_bad_share"), ("html", "reading.html"))

VERBS = (
    Verb(
        "data build",
        "gather text, hold documents out, drop near-duplicates, tokenise into shards",
        "fledge.data.config:BuildConfig",
        "fledge.data.build:build",
        aliases=(("out", "out"), ("steps", "clean.steps"), *READING),
    ),
    Verb(
        "data contamination",
        "which items of evaluation sets stand in a dataset",
        "fledge.data.cleaning.config:CheckContaminationConfig",
        "fledge.data.cleaning.check:check_contamination",
        ("dataset", "evaluations"),
    ),
    Verb(
        "data inspect",
        "the documents of a dataset or source, and a row of training as a model sees it",
        "fledge.recipes.config:InspectConfig",
        "fledge.recipes.inspect:inspect_data",
        ("path",),
        aliases=READING,
    ),
    Verb(
        "data stats",
        "documents, bytes and tokens by split and source, lengths, scripts, frequent and unused tokens",
        "fledge.data.config:StatsConfig",
        "fledge.data.stats:stats",
        ("path",),
        aliases=READING,
    ),
    Verb(
        "data qa",
        "make question/answer conversations from signatures and docstrings",
        "fledge.data.config:QaConfig",
        "fledge.data.qa:build_qa",
        aliases=(("out", "out"),),
    ),
    Verb(
        "tokenizer train",
        "train a tokenizer on text",
        "fledge.text.config:TokenizerTrainConfig",
        "fledge.text.train:train_tokenizer",
        aliases=(("out", "out"),),
    ),
    Verb(
        "tokenizer convert",
        "write a tokenizer in the form that other software reads",
        "fledge.text.config:TokenizerConvertConfig",
        "fledge.text.export:convert_tokenizer",
        ("[tokenizer]",),
        aliases=(("out", "out"),),
    ),
    Verb(
        "tokenizer report",
        "compare tokenizers on texts: bytes per token, fertility, unused entries",
        "fledge.text.config:TokenizerReportConfig",
        "fledge.text.report:report_tokenizers",
        ("[tokenizer]", "[text]"),
        aliases=(("out", "out"),),
    ),
    Verb(
        "tokenizer encode",
        "the ids of a text, with the bytes that each stands for",
        "fledge.text.config:TokenizerEncodeConfig",
        "fledge.text.coding:encode_text",
        ("tokenizer", "[text]"),
        yaml=False,
    ),
    Verb(
        "tokenizer decode",
        "the text of ids",
        "fledge.text.config:TokenizerDecodeConfig",
        "fledge.text.coding:decode_ids",
        ("tokenizer", "[ids]"),
        yaml=False,
    ),
    Verb(
        "tokenizer render",
        "a conversation as a model sees it: text, ids, and which of them are trained on",
        "fledge.text.config:TokenizerRenderConfig",
        "fledge.text.coding:render_conversation",
        ("tokenizer", "conversations"),
        yaml=False,
    ),
    Verb(
        "pretrain",
        "train a language model on text",
        "fledge.recipes.config:PretrainConfig",
        "fledge.recipes.pretrain:pretrain",
        aliases=OUT,
    ),
    Verb(
        "distill",
        "train a student on text beside a teacher",
        "fledge.recipes.distill_config:DistillConfig",
        "fledge.recipes.distill:distill",
        aliases=OUT,
    ),
    Verb(
        "sft",
        "instruction-tune a model on conversations",
        "fledge.recipes.config:SftConfig",
        "fledge.recipes.sft:sft",
        aliases=OUT,
    ),
    Verb(
        "finetune",
        "tune a model with a task head on labelled rows: classes, numbers, tags, spans, choices",
        "fledge.recipes.finetune_config:FinetuneConfig",
        "fledge.recipes.finetune:finetune",
        aliases=OUT,
    ),
    Verb(
        "align dpo",
        "move a tuned model towards preferred answers: DPO, hinge, IPO, KTO, ORPO, SimPO",
        "fledge.recipes.preference_config:AlignConfig",
        "fledge.recipes.align:align_dpo",
        aliases=(*OUT, ("loss", "preference.loss")),
    ),
    Verb(
        "align reward",
        "train a reward model on pairs of answers, and tell its accuracy beside length's and its calibration",
        "fledge.recipes.preference_config:AlignRewardConfig",
        "fledge.recipes.reward:align_reward",
        aliases=OUT,
    ),
    Verb(
        "align grpo",
        "learn from verifiable rewards by group-relative policy optimisation, or RLOO",
        "fledge.recipes.rl_config:GrpoRunConfig",
        "fledge.recipes.rl:grpo",
        aliases=OUT,
    ),
    Verb(
        "align ppo",
        "learn from rewards by proximal policy optimisation with a value head",
        "fledge.recipes.rl_config:PpoRunConfig",
        "fledge.recipes.rl:ppo",
        aliases=OUT,
    ),
    Verb(
        "align best-of",
        "answer prompts several times and write the best answers as conversations to tune on",
        "fledge.recipes.rl_config:BestOfConfig",
        "fledge.recipes.best_of:best_of",
        ("model",),
        aliases=(("out", "out"),),
    ),
    Verb(
        "align measure",
        "what a model's answers are worth, their length and entropy, and the distance from a reference",
        "fledge.recipes.rl_config:MeasureConfig",
        "fledge.recipes.measure:measure",
        ("model",),
        aliases=(("out", "out"),),
    ),
    Verb(
        "lr-range",
        "learning-rate range test of a pre-training: which rates learn, and a suggestion",
        "fledge.recipes.config:LrRangeConfig",
        "fledge.recipes.lr_range:lr_range",
        aliases=(("out", "out"),),
    ),
    Verb(
        "tune batch",
        "the largest micro-batch of a pre-training that fits in memory, counted and tried",
        "fledge.recipes.config:TuneBatchConfig",
        "fledge.recipes.tune_batch:tune_batch",
        aliases=(("out", "out"),),
    ),
    Verb(
        "evaluate",
        "bits per byte on held-out text, beside gzip, xz and a bigram; held-out questions",
        "fledge.evals.config:EvaluateConfig",
        "fledge.evals.run:evaluate",
        ("[model]",),
    ),
    Verb(
        "baselines",
        "what counting tokens alone says of a run's held-out targets, beside its model",
        "fledge.recipes.config:BaselinesConfig",
        "fledge.recipes.baselines:baselines",
        ("run",),
    ),
    Verb(
        "generate",
        "continue a prompt",
        "fledge.engine.config:GenerateConfig",
        "fledge.cli.generate:generate",
        ("model",),
    ),
    Verb(
        "fill",
        "the likeliest tokens for each mask in a text, by an encoder",
        "fledge.engine.config:FillConfig",
        "fledge.engine.fill:fill",
        ("model", "[text]"),
        yaml=False,
    ),
    Verb(
        "predict",
        "what a task head answers to a text or to the rows of a file",
        "fledge.engine.config:PredictConfig",
        "fledge.engine.predict:predict",
        ("model", "[text]"),
        yaml=False,
    ),
    Verb(
        "chat", "talk to a model in the terminal", "fledge.engine.config:ChatConfig", "fledge.cli.chat:chat", ("model",)
    ),
    Verb(
        "serve",
        "OpenAI-compatible server with a chat page",
        "fledge.serve.config:ServeConfig",
        "fledge.serve.main:serve",
        ("model",),
    ),
    Verb(
        "show",
        "module tree, parameters, bytes, FLOPs and KV bytes per token, before anything is allocated",
        "fledge.tune.config:ShowTunedConfig",
        "fledge.tune.show:show",
        ("[path]",),
        aliases=(("tune", "tune.method"), *((name, f"tune.{name}") for name in TUNE)),
        yaml=False,
    ),
    Verb(
        "plan",
        "memory, traffic and speed of a run on many processes, before it starts",
        "fledge.train.parallel.plan_config:PlanConfig",
        "fledge.train.parallel.plan:plan",
        ("[path]",),
        yaml=False,
    ),
    Verb(
        "attention",
        "one self-contained HTML page of a model's attention over a text: every layer and head, self and cross",
        "fledge.model.attention_config:AttentionConfig",
        "fledge.model.attention_page:attention",
        ("model", "text"),
        aliases=(("out", "out"),),
    ),
    Verb(
        "convert",
        "another checkpoint format into a fledge folder",
        "fledge.model.convert_config:ConvertConfig",
        "fledge.model.convert:convert",
        ("source", "target"),
    ),
    Verb(
        "prune",
        "take weights, neurons, heads or layers out of a model; size, quality and speed before and after",
        "fledge.compress.prune_config:PruneConfig",
        "fledge.recipes.prune:prune_model",
        ("model", "out"),
        yaml=False,
    ),
    Verb(
        "quantize",
        "a model's linear maps in 8 or 4 bits: measured before and after, refused where it loses too much",
        "fledge.compress.config:QuantizeConfig",
        "fledge.recipes.quantize:quantize_model",
        ("model",),
        aliases=(("out", "out"),),
    ),
    Verb(
        "merge",
        "an adapter into its base's weights: logits compared, refused where they differ",
        "fledge.tune.config:MergeConfig",
        "fledge.recipes.merge:merge_adapter",
        ("base", "adapter"),
        aliases=(("out", "out"),),
        yaml=False,
    ),
    Verb(
        "report",
        "one self-contained HTML page about runs, compared where there are several; TensorBoard event files",
        "fledge.train.report:ReportConfig",
        "fledge.train.report:report",
        ("[run]", "[also]"),
        aliases=(("out", "out"),),
    ),
    Verb(
        "checkpoint show",
        "a run's checkpoints: steps, tokens, bytes, ranks, and which is the best",
        "fledge.train.checkpoint_config:ShowCheckpointsConfig",
        "fledge.train.checkpoint_verbs:show_checkpoints",
        ("path",),
        yaml=False,
    ),
    Verb(
        "checkpoint verify",
        "read every byte of a run's checkpoints and say which are whole",
        "fledge.train.checkpoint_config:VerifyCheckpointsConfig",
        "fledge.train.checkpoint_verbs:verify_checkpoints",
        ("path",),
        yaml=False,
    ),
    Verb(
        "checkpoint reshard",
        "a checkpoint with its optimizer's state in another number of files, 1 for all",
        "fledge.train.checkpoint_config:ReshardConfig",
        "fledge.train.checkpoint_verbs:reshard",
        ("path",),
        aliases=(("out", "out"),),
        yaml=False,
    ),
    Verb(
        "scale sweep",
        "pre-train models of several sizes on several numbers of tokens, for scaling laws",
        "fledge.scaling.config:SweepConfig",
        "fledge.scaling.sweep:sweep",
        aliases=(("out", "out"),),
    ),
    Verb(
        "scale fit",
        "fit L(N), L(D), L(C) and L(N, D) to a sweep, by Chinchilla's three approaches, with intervals and a page",
        "fledge.scaling.config:FitConfig",
        "fledge.scaling.fitted:fit_points",
        ("points",),
        aliases=(("out", "out"),),
    ),
    Verb(
        "scale plan",
        "the compute-optimal size and tokens for a budget of FLOPs, hours or money",
        "fledge.scaling.config:PlanConfig",
        "fledge.scaling.plan:plan",
        ("[fit]",),
    ),
    Verb(
        "scale predict",
        "register what a larger run's loss will be, before it runs",
        "fledge.scaling.config:PredictConfig",
        "fledge.scaling.predict:predict",
        ("fit",),
        aliases=(("out", "out"),),
    ),
    Verb(
        "scale check",
        "compare a finished run with what was predicted of it",
        "fledge.scaling.config:CheckConfig",
        "fledge.scaling.predict:check",
        ("predictions", "run"),
    ),
    Verb(
        "quickstart",
        "raw text to a chat page: every step, with the files in runs/",
        "fledge.cli.quickstart:QuickstartConfig",
        "fledge.cli.quickstart:quickstart",
    ),
    Verb(
        "config schema",
        "JSON schema of a verb's config",
        "fledge.cli.schema:SchemaConfig",
        "fledge.cli.schema:print_schema",
        ("verb",),
        yaml=False,
    ),
    Verb(
        "env",
        "versions, device, threads and the measured matmul peak",
        "fledge.cli.env:EnvConfig",
        "fledge.cli.env:env",
        yaml=False,
    ),
)
