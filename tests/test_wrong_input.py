"""Whatever is wrong with the input: exit status 2, one complete message, nothing half-written."""

import csv
import gzip
import io
import json
import re
import shlex
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from filelock import FileLock
from reference.hub_models import VOCABULARY, write_reference
from refusals import Refusal, check, refusal, summary

import mlmlab
from mlmlab import evaluate, fill_mask, push, report, show_masks
from mlmlab.cli.commands import as_command
from mlmlab.data.config import TokenizerKind
from mlmlab.data.tokenizer import train_tokenizer, word_tokenizer
from mlmlab.errors import Code, Problem, UserError
from mlmlab.runs.folder import run_folder
from mlmlab.train import main

WORDS = [f"w{number}" for number in range(VOCABULARY - 5)]
TEXT = "\n".join(f"{word} and {word}" for word in WORDS)


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files and folders, most of them with something wrong."""
    folder = tmp_path_factory.mktemp("things")
    _write_texts(folder)
    _write_checkpoints(folder)
    _write_options(folder / "conf" / "experiment")
    return folder


def _write_options(folder: Path) -> None:
    folder.mkdir(parents=True)
    package = "# @package _global_\n"
    (folder / "unplaced.yaml").write_text("train:\n  max_steps: 3\n")
    (folder / "broken.yaml").write_text(f"{package}train:\n\tmax_steps: 3\n")
    (folder / "nested.yaml").write_text(f"{package}defaults:\n  - masking: spanbert\n")
    (folder / "dotted.yaml").write_text(f"{package}eval.masking.rate: 0.2\n")
    (folder / "misspelt.yaml").write_text(f"{package}train:\n  max_step: 3\n")


def _write_texts(folder: Path) -> None:
    (folder / "good.txt").write_text(TEXT)
    (folder / "empty.txt").touch()
    (folder / "short.txt").write_text("one line\nand another")
    (folder / "latin.txt").write_bytes("Straße\n".encode("latin-1") * 50)
    (folder / "bad.jsonl").write_text('{"text": "one"}\n{"text": two}\n')
    (folder / "other.jsonl").write_text('{"title": "one"}\n')
    (folder / "null.jsonl").write_text('{"text": null}\n')
    (folder / "cut.json").write_text('[{"text": "one"}, {"text": "tw')
    table = io.StringIO(newline="")
    csv.writer(table).writerows([("label", "review"), ("0", "good")])
    (folder / "reviews.csv").write_text(table.getvalue())
    (folder / "commas.csv").write_text("label,text\n0,one, two\n")
    packed = gzip.compress(TEXT.encode(), compresslevel=0)  # the same from every zlib
    (folder / "cut.txt.gz").write_bytes(packed[: len(packed) // 2])
    parquet = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": WORDS}), parquet)
    (folder / "cut.parquet").write_bytes(parquet.getvalue()[:-40])
    (folder / "fake.parquet").write_text(TEXT)
    with zipfile.ZipFile(folder / "texts.zip", "w") as archive:
        archive.writestr("a.txt", TEXT)


def _write_checkpoints(folder: Path) -> None:
    good = folder / "bert"
    write_reference("bert", good)
    word_tokenizer(WORDS).save(good)
    broken = ("cut", "weightless", "headless", "tokenizerless", "unknown", "garbled", "mistyped")
    for name in broken:
        shutil.copytree(good, folder / name)
    weights = (good / "model.safetensors").read_bytes()
    (folder / "cut" / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    (folder / "weightless" / "model.safetensors").unlink()
    (folder / "tokenizerless" / "tokenizer.json").unlink()
    config = json.loads((good / "config.json").read_text())
    (folder / "unknown" / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    (folder / "garbled" / "config.json").write_text("{not json")
    (folder / "mistyped" / "tokenizer_config.json").write_text('{"mask_token": 3}')
    _write_headless(folder / "headless")
    (folder / "maskless").mkdir()
    tokenizer = word_tokenizer(WORDS)
    text = tokenizer.backend.to_str().replace("<mask>", "<hole>")
    (folder / "maskless" / "tokenizer.json").write_text(text)
    (folder / "larger").mkdir()
    word_tokenizer([*WORDS, "more"]).save(folder / "larger")
    (folder / "garbage").mkdir()
    (folder / "garbage" / "tokenizer.json").write_text('{"model": "none"}')
    (folder / "unfinished").mkdir()
    (folder / "unfinished" / "config.yaml").write_text("seed: 0\n")
    for name in ("scores/a", "scores/b", "garbled_scores"):
        (folder / name).mkdir(parents=True)
        figures = {"checkpoint": name[-1:], "loss": 1.5, "masked_tokens": 9, "own_figures": {}}
        text = json.dumps({**figures, "config": {"eval": {"seed": 0}}})
        (folder / name / "evaluation.json").write_text(text)
    (folder / "garbled_scores" / "evaluation.json").write_text("{}")
    for step in (9, 10):
        (folder / "killed" / "checkpoints" / f"step_{step}").mkdir(parents=True)
    (folder / "killed" / "config.yaml").write_text("seed: 0\n")
    (folder / "sweep" / "1_seed=0").mkdir(parents=True)
    (folder / "sweep" / "1_seed=0" / "config.yaml").write_text("seed: 0\n")
    (folder / "pieces").mkdir()
    train_tokenizer([TEXT], TokenizerKind.BPE, 300).save(folder / "pieces")


def _write_headless(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(str(folder / "model.safetensors"))
    kept = {name: t for name, t in tensors.items() if not name.startswith("cls.")}
    save_file(kept, str(folder / "model.safetensors"))


MAINS: dict[str, Callable[[], object]] = {
    "train": main,
    "evaluate": evaluate.main,
    "fill_mask": fill_mask.main,
    "show_masks": show_masks.main,
    "report": report.main,
    "push": push.main,
}
SHORT = "data.block_size=16 train.max_steps=1 runtime.threads=1"
OWN = f"data=text tokenizer.vocabulary_size=300 model.hidden_size=32 {SHORT}"
BERT = f"+experiment=finetune checkpoint=$/bert data.path=$/good.txt {SHORT}"

WRONG: dict[str, Refusal | list[Refusal]] = {
    # the command: where it is wrong, and how; $ is the folder
    # What one types out of habit
    "train --max_steps 5": ("the command line", Code.SYNTAX),
    "train --learning-rate=1e-4": ("the command line", Code.SYNTAX),
    "train lr=1e-4": ("lr", Code.UNKNOWN_KEY),
    "train train.lr=1e-4": ("train.lr", Code.UNKNOWN_KEY),
    "train mlm_probability=0.3": ("mlm_probability", Code.UNKNOWN_KEY),
    "train $/good.txt": ("the command line", Code.SYNTAX),
    "train data.limit=1e3": ("data.limit", Code.WRONG_TYPE),
    "train train.learning_rate=abc": ("train.learning_rate", Code.WRONG_TYPE),
    f"train {BERT} checkpoint=distilbert-base-uncased": ("checkpoint", Code.NOT_FOUND),
    f"train {BERT} checkpoint=bert-base-cased": ("checkpoint", Code.NOT_FOUND),
    "evaluate --checkpoint $/bert": ("the command line", Code.SYNTAX),
    "evaluate $/bert": ("the command line", Code.SYNTAX),
    "fill_mask --checkpoint $/killed 'a <mask>'": ("checkpoint", Code.NOT_FOUND),
    "fill_mask --checkpoint $/sweep 'a <mask>'": ("checkpoint", Code.NOT_FOUND),
    "evaluate checkpoint=$/sweep data.path=$/good.txt": ("checkpoint", Code.NOT_FOUND),
    "show_masks w1 rate=0.3 --tokenizer $/bert": ("the command line", Code.SYNTAX),
    "show_masks w1 w2 --tokenizer $/bert": ("the command line", Code.SYNTAX),
    "fill_mask checkpoint=$/bert 'a <mask>'": ("the command line", Code.SYNTAX),
    "fill_mask --checkpoint $/bert top_k=3 'a <mask>'": ("the command line", Code.SYNTAX),
    # Keys and values
    "train +train.foo=1": ("train.foo", Code.UNKNOWN_KEY),
    "train train.epoch=3": ("train.epoch", Code.UNKNOWN_KEY),
    "train train.epochs=three": ("train.epochs", Code.WRONG_TYPE),
    "train train.micro_batch_size=few": ("train.micro_batch_size", Code.WRONG_TYPE),
    "train train.weight_decay=some": ("train.weight_decay", Code.WRONG_TYPE),
    "train runtime.deterministic=1": ("runtime.deterministic", Code.WRONG_TYPE),
    "train name=12": ("name", Code.WRONG_TYPE),
    "train train.batch_size=0": ("train.batch_size", Code.INVALID),
    "train train.learning_rate=-1": ("train.learning_rate", Code.INVALID),
    "train train.freeze=[embeding]": ("train.freeze", Code.INVALID),
    "train train.freeze=[layers.2-1]": ("train.freeze", Code.INVALID),
    "train train.freeze=head": ("train.freeze", Code.WRONG_TYPE),
    "train train.freeze=[encoder,head]": ("train.freeze", Code.INVALID),
    "train train.freeze=[layers.1-4] model.layers=4": ("train.freeze", Code.INVALID),
    f"train {BERT} train.freeze=[layers.2]": ("train.freeze", Code.INVALID),
    "train train.layer_decay=1.5": ("train.layer_decay", Code.INVALID),
    "train tracking.sinks=[tensorboard]": ("tracking.sinks", Code.MISSING),
    "train tracking.sinks=[jsonl,jsonl]": ("tracking.sinks", Code.CONFLICT),
    "train tracking.sinks=[jsonl,wandb]": ("tracking.sinks", Code.WRONG_TYPE),
    "train ++tracking.options.Wandb.project=x": ("tracking.options", Code.CONFLICT),
    "train eval.monitor=eval/accuracy": ("eval.monitor", Code.INVALID),
    "train eval.monitor=eval/a/b eval.evaluators=[masked_perplexity,my:A]": (
        "eval.monitor_mode",
        Code.MISSING,
    ),
    "train eval.monitor_mode=max": ("eval.monitor_mode", Code.CONFLICT),
    "evaluate checkpoint=$/bert data.path=$/good.txt eval.evaluators=[accuracy]": [
        ("eval.evaluators", Code.WRONG_TYPE),
        ("eval.evaluators", Code.MISSING),
    ],
    "train masking.rate=1.5": ("masking.rate", Code.INVALID),
    "train masking.rate=0": ("masking.rate", Code.INVALID),
    "train masking.mask_fraction=0.9 masking.random_fraction=0.2": (
        "masking.mask_fraction + masking.random_fraction",
        Code.CONFLICT,
    ),
    "train model.heads=3": ("model.heads", Code.CONFLICT),
    "train model=modernbert_base model.hidden_size=12": ("model.heads", Code.CONFLICT),
    "train model.dropout=1": ("model.dropout", Code.INVALID),
    "train data.block_size=512": ("data.block_size", Code.CONFLICT),
    "train data.layout=rows": ("data.layout", Code.WRONG_TYPE),
    "train data.test_fraction=0": ("data.test_fraction", Code.INVALID),
    "train data.on_bad_row=ignore": ("data.on_bad_row", Code.WRONG_TYPE),
    "train eval.mask_draws=0": ("eval.mask_draws", Code.INVALID),
    "train eval.split=all": ("eval.split", Code.REMOVED_KEY),
    "train eval.batch_size=64": ("eval.batch_size", Code.REMOVED_KEY),
    "train masking.unit=wrod": ("masking.unit", Code.WRONG_TYPE),
    "train masking.unit=no_such_module:Policy": ("masking.unit", Code.NOT_FOUND),
    "train masking.unit=contextlib:closing": ("masking.unit", Code.INVALID),  # it selects nothing
    "train masking.unit=my_ideas:EveryOther masking.budget=exact": (
        "masking.budget",
        Code.CONFLICT,
    ),
    "train eval.masking.mode=static": ("eval.masking.mode", Code.UNKNOWN_KEY),
    "train eval.masking.rate=0": ("eval.masking.rate", Code.INVALID),
    "train train.warmup_fraction=0.1": ("train.warmup_fraction", Code.CONFLICT),
    "evaluate masking.rate=0.3": ("masking.rate", Code.UNKNOWN_KEY),
    "evaluate masking=whole_word": ("the command line", Code.SYNTAX),
    "train tokenizer.vocabulary_size=10": ("tokenizer.vocabulary_size", Code.INVALID),
    "train name=a/b": ("name", Code.INVALID),
    "train runtime.threads=0": ("runtime.threads", Code.INVALID),
    "train runtime.device=cuda": ("runtime.device", Code.UNAVAILABLE),
    "train runtime.precision=fp8": ("runtime.precision", Code.WRONG_TYPE),
    "train runtime.mask_on=gpu": ("runtime.mask_on", Code.REMOVED_KEY),
    "train runtime.parallel=tp": ("runtime.parallel", Code.WRONG_TYPE),
    "train runtime.processes=0": ("runtime.processes", Code.INVALID),
    "train train.early_stopping_patience=0": ("train.early_stopping_patience", Code.INVALID),
    "train debug.profile_steps=-1": ("debug.profile_steps", Code.INVALID),
    "train debug=replay debug.step=3": ("resume", Code.MISSING),
    "train debug=replay": [("debug.step", Code.MISSING), ("resume", Code.MISSING)],
    "train debug.step=3": ("debug.step", Code.CONFLICT),
    "train resume=$": ("resume", Code.NOT_FOUND),
    "train resume=auto": ("resume", Code.MISSING),
    "train debug=one_step 'eval.fill_mask=[no mask here]'": ("eval.fill_mask", Code.MISSING),
    # Hydra's own
    "train model=nothing": ("model", Code.UNKNOWN_OPTION),
    "train +experiment=nothing": ("experiment", Code.UNKNOWN_OPTION),
    "train experiment=eli5": ("the command line", Code.SYNTAX),
    "train +experiment=eli5 +experiment=finetune": ("the command line", Code.SYNTAX),
    "train masking=3": ("the command line", Code.SYNTAX),
    "train train.epochs=[1": ("the command line", Code.SYNTAX),
    "train seed=0,1": ("the command line", Code.SYNTAX),
    "train seed=range(3)": ("the command line", Code.SYNTAX),
    "train +train.epochs=3": ("the command line", Code.SYNTAX),
    "train --config-dir nowhere +experiment=mine": ("--config-dir", Code.NOT_FOUND),
    # A folder of the user's own options
    "train --config-dir $/conf +experiment=unplaced": (
        "experiment/unplaced.yaml",
        Code.UNKNOWN_KEY,
    ),
    "train --config-dir $/conf +experiment=broken": (
        "$/conf/experiment/broken.yaml, line 3, column 1",
        Code.CORRUPT,
    ),
    "train --config-dir $/conf +experiment=nested": (
        "experiment/nested.yaml",
        Code.UNKNOWN_OPTION,
    ),
    "train --config-dir $/conf +experiment=dotted": ("eval.masking.rate", Code.UNKNOWN_KEY),
    "train --config-dir $/conf +experiment=misspelt": ("train.max_step", Code.UNKNOWN_KEY),
    "evaluate --config-dir $/conf +experiment=unplaced checkpoint=$/bert": (
        "experiment/unplaced.yaml",
        Code.UNKNOWN_KEY,
    ),
    # Help
    "train --help maskin": ("--help maskin", Code.UNKNOWN_KEY),
    "evaluate --help train.epochs": ("--help train.epochs", Code.UNKNOWN_KEY),
    # Sweeps, of which no job is run
    "train -m seed=0,1 masking.rate=0.15,3 debug=one_step": ("masking.rate", Code.INVALID),
    "train -m train.epochs=1,three seed=0,x debug=one_step": [
        ("seed", Code.WRONG_TYPE),
        ("train.epochs", Code.WRONG_TYPE),
    ],
    "train -m data.block_size=16,400 debug=one_step": ("data.block_size", Code.CONFLICT),
    "train -m train.epoch=3,4 debug=one_step": ("train.epoch", Code.UNKNOWN_KEY),
    "train -m seed=0,1 masking=bert,nope debug=one_step": ("masking", Code.UNKNOWN_OPTION),
    "train -m seed=0,1 run_dir=x debug=one_step": ("run_dir", Code.CONFLICT),
    "train -m seed=0,1 resume=x debug=one_step": ("resume", Code.CONFLICT),
    # Text
    "train data.source=file": ("data.path", Code.MISSING),
    "train data.path=$/good.txt": ("data.path", Code.CONFLICT),
    f"train {OWN} data.source=documents": ("documents", Code.MISSING),
    f"train {OWN} data.path=missing.txt": ("data.path", Code.NOT_FOUND),
    f"train {OWN} data.path=$": ("data.path", Code.NOT_FOUND),
    f"train {OWN} data.path='$/*.nothing'": ("data.path", Code.NOT_FOUND),
    f"train {OWN} data.path=$/good.txt data.eval_path=gone.txt": ("data.path", Code.NOT_FOUND),
    f"train {OWN} 'data.path=[$/good.txt,$/*.nothing]'": ("data.path", Code.NOT_FOUND),
    f"train {OWN} data.path=[]": ("data.path", Code.MISSING),
    f"train {OWN} data.path=[1]": ("data.path", Code.WRONG_TYPE),
    f"train {OWN} data.path=$/good.txt data.eval_path=[]": ("data.eval_path", Code.INVALID),
    f"train {OWN} data.path=$/good.txt data.eval_files=test.txt": (
        "data.eval_files",
        Code.CONFLICT,
    ),
    f"train {OWN} data.path=$/good.txt data.train_examples=0": (
        "data.train_examples",
        Code.INVALID,
    ),
    f"train {OWN} data.path=$/good.txt data.train_examples=9999": (
        "data.train_examples",
        Code.NO_TEXT,
    ),
    f"train {OWN} data.path=$/good.txt data.test_examples=9999": (
        "data.test_examples",
        Code.NO_TEXT,
    ),
    "train data.builtin=wikipedia": ("data.builtin", Code.WRONG_TYPE),
    f"train {OWN} data.path=$/empty.txt": [("data", Code.NO_TEXT), ("data", Code.NO_TEXT)],
    f"train {OWN} data.path=$/short.txt data.block_size=64": [
        ("data", Code.NO_TEXT),
        ("data", Code.NO_TEXT),
    ],
    f"train {OWN} data.path=$/latin.txt": ("data.encoding", Code.ENCODING),
    f"train {OWN} data.path=$/good.txt data.encoding=utf-99": ("data.encoding", Code.INVALID),
    f"train {OWN} data.path=$/reviews.csv": ("data.text_field", Code.NO_TEXT),
    f"train {OWN} data.path=$/commas.csv": ("$/commas.csv, row 1", Code.BAD_ROW),
    f"train {OWN} data.path=$/bad.jsonl": ("$/bad.jsonl, row 2", Code.BAD_ROW),
    f"train {OWN} data.path=$/other.jsonl": ("data.text_field", Code.NO_TEXT),
    f"train {OWN} data.path=$/null.jsonl": ("data.text_field", Code.NO_TEXT),
    f"train {OWN} data.path=$/null.jsonl data.on_bad_row=skip": [
        ("data", Code.NO_TEXT),
        ("data", Code.NO_TEXT),
    ],
    f"train {OWN} data.path=$/cut.json": ("$/cut.json, row 2", Code.CORRUPT),
    f"train {OWN} data.path=$/cut.txt.gz": ("$/cut.txt.gz, after row 59", Code.CORRUPT),
    f"train {OWN} data.path=$/cut.parquet": ("$/cut.parquet", Code.CORRUPT),
    f"train {OWN} data.path=$/fake.parquet": ("data.path", Code.UNSUPPORTED),
    f"train {OWN} data.path=$/texts.zip": ("data.path", Code.UNSUPPORTED),
    f"train {OWN} data.path=$/good.txt data.layout=lines data.block_size=2": (
        "data.block_size",
        Code.MISMATCH,
    ),
    "train data=text data.source=url": ("data.url", Code.MISSING),
    f"train {OWN} data.source=url data.url=ftp://host/a.txt": ("data.url", Code.INVALID),
    f"train {OWN} data.source=url data.url=http://127.0.0.1:9/a.txt": (
        "data.url",
        Code.UNREACHABLE,
    ),
    "train data=text data.source=hub": ("data.repository", Code.MISSING),
    "train data.repository=stanfordnlp/imdb": ("data.repository", Code.CONFLICT),
    f"train {OWN} data.source=hub data.repository=a/b data.eval_repository=c/d": (
        "data.eval_files",
        Code.MISSING,
    ),
    "train +experiment=imdb_distilbert data.eval_path=$/good.txt": (
        "data.eval_path",
        Code.CONFLICT,
    ),
    f"train {OWN} data.source=hub data.repository=imdb/": ("data.repository", Code.INVALID),
    f"train {OWN} data.source=hub data.repository=stanfordnlp/imdb data.files=a.parquet": (
        "data.repository",
        Code.UNREACHABLE,
    ),
    # Checkpoints and tokenizers
    "train checkpoint=no/such/folder model=from_checkpoint": ("checkpoint", Code.NOT_FOUND),
    "train checkpoint=$ model=from_checkpoint": ("checkpoint", Code.NOT_FOUND),
    "train checkpoint=$/bert": ("model", Code.CONFLICT),
    "train checkpoint=null model=from_checkpoint": [
        ("model", Code.MISSING),
        ("model.dropout", Code.MISSING),
    ],
    f"train {BERT} checkpoint=$/garbled": ("$/garbled/config.json", Code.CORRUPT),
    f"train {BERT} checkpoint=$/unknown": ("checkpoint $/unknown/config.json", Code.UNSUPPORTED),
    f"train {BERT} checkpoint=$/cut": ("checkpoint $/cut/model.safetensors", Code.CORRUPT),
    f"train {BERT} checkpoint=$/weightless": ("checkpoint", Code.NOT_FOUND),
    f"train {BERT} checkpoint=$/headless": ("checkpoint $/headless", Code.MISMATCH),
    f"train {BERT} checkpoint=$/tokenizerless": ("tokenizer.path", Code.NOT_FOUND),
    f"train {BERT} checkpoint=$/mistyped": ("$/mistyped/tokenizer_config.json", Code.CORRUPT),
    f"train {BERT} tokenizer.path=$/maskless": ("tokenizer.path", Code.UNSUPPORTED),
    f"train {BERT} tokenizer.path=$/garbage": ("tokenizer.path", Code.CORRUPT),
    f"train {BERT} tokenizer.path=$/larger": ("tokenizer.path", Code.MISMATCH),
    f"train {BERT} data.block_size=64": ("data.block_size", Code.MISMATCH),
    # Folders
    "train run_dir=$": ("run_dir", Code.IN_USE),
    "train run_dir=$/good.txt/run": ("run_dir", Code.NOT_WRITABLE),
    "train run_dir=$/in_use": ("run_dir", Code.IN_USE),
    # Evaluation
    "evaluate data.path=$/good.txt": ("checkpoint", Code.MISSING),
    "evaluate checkpoint=$/bert": ("data.path", Code.MISSING),
    "evaluate checkpoint=$/unfinished data.path=$/good.txt": ("checkpoint", Code.CORRUPT),
    "evaluate checkpoint=$/bert train.epochs=3": ("train.epochs", Code.UNKNOWN_KEY),
    "evaluate model=tiny": ("the command line", Code.SYNTAX),
    "evaluate checkpoint=$/bert,$/cut": ("the command line", Code.SYNTAX),
    "evaluate checkpoint=$/bert data.path=$/empty.txt data.block_size=16": ("data", Code.NO_TEXT),
    "evaluate checkpoint=$/bert data.path=$/good.txt": ("data.block_size", Code.MISMATCH),
    "evaluate checkpoint=$/bert data.path=$/good.txt data.block_size=16 out=$/scores/a": (
        "out",
        Code.NOT_WRITABLE,
    ),
    # Fill-mask
    "fill_mask": ("the command line", Code.SYNTAX),
    f"fill_mask --checkpoint {'a' * 300} 'w1 <mask>'": ("checkpoint", Code.NOT_FOUND),
    "fill_mask --checkpoint $/bert": ("the command line", Code.SYNTAX),
    "fill_mask --checkpoint $/bert --top-k 0 'w1 <mask>'": ("the command line", Code.SYNTAX),
    "fill_mask --checkpoint $/bert 'w1 w2'": ("the text", Code.MISSING),
    "fill_mask --checkpoint $/bert --targets 'w1 w2' '<mask>'": ("targets", Code.INVALID),
    "fill_mask --checkpoint $/mistyped '<mask>'": (
        "$/mistyped/tokenizer_config.json",
        Code.CORRUPT,
    ),
    "fill_mask --checkpoint $/nowhere '<mask>'": ("checkpoint", Code.NOT_FOUND),
    f"fill_mask --checkpoint $/bert '<mask> {' '.join(WORDS[:60])}'": ("the text", Code.INVALID),
    # Show-masks
    "show_masks w1 --tokenizer $/bert --rate 1.5": ("masking.rate", Code.INVALID),
    "show_masks w1 --tokenizer $/bert --unit wrod": ("masking.unit", Code.WRONG_TYPE),
    "show_masks w1 --tokenizer $/bert --option share": ("the command line", Code.SYNTAX),
    "show_masks w1 --tokenizer $/bert --option share=1": ("masking.options", Code.INVALID),
    "show_masks w1 --tokenizer $/bert --epochs 0": ("the command line", Code.SYNTAX),
    "show_masks w1 --tokenizer $/gone": ("tokenizer.path", Code.NOT_FOUND),
    # Report
    "report": ("the command line", Code.SYNTAX),
    "report $/gone": ("RUNS_DIR", Code.NOT_FOUND),
    "report $/unfinished": ("RUNS_DIR", Code.NOT_FOUND),
    "report $/scores $/garbled_scores": ("$/garbled_scores", Code.CORRUPT),
    "report $/scores --out $/good.txt": ("--out", Code.NOT_WRITABLE),
    "report $/scores --baseline checkpoint=c": ("--baseline", Code.NOT_FOUND),
    "report $/scores --baseline checkpoint": ("the command line", Code.SYNTAX),
    # The Hub
    "push $/bert": ("the command line", Code.SYNTAX),
    "push $/bert tiny": ("OWNER/NAME", Code.INVALID),
    "push $/gone someone/tiny": ("RUN_OR_EXPORT_DIR", Code.NOT_FOUND),
    "push $/unfinished someone/tiny": ("RUN_OR_EXPORT_DIR", Code.NOT_FOUND),
    "push $/scores someone/tiny": ("RUN_OR_EXPORT_DIR", Code.NOT_FOUND),
    "push $/bert someone/tiny --tensorboard": ("--tensorboard", Code.NOT_FOUND),
    "push $/bert someone/tiny": ("OWNER/NAME", Code.UNREACHABLE),  # HF_HUB_OFFLINE=1
    "train train.push_to_hub=tiny": ("train.push_to_hub", Code.INVALID),
    "train train.push_to_hub=someone/tiny": ("train.push_to_hub", Code.UNREACHABLE),
    "train -m seed=0,1 train.push_to_hub=someone/tiny debug=one_step": (
        "train.push_to_hub",
        Code.CONFLICT,
    ),
}

MESSAGES = Path(__file__).with_name("messages.txt")
"""Every message in full, as documentation and as the place to improve their words."""
REGENERATE = "python -m pytest tests/test_wrong_input.py --regenerate-messages"
HEAD = f"""\
What each command of tests/test_wrong_input.py says. Do not edit, but run
{REGENERATE}
$ is the folder of the files, ... what a library or the system says.
"""
OTHERS_WORDS = re.compile(
    r"(a damaged \w+ file: |a file that cannot be read: |garbage/tokenizer\.json: "
    r"|cannot be reached \(|invalid choice: '\w+' \().*?(?=\)?$)"
)


def golden() -> dict[str, str]:
    """The messages of messages.txt by their commands."""
    entries = MESSAGES.read_text(encoding="utf-8").split("\n\n$ ")[1:]
    return dict(entry.rstrip("\n").split("\n", 1) for entry in entries)


def put(line: str, message: str) -> None:
    """Writes one message to messages.txt, and drops those that no command gives."""
    with FileLock(f"{tempfile.gettempdir()}/mlmlab-messages.lock"):  # pytest's other processes
        messages = (golden() if MESSAGES.exists() else {}) | {line: message}
        entries = (f"\n$ {line}\n{messages[line]}\n" for line in WRONG if line in messages)
        MESSAGES.write_text("".join([HEAD, *entries]), encoding="utf-8")


def portable(error: UserError, things: Path) -> UserError:
    """The same error on every machine."""

    def replaced(text: str) -> str:
        here = text.replace(str(things), "$").replace(str(Path.cwd()), ".")
        return OTHERS_WORDS.sub(r"\1...", here)

    # Within the problems, because lines are wrapped at the width that paths have.
    return UserError(
        Problem(*map(replaced, (p.where, p.found, p.expected, p.remedy)), code=p.code)
        for p in error.problems
    )


Command = Callable[[str], UserError]


@pytest.fixture
def refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    fresh_cache: Path,
) -> Command:
    """Runs a command in an empty folder; gives its error after checking what is always so."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # the command sets it: this takes it back
    monkeypatch.setattr(sys, "path", [*sys.path])  # so is this
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    def run(line: str) -> UserError:
        name, *arguments = shlex.split(line)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        with pytest.raises(SystemExit) as end:
            as_command(MAINS[name])
        assert end.value.code == 2
        error = end.value.__context__
        assert isinstance(error, UserError)
        output = capfd.readouterr()
        assert output.out == ""
        assert output.err == f"mlmlab: {error}\n"
        assert list(folder.iterdir()) == [], "something was written"
        left = [path for path in fresh_cache.rglob("*") if path.suffix in (".building", ".partial")]
        assert left == [], "something is half-written"
        return error

    return run


@pytest.mark.parametrize("line", WRONG)
def test_wrong_input_is_one_complete_message_and_nothing_is_written(
    refused: Command, things: Path, pytestconfig: pytest.Config, line: str
) -> None:
    before = sorted(things.rglob("*"))
    if "in_use" in line:
        with run_folder(mlmlab.compose(f"run_dir={things / 'in_use'}")):
            error = refused(line.replace("$", str(things)))
        shutil.rmtree(things / "in_use")
    else:
        error = refused(line.replace("$", str(things)))
    assert sorted(things.rglob("*")) == before
    error = portable(error, things)
    expected = WRONG[line]
    expected = expected if isinstance(expected, list) else [expected]
    assert [summary(problem) for problem in error.problems] == expected
    if pytestconfig.option.regenerate_messages:
        put(line, str(error))
    assert golden().get(line) == str(error), f"another message than in messages.txt: {REGENERATE}"


def test_every_message_in_the_golden_file_is_that_of_a_command(pytestconfig: pytest.Config) -> None:
    if not pytestconfig.option.regenerate_messages:
        assert list(golden()) == list(WRONG), f"messages.txt is out of date: {REGENERATE}"
        assert MESSAGES.read_text(encoding="utf-8").startswith(HEAD), REGENERATE


def test_a_cache_that_cannot_be_written_is_named(
    refused: Command, things: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLMLAB_CACHE", str(things / "good.txt" / "cache"))
    (problem,) = refused("train debug=one_step").problems
    check(problem, "the cache folder", Code.NOT_WRITABLE, things / "good.txt", "MLMLAB_CACHE")


def test_a_file_in_place_of_the_folder_of_runs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "small_world").touch()
    with refusal("name", Code.NOT_WRITABLE, "runs/small_world"), run_folder(mlmlab.compose()):
        pass


def test_a_run_folder_is_free_again_when_its_run_is_over(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = mlmlab.compose(f"run_dir={folder}")
    with run_folder(config), refusal("run_dir", Code.IN_USE, folder):
        mlmlab.run(config, quiet=True)
    with refusal("run_dir", Code.IN_USE, folder):
        mlmlab.run(config, quiet=True)
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]
