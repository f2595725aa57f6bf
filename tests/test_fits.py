"""`optdepth fit` and what reads what it made, as somebody types it, on models and data of one's own."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import optdepth as od
from checker import unchecked
from optdepth.cli import main
from optdepth.sources import open_model
from zoo import library

CODE = """
import torch
from test_fit import CALIBRATION, TEST, TRAIN, classifier
import optdepth as od

def make_model():
    return classifier()

def make_data():
    both = [torch.cat(pair) for pair in zip(TRAIN, CALIBRATION)]
    return od.TensorData.of("numbers", tuple(both), TEST, fit=0.3, certify=0.4, seed=0)

def fails():
    raise KeyError("weights")

def nothing():
    return 3
"""
WORDS = ("good", "fine", "great", "bad", "poor", "awful", "film", "story", "the", "a")


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *given: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["optdepth", *map(str, given)])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr()
    return int(end.value.code or 0), said.out, said.err


@pytest.fixture
def code(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(CODE)
    return path


def test_a_model_of_ones_own_is_fitted_and_all_commands_read_it(
    code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, model = tmp_path / "fitted", f"{code}:make_model"
    named = ("--model", model, "--data", f"{code}:make_data", "--out", out)
    status, said, complained = run(
        monkeypatch, capsys, "fit", *named, "--lose", 0.02, "--costs", "flops", "--batch", 8, "--json"
    )
    assert status == 0, complained
    assert json.loads(said)["certified"]
    status, _, complained = run(monkeypatch, capsys, "fit", *named, "--lose", 0.02)
    assert status == 2
    assert "is not empty" in complained
    status, _, complained = run(monkeypatch, capsys, "evaluate", out)
    assert status == 2
    assert f"allow that code to run by naming it, --model {model}" in complained
    status, said, complained = run(monkeypatch, capsys, "evaluate", out, "--model", model, "--json")
    assert status == 0, complained
    found = json.loads(said)
    assert [row["method"] for row in found["rows"]][:3] == ["fitted", "confidence per exit", "patience per exit"]
    assert found["rows"][-1]["method"] == "full network"
    for given, made in ((("report", out), out / "report.html"), (("export", out, "--out", out / "b"), out / "b")):
        status, said, complained = run(monkeypatch, capsys, *given, "--model", model)
        assert status == 0, complained
        assert made.exists()
    status, said, complained = run(monkeypatch, capsys, "bench", out, "--model", model, "--batches", "1,8", "--json")
    assert status == 0, complained
    assert [row["batch"] for row in json.loads(said)] == [1, 8]
    status, _, complained = run(monkeypatch, capsys, "evaluate", out, "--model", model, "--clock", "1")
    assert (status, "optdepth bench" in complained) == (2, True)


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier of transformers with its tokenizer, and a table of sentences: good or bad by one word."""
    transformers = library("transformers")
    folder = tmp_path_factory.mktemp("reviews")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder / "model")
    config = transformers.BertConfig(
        vocab_size=16, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16, num_labels=2
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder / "model")
    random = np.random.default_rng(0)
    with (folder / "reviews.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["sentence", "verdict"])
        for _ in range(600):
            good = bool(random.integers(2))
            word = WORDS[random.integers(3) + (0 if good else 3)]
            length = random.integers(2, 6)
            lines.writerow(
                [" ".join([*(WORDS[6 + random.integers(4)] for _ in range(length)), word]), "good" if good else "bad"]
            )
    return folder


def test_sentences_of_a_table_are_fitted_and_answered(
    reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, table = tmp_path / "fitted", reviews / "reviews.csv"
    named = ("--model", f"hf:{reviews / 'model'}", "--data", table, "--text", "sentence", "--label", "verdict")
    status, said, complained = run(
        monkeypatch, capsys, "fit", *named, "--out", out, "--price", 0.3, "--costs", "flops", "--batch", 4
    )
    assert status == 0, complained
    assert f"next: optdepth report {out}" in said
    answers = tmp_path / "answers.csv"
    status, _, complained = run(monkeypatch, capsys, "predict", out, "--data", table, "--out", answers)
    assert status == 0, complained
    lines = list(csv.DictReader(answers.open()))
    assert [int(line["input"]) for line in lines] == list(range(600))
    assert {line["class"] for line in lines} <= {"0", "1"}
    status, _, complained = run(monkeypatch, capsys, "report", out)
    assert status == 0, complained
    page = (out / "report.html").read_text()
    assert "<blockquote>" in page
    assert "BertForSequenceClassification, stopping early" in page


def test_images_of_a_folder_are_fitted_and_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    timm = library("timm")
    random = np.random.default_rng(0)
    for name, shade in (("dark", 40), ("light", 200)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(160):
            pixels = np.clip(random.normal(shade, 20, (40, 48, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    monkeypatch.setattr(
        timm, "create_model", lambda name, pretrained: timm.models.create_model(name, pretrained=False, num_classes=2)
    )
    out = tmp_path / "fitted"
    named = ("--model", "timm:resnet10t", "--data", tmp_path / "images", "--image-size", 32, "--out", out)
    status, _, complained = run(
        monkeypatch, capsys, "fit", *named, "--price", 0.3, "--costs", "flops", "--exits", 3, "--batch", 4
    )
    assert status == 0, complained
    status, said, complained = run(monkeypatch, capsys, "predict", out, "--data", tmp_path / "images")
    assert status == 0, complained
    assert len(said.strip().splitlines()) == 321
    status, _, complained = run(monkeypatch, capsys, "report", out)
    assert status == 0, complained
    assert "data:image/png" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--model", "resnet50", "--data", "x", "--price", 1), "model 'resnet50': give timm:NAME"),
        (("--model", "hf:./nowhere", "--data", "x", "--price", 1), "no such folder: nowhere"),
        (("--model", "nowhere.py:f", "--data", "x", "--price", 1), "no such file: nowhere.py"),
        (("--model", "{code}:other", "--data", "x", "--price", 1), "has no function 'other'; it has"),
        (("--model", "{code}:fails", "--data", "x", "--price", 1), "fails failed: KeyError: 'weights'"),
        (("--model", "{code}:nothing", "--data", "x", "--price", 1), "returned a int, not a torch module"),
        (("--model", "{code}:make_model", "--data", "x", "--price", 1), "does not say how it reads data"),
        (("--model", "{code}:make_model", "--data", "{code}:nothing", "--price", 1), "return od.TensorData"),
        (("--model", "{code}:make_model", "--data", "{code}:make_data"), "say one of lose="),
        (("--model", "{code}:make_model", "--data", "{code}:make_data", "--lose", 0.001), "0.001 takes about"),
        (("--model", "{code}:make_model", "--data", "{code}:make_data", "--price", 1, "--heads", "x"), "head='x'"),
        (
            ("--model", "hf:{reviews}", "--data", "{table}", "--price", 1),
            "name their column with --text",
        ),
        (
            ("--model", "hf:{reviews}", "--data", "{table}", "--price", 1, "--text", "words"),
            "has no column 'words' in train: it has sentence, verdict",
        ),
        (
            ("--model", "hf:{reviews}", "--data", "{code}", "--price", 1, "--text", "words"),
            "ends in .py; give a parquet",
        ),
    ],
)
def test_what_cannot_be_fitted_is_one_line(
    given: tuple[object, ...],
    said: str,
    code: Path,
    reviews: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"code": code, "reviews": reviews / "model", "table": reviews / "reviews.csv"}
    filled = [str(each).format(**places) for each in given]
    with unchecked():
        status, _, complained = run(monkeypatch, capsys, "fit", *filled, "--out", tmp_path / "out")
    assert status == 2
    assert said in complained
    assert complained.strip().count("\n") == 0
    assert not (tmp_path / "out").exists()


def test_what_is_no_fit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, complained = run(monkeypatch, capsys, "predict", tmp_path, "--data", tmp_path)
    assert status == 2
    assert "early.safetensors" in complained


def test_a_name_says_how_its_model_reads() -> None:
    library("timm")
    source = open_model("timm:resnet10t", weights=False)
    assert (source.reads.image_size, len(source.reads.mean)) == (176, 3)
    assert source.reads.of_size(88).resize == pytest.approx(source.reads.resize / 2, abs=1)
    assert not source.model.training


def test_the_version_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    status, said, _ = run(monkeypatch, capsys, "--version")
    assert (status, said.strip()) == (0, f"optdepth {od.__version__}")
