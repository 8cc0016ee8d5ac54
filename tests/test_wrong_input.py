"""Whatever is wrong with the input: exit status 2, one complete message, nothing half-written."""

import csv
import gzip
import io
import json
import re
import shlex
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from reference.hub_models import VOCABULARY, write_reference

import mlmlab
from mlmlab import evaluate, fill_mask
from mlmlab.cli.hydra_errors import as_command
from mlmlab.data.config import TokenizerKind
from mlmlab.data.tokenizer import train_tokenizer, word_tokenizer
from mlmlab.runs.folder import run_folder
from mlmlab.train import train

WORDS = [f"w{number}" for number in range(VOCABULARY - 5)]
TEXT = "\n".join(f"{word} and {word}" for word in WORDS)


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files and folders, most of them with something wrong."""
    folder = tmp_path_factory.mktemp("things")
    _write_texts(folder)
    _write_checkpoints(folder)
    return folder


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
    packed = gzip.compress(TEXT.encode())
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
    (folder / "pieces").mkdir()
    train_tokenizer([TEXT], TokenizerKind.BPE, 300).save(folder / "pieces")


def _write_headless(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(str(folder / "model.safetensors"))
    kept = {name: t for name, t in tensors.items() if not name.startswith("cls.")}
    save_file(kept, str(folder / "model.safetensors"))


SHORT = "data.block_size=16 train.max_steps=1 runtime.threads=1"
OWN = f"data=text tokenizer.vocabulary_size=300 model.hidden_size=32 {SHORT}"
BERT = f"+experiment=finetune checkpoint=$/bert data.path=$/good.txt {SHORT}"

WRONG: dict[str, tuple[str, str, str, str]] = {
    # the command: what its message says after where, found, expected and do; $ is the folder
    # Keys and values
    "train +train.foo=1": (
        "train.foo: there is no such key", "train.foo=1", "one of train.epochs,", "remove train.foo"
    ),
    "train train.epoch=3": (
        "train.epoch: there is no such key", "train.epoch=3", "one of", "perhaps train.epochs=3"
    ),
    "train train.epochs=three": ("train.epochs", "three", "a whole number", "train.epochs=1"),
    "train train.batch_size=0": ("train.batch_size", "0", "at least 1", "train.batch_size=8"),
    "train train.learning_rate=-1": ("train.learning_rate", "-1", "above 0", "2e-05"),
    "train train.freeze=[embeding]": ("train.freeze", "embeding", "embeddings.norm", "=[embed"),
    "train train.freeze=[layers.2-1]": ("train.freeze", "layers.2-1", "layers.1", "layers.0-1]"),
    "train train.freeze=head": ("train.freeze", "head", "a list of texts", "train.freeze=[]"),
    "train train.freeze=[encoder,head]": (
        "train.freeze", "encoder, head: the whole model", "a part that still trains", "=[encoder]"
    ),
    "train train.freeze=[layers.1-4] model.layers=4": (
        "train.freeze", "layers.4: no parameter matches", "layers.0 to layers.3", "layers.0-3]"
    ),
    f"train {BERT} train.freeze=[layers.2]": (
        "train.freeze", "layers.2: no parameter matches", "layers.0 to layers.1", "layers.0-1]"
    ),
    "train train.layer_decay=1.5": (
        "train.layer_decay", "1.5", "above 0 and at most 1", "train.layer_decay=1.0"
    ),
    "train masking.rate=1.5": ("masking.rate", "1.5", "at least 0 and at most 1", "rate=0.15"),
    "train masking.rate=0": ("masking.rate", "0", "above 0", "masking.rate=0.15"),
    "train masking.mask_fraction=0.9 masking.random_fraction=0.2": (
        "masking.mask_fraction + masking.random_fraction", "0.9 + 0.2", "at most 1", "=0.8"
    ),
    "train model.heads=3": (
        "model.heads", "3, with model.hidden_size=128", "a divisor", "model.heads=2"
    ),
    "train model.dropout=1": ("model.dropout", "1.0", "below 1", "model.dropout=0.1"),
    "train data.block_size=512": (
        "data.block_size", "512", "at most model.max_positions=128", "model.max_positions=512"
    ),
    "train data.layout=rows": ("data.layout", "rows", "packed, lines, documents", "packed"),
    "train data.test_fraction=0": ("data.test_fraction", "0", "above 0 and below 1", "=0.2"),
    "train data.on_bad_row=ignore": ("data.on_bad_row", "ignore", "stop, skip", "=stop"),
    "train eval.mask_draws=0": ("eval.mask_draws", "0", "at least 1", "eval.mask_draws=1"),
    "train eval.split=all": ("eval.split", "all", "test documents", "remove"),
    "train eval.batch_size=64": ("eval.batch_size", "64", "8,192", "remove"),
    "train eval.masking.mode=static": (
        "eval.masking.mode", "static", "eval.masking.rate", "masking.mode=static"
    ),
    "train eval.masking.rate=0": ("eval.masking.rate", "0", "above 0", "eval.masking.rate=0.15"),
    "train train.warmup_fraction=0.1": (
        "train.warmup_fraction", "0.1", "train.warmup_steps", "train.warmup_steps=0"
    ),
    "evaluate masking.rate=0.3": ("masking.rate", "0.3", "eval", "eval.masking.rate=0.3"),
    "evaluate masking=whole_word": (
        "the command line", "override masking@eval.masking?", "GROUP=OPTION", "--help"
    ),
    "train tokenizer.vocabulary_size=10": (
        "tokenizer.vocabulary_size", "10", "at least 300", "tokenizer.vocabulary_size=8192"
    ),
    "train name=a/b": ("name", "a/b", "letters, digits", "name=my-run"),
    "train runtime.threads=0": ("runtime.threads", "0", "at least 1", "runtime.threads=null"),
    "train runtime.device=cuda": (
        "runtime.device", "PyTorch sees no CUDA", "a CUDA device", "runtime.device=auto"
    ),
    "train runtime.precision=fp8": ("runtime.precision", "fp8", "fp32, bf16, fp16", "=auto"),
    "train runtime.mask_on=gpu": ("runtime.mask_on", "gpu", "a thread", "remove"),
    "train runtime.parallel=tp": ("runtime.parallel", "tp", "ddp, fsdp", "runtime.parallel=ddp"),
    "train runtime.processes=0": ("runtime.processes", "0", "at least 1", "runtime.processes=null"),
    "train train.early_stopping_patience=0": (
        "train.early_stopping_patience", "0", "at least 1, or null", "_patience=null"
    ),
    "train debug.profile_steps=-1": ("debug.profile_steps", "-1", "at least 0", "profile_steps=0"),
    "train debug=replay debug.step=3": ("resume", "null, with", "the folder", "resume=RUN_DIR"),
    "train debug=replay": ("debug.step", "null, with", "the step to replay", "debug.step=1"),
    "train debug.step=3": ("debug.step", "3, with", "for debug=replay alone", "debug=replay"),
    "train resume=$": ("resume", "no config.yaml", "the folder of a run", "resume=RUN_DIR"),
    "train resume=auto": ("resume", "auto, with run_dir=null", "which run", "resume=auto"),
    "train debug=one_step 'eval.fill_mask=[no mask here]'": (
        "the text", "no mask here", "at least one <mask>", "write <mask>"
    ),
    # Hydra's own
    "train model=nothing": ("model", "model=nothing", "one of bert_base, dist", "model=tiny"),
    "train +experiment=nothing": (
        "experiment", "experiment=nothing", "one of eli5, finetune", "+experiment="
    ),
    "train experiment=eli5": (
        "the command line", "use +experiment=eli5", "GROUP=OPTION", "--help"
    ),
    "train +experiment=eli5 +experiment=finetune": (
        "the command line", "Multiple values for experiment", "+experiment=NAME", "--help"
    ),
    "train masking=3": ("the command line", "masking=3", "GROUP=OPTION", "--help"),
    "train train.epochs=[1": ("the command line", "train.epochs=[1", "KEY=VALUE", "train.epochs="),
    "train seed=0,1": ("the command line", "'seed=0,1'", "KEY=VALUE", "--help"),
    "train seed=range(3)": ("the command line", "requires --multirun", "KEY=VALUE", "--help"),
    "train +train.epochs=3": (
        "the command line", "Either remove + prefix: 'train.epochs=3'", "GROUP=OPTION", "--help"
    ),
    # Text
    "train data.source=file": ("data.path", "null", "because data.source=file", "data.path=FILE"),
    "train data.path=$/good.txt": (
        "data.path", "with data.source=builtin", "the source that reads it", "data.source=file"
    ),
    f"train {OWN} data.path=missing.txt": (
        "data.path", "missing.txt: no such file", "a .txt, .jsonl, .json, .csv", "check the path"
    ),
    f"train {OWN} data.path=$": ("data.path", "a folder", "a .txt", "data.path='$/*'"),
    f"train {OWN} data.path='$/*.nothing'": (
        "data.path", "*.nothing: no file matches", "a pattern with *", "data.path='FOLDER/*.txt'"
    ),
    f"train {OWN} data.path=$/good.txt data.eval_path=gone.txt": (
        "data.path", "gone.txt: no such file", "a .txt", "check the path"
    ),
    f"train {OWN} data.path=$/empty.txt": (
        "data", "empty.txt: 0 tokens in its training documents", "at least one block", "more text"
    ),
    f"train {OWN} data.path=$/short.txt data.block_size=64": (
        "data", "short.txt", "at least one block of data.block_size=64", "a smaller data.block_size"
    ),
    f"train {OWN} data.path=$/latin.txt": (
        "data.encoding", "row 1: byte 0xdf is not utf-8", "the encoding that", "latin-1"
    ),
    f"train {OWN} data.path=$/good.txt data.encoding=utf-99": (
        "data.encoding", "utf-99", "a text encoding that Python knows", "data.encoding=utf-8"
    ),
    f"train {OWN} data.path=$/reviews.csv": (
        "data.text_field", "has the columns: label, review", "the column", "data.text_field=COLUMN"
    ),
    f"train {OWN} data.path=$/commas.csv": (
        "commas.csv, row 1", "3 fields", "2 fields, as in the first line", "data.on_bad_row=skip"
    ),
    f"train {OWN} data.path=$/bad.jsonl": (
        "bad.jsonl, row 2", 'Expecting value (column 10): {"text": two}',
        "one JSON object per line",
        "data.on_bad_row=skip"
    ),
    f"train {OWN} data.path=$/other.jsonl": (
        "data.text_field", "row 1: no text, but: title", "dots descend", "data.text_field=FIELD"
    ),
    f"train {OWN} data.path=$/null.jsonl": (
        "data.text_field", "row 1: text is null", "text, or a list of texts", "on_bad_row=skip"
    ),
    f"train {OWN} data.path=$/null.jsonl data.on_bad_row=skip": (
        "data", "bad rows left out: 1, first data.text_field", "at least one block", "more text"
    ),
    f"train {OWN} data.path=$/cut.json": (
        "cut.json, row 2", "Unterminated string", "a JSON array of objects", "fix the file"
    ),
    f"train {OWN} data.path=$/cut.txt.gz": (
        "cut.txt.gz", "a damaged gzip file", "a complete one", "download or compress it again"
    ),
    f"train {OWN} data.path=$/cut.parquet": (
        "cut.parquet", "a damaged parquet file", "a complete one", "download or write it again"
    ),
    f"train {OWN} data.path=$/fake.parquet": (
        "data.path", "fake.parquet: no parquet file", "a .txt", "download or write it again"
    ),
    f"train {OWN} data.path=$/texts.zip": ("data.path", "a zip archive", "a .txt", "unpack it"),
    f"train {OWN} data.path=$/good.txt data.layout=lines data.block_size=2": (
        "data.block_size", "2, with 2 special tokens", "at least 3", "data.block_size=128"
    ),
    "train data=text data.source=url": (
        "data.url", "null", "because data.source=url", "data.url=https://HOST/FILE"
    ),
    f"train {OWN} data.source=url data.url=ftp://host/a.txt": (
        "data.url", "ftp://host/a.txt", "https://host/path", "data.source=file data.path=FILE"
    ),
    f"train {OWN} data.source=url data.url=http://127.0.0.1:9/a.txt": (
        "data.url", "a.txt: it cannot be reached", "can be downloaded", "data.source=file"
    ),
    "train data=text data.source=hub": (
        "data.repository", "null", "because data.source=hub", "data.repository=OWNER/NAME"
    ),
    f"train {OWN} data.source=hub data.repository=imdb/": (
        "data.repository", "imdb/", "OWNER/NAME of a data set", "stanfordnlp/imdb"
    ),
    f"train {OWN} data.source=hub data.repository=stanfordnlp/imdb data.files=a.parquet": (
        "data.repository", "the Hub cannot be reached", "a connection", "data.source=file"
    ),
    # Checkpoints and tokenizers
    "train checkpoint=no/such/folder model=from_checkpoint": (
        "checkpoint", "no/such/folder: no such", "owner/name", "checkpoint=owner/name"
    ),
    "train checkpoint=$ model=from_checkpoint": (
        "checkpoint", "no config.json in it", "a folder with config.json", "checkpoint=DIR"
    ),
    "train checkpoint=$/bert": (
        "model", "model.hidden_size=128", "nothing but model.dropout", "model=from_checkpoint"
    ),
    "train checkpoint=null model=from_checkpoint": (
        "model", "checkpoint=null, and no model.family", "an architecture", "model=tiny"
    ),
    f"train {BERT} checkpoint=$/garbled": (
        "config.json", "Expecting property name", "a JSON object", "fetch or save"
    ),
    f"train {BERT} checkpoint=$/unknown": ("config.json", "gpt2", "bert, roberta", "checkpoint"),
    f"train {BERT} checkpoint=$/cut": (
        "cut/model.safetensors", "a file that cannot be read", "complete weights", "fetch or copy"
    ),
    f"train {BERT} checkpoint=$/weightless": (
        "checkpoint", "no weights in it", "model.safetensors", "checkpoint=DIR"
    ),
    f"train {BERT} checkpoint=$/headless": (
        "headless", "without a masked-LM head", "cls.predictions", "checkpoint_head=fresh"
    ),
    f"train {BERT} checkpoint=$/tokenizerless": (
        "tokenizer.path", "no tokenizer there", "tokenizer.json", "tokenizer.path=FOLDER_OR_FILE"
    ),
    f"train {BERT} checkpoint=$/mistyped": (
        "mistyped/tokenizer_config.json", "mask_token=3", "content", "the file"
    ),
    f"train {BERT} tokenizer.path=$/maskless": (
        "tokenizer.path", "without a mask token", "<mask> or [MASK]", "masked language model"
    ),
    f"train {BERT} tokenizer.path=$/garbage": (
        "tokenizer.path", "garbage/tokenizer.json", "the tokenizers library", "another one"
    ),
    f"train {BERT} tokenizer.path=$/larger": (
        "tokenizer.path", "a tokenizer of 121 ids", "trained with", "tokenizer.path=null"
    ),
    f"train {BERT} data.block_size=64": (
        "data.block_size", "bert has 40 positions", "at most 40", "data.block_size=40"
    ),
    # Folders
    "train run_dir=$": ("run_dir", "and not empty", "never writes over another", "ANOTHER_FOLDER"),
    "train run_dir=$/good.txt/run": (
        "run_dir", "good.txt is no folder", "can be created and written", "run_dir=ANOTHER_FOLDER"
    ),
    "train run_dir=$/in_use": (
        "run_dir", "another run is at work now", "a folder of its own", "run_dir=ANOTHER_FOLDER"
    ),
    # Evaluation
    "evaluate data.path=$/good.txt": (
        "checkpoint", "null", "the model to evaluate", "checkpoint=RUN_DIR"
    ),
    "evaluate checkpoint=$/bert": ("data.path", "null", "the file to read", "data.path=FILE"),
    "evaluate checkpoint=$/unfinished data.path=$/good.txt": (
        "checkpoint", "lacks 'data'", "a run's folder", "export"
    ),
    "evaluate checkpoint=$/bert train.epochs=3": (
        "train.epochs: there is no such key", "train.epochs=3", "one of checkpoint", "remove"
    ),
    "evaluate model=tiny": (
        "the command line", "Could not override 'model'", "GROUP=OPTION", "--help"
    ),
    "evaluate checkpoint=$/bert,$/cut": (
        "the command line", "Ambiguous value for argument 'checkpoint=", "GROUP=OPTION", "--help"
    ),
    "evaluate checkpoint=$/bert data.path=$/empty.txt data.block_size=16": (
        "data", "empty.txt: 0 tokens", "at least one block", "more text"
    ),
    "evaluate checkpoint=$/bert data.path=$/good.txt": (
        "data.block_size", "128, and $/bert has 40 positions", "at most 40", "data.block_size=40"
    ),
    # Fill-mask
    "fill_mask": ("the command line", "--checkpoint", "[--top-k K]", "--help"),
    f"fill_mask --checkpoint {'a' * 300} 'w1 <mask>'": (
        "checkpoint", "aaa: no such folder", "owner/name", "checkpoint=owner/name"
    ),
    "fill_mask --checkpoint $/bert": ("the command line", "a TEXT", "TEXT", "--help"),
    "fill_mask --checkpoint $/bert --top-k 0 'w1 <mask>'": (
        "the command line", "--top-k: 0", "--top-k K", "--help"
    ),
    "fill_mask --checkpoint $/bert 'w1 w2'": (
        "the text", "w1 w2", "at least one <mask>", "write <mask> where"
    ),
    "fill_mask --checkpoint $/bert --targets 'w1 w2' '<mask>'": (
        "targets", "'w1 w2', 2 tokens: w1 w2", "one token of this tokenizer", "a leading space"
    ),
    "fill_mask --checkpoint $/mistyped '<mask>'": (
        "mistyped/tokenizer_config.json", "mask_token=3", "content", "the file"
    ),
    "fill_mask --checkpoint $/nowhere '<mask>'": (
        "checkpoint", "nowhere: no such folder", "owner/name", "checkpoint=owner/name"
    ),
    f"fill_mask --checkpoint $/bert '<mask> {' '.join(WORDS[:60])}'": (
        "the text", "63 tokens", "at most 40", "shorten the text"
    ),
}  # fmt: skip

Command = Callable[[str], str]


@pytest.fixture
def refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    fresh_cache: Path,
) -> Command:
    """Runs a command in an empty folder; gives its message after checking what is always so."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # the command sets it: this takes it back

    def run(line: str) -> str:
        name, *arguments = shlex.split(line)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        main = {"train": train, "evaluate": evaluate.main, "fill_mask": fill_mask.main}[name]
        with pytest.raises(SystemExit) as end:
            as_command(main)
        assert end.value.code == 2
        output = capfd.readouterr()
        assert output.out == ""
        assert "Traceback" not in output.err
        assert output.err.startswith("mlmlab: ")
        assert output.err.count("mlmlab: ") == 1
        assert list(folder.iterdir()) == [], "something was written"
        left = [path for path in fresh_cache.rglob("*") if path.suffix in (".building", ".partial")]
        assert left == [], "something is half-written"
        return " ".join(output.err.split())

    return run


@pytest.mark.parametrize("line", WRONG)
def test_wrong_input_is_one_complete_message_and_nothing_is_written(
    refused: Command, things: Path, tmp_path: Path, line: str
) -> None:
    before = sorted(things.rglob("*"))
    if "in_use" in line:
        with run_folder(mlmlab.compose(f"run_dir={things / 'in_use'}")):
            message = refused(line.replace("$", str(things)))
        shutil.rmtree(things / "in_use")
    else:
        message = refused(line.replace("$", str(things)))
    parts = re.match("mlmlab: (.*?) found (.*?) expected (.*?) do (.*)", message)
    assert parts is not None, message
    for part, wanted in zip(parts.groups(), WRONG[line], strict=True):
        assert wanted.replace("$", str(things)) in part, message
    assert sorted(things.rglob("*")) == before


def test_a_cache_that_cannot_be_written_is_named(
    refused: Command, things: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLMLAB_CACHE", str(things / "good.txt" / "cache"))
    message = refused("train debug=one_step")
    assert "mlmlab: the cache folder found" in message
    assert "MLMLAB_CACHE" in message


def test_a_file_in_place_of_the_folder_of_runs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "small_world").touch()
    with (
        pytest.raises(mlmlab.UserError, match="runs/small_world: File exists"),
        run_folder(mlmlab.compose()),
    ):
        pass


def test_a_run_folder_is_free_again_when_its_run_is_over(tmp_path: Path) -> None:
    config = mlmlab.compose(f"run_dir={tmp_path / 'run'}")
    with run_folder(config), pytest.raises(mlmlab.UserError, match="at work now"):
        mlmlab.run(config, quiet=True)
    with pytest.raises(mlmlab.UserError, match="not empty"):
        mlmlab.run(config, quiet=True)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]
