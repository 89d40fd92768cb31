"""What is read from a script's syntax tree: its options, what it writes, and files that are not scripts."""

from pathlib import Path

import pytest

from mlops_build.errors import MlopsBuildError
from mlops_build.scaffold.existing import options, script, written


def parsed(folder: Path, text: str) -> script.Script:
    (folder / "train.py").write_text(text)
    return script.read(folder / "train.py")


def files(folder: Path, text: str, **defaults: object) -> list[written.Written]:
    train = parsed(folder, text)
    return list(written.written(train, script.Values(train, defaults)))


ARGPARSE = """
import argparse
LR = 1e-5
parser = argparse.ArgumentParser()
parser.add_argument("data")
parser.add_argument("-e", "--epochs", type=int, default=20)
parser.add_argument("--learning-rate", dest="lr", type=float, default=LR)
parser.add_argument("--layers", nargs="+", type=int, default=[64, 32])
parser.add_argument("--name", default="it's mine; rm -rf /")
parser.add_argument("--amp", action="store_true")
parser.add_argument("--no-cuda", dest="cuda", action="store_false")
parser.add_argument("--tag", action="append", default=["a"])
parser.add_argument("--when", default=time.time())
parser.add_argument("--api-token", default="hunter2")
parser.add_argument("--seed", type=int, default=3)
parser.add_argument("--out", required=True)
parser.add_argument("--version", action="version", version="1")
"""


def test_argparse_options_become_a_command_line_and_numbers(tmp_path: Path) -> None:
    said = options.command_line(options.options(parsed(tmp_path, ARGPARSE)), {"data": "data/my rows.csv", "out": "model.pt"})
    assert said.words == ["'data/my rows.csv'", "--seed", "${seed}", "--out", "model.pt", "${train}"]
    assert said.seed == 3
    assert said.numbers == {
        "epochs": 20,
        "learning-rate": 1e-5,
        "layers": [64, 32],
        "name": "it's mine; rm -rf /",  # DVC quotes what it unpacks
        "amp": False,
        "no-cuda": False,
    }


def test_options_without_a_long_name_are_written_in_the_command(tmp_path: Path) -> None:
    text = (
        'p.add_argument("size", nargs="?", default=8)\np.add_argument("-b", type=int, default=16)\np.add_argument("--epochs", default=2)\n'
    )
    text += 'p.add_argument("-n", default="two words")\np.add_argument("--resume", default="")\n'
    said = options.command_line(options.options(parsed(tmp_path, text)), {})
    assert said.words == ["8", "-b", "16", "-n", "'two words'", "${train}"]
    assert said.numbers == {"epochs": 2, "resume": ""}


CLICK = """
import click, torch
@click.command()
@click.argument("data", type=click.Path())
@click.option("--epochs", "-e", default=5, show_default=True)
@click.option("--hidden-size", "width", default=16)
@click.option("--shuffle/--no-shuffle", default=True)
@click.option("--amp", is_flag=True)
@click.option("--out", default="runs/last.pt")
def main(data, epochs, width, shuffle, amp, out):
    torch.save(net.state_dict(), out)
"""


def test_click_options_are_read_too(tmp_path: Path) -> None:
    one = parsed(tmp_path, CLICK)
    read = options.options(one)
    said = options.command_line(read, {"data": "data/x.csv", "out": "runs/last.pt"})
    assert said.words == ["data/x.csv", "--out", "runs/last.pt", "${train}"]
    assert said.numbers == {"epochs": 5, "hidden-size": 16, "amp": False}
    (saved,) = files(tmp_path, CLICK, **{option.dest: option.default for option in read})
    assert (saved.path, saved.purpose) == ("runs/last.pt", "weights")


@pytest.mark.parametrize(
    ("code", "path"),
    [
        ('torch.save(net.state_dict(), "model.pt")', "model.pt"),
        ("torch.save(obj=net, f='model.pt')", "model.pt"),
        ('OUT = "runs"\ntorch.save(net, os.path.join(OUT, "a", "b.pt"))', "runs/a/b.pt"),
        ('OUT = Path("runs")\ntorch.save(net, OUT / "b.pt")', "runs/b.pt"),
        ('torch.save(net, f"{args.dir}/last.pt")', "checkpoints/last.pt"),
        ('torch.save(net, args.dir + "/last.pt")', "checkpoints/last.pt"),
        ('torch.save(net, name + "/last.pt")', None),
        ('torch.save(net, f"epoch-{epoch}.pt")', None),
        ('OUT = "a"\nOUT = "b"\ntorch.save(net, OUT)', None),
        ('with open("model.pt", "wb") as f:\n    torch.save(net, f)', "model.pt"),
        ('open("log.txt", "w").write("x")', "log.txt"),
        ('open("log.txt", mode="ab")', "log.txt"),
        ('Path("log.txt").open("w")', "log.txt"),
        ('Path("log.txt").write_text("x")', "log.txt"),
        ('frame.to_csv("rows.csv", index=False)', "rows.csv"),
        ('plt.savefig("curve.png")', "curve.png"),
        ('np.save("rows.npy", rows)', "rows.npy"),
    ],
)
def test_what_is_written_is_followed_as_far_as_it_is_certain(tmp_path: Path, code: str, path: str | None) -> None:
    assert {file.path for file in files(tmp_path, code, dir="checkpoints")} == {path}


@pytest.mark.parametrize(
    ("code", "path", "purpose"),
    [
        ('joblib.dump(scaler, f"{args.out}/scaler.joblib")', "runs/scaler.joblib", "pickle"),
        ('json.dump(words, open(os.path.join(args.out, "vocab.json"), "w"))', "runs/vocab.json", "artifact"),
        ('np.savez(f"{args.out}/scale.npz", mean=mean, std=std)', "runs/scale.npz", "artifact"),
        ('Path(args.out, "labels.txt").write_text(text)', "runs/labels.txt", "artifact"),
        ('bpe.save("bpe.json")', "bpe.json", "artifact"),
        ('self.tokenizer.save_pretrained(os.path.join(args.out, "hf"))', "runs/hf", "artifact"),
        ('model.save_pretrained("hf-model")', "hf-model", "other"),
        ('np.save(f"{args.out}/rows.npy", rows)', "runs/rows.npy", "unsure"),
        ('json.dump(labels, open(f"{args.out}/metrics.json", "w"))', "runs/metrics.json", "other"),
        ('plt.savefig("labels.png")', "labels.png", "other"),
    ],
)
def test_the_name_of_a_file_decides_whether_serving_reads_it(tmp_path: Path, code: str, path: str, purpose: str) -> None:
    assert [(file.path, file.purpose) for file in files(tmp_path, code, out="runs")] == [(path, purpose)]


@pytest.mark.parametrize(
    "code", ['open("rows.csv")', 'open("rows.csv", "rb")', 'Image.open("a.png")', "open(name, mode)", "json.dump(x, f)"]
)
def test_what_is_read_is_not_taken_for_written(tmp_path: Path, code: str) -> None:
    assert files(tmp_path, code) == []


@pytest.mark.parametrize(
    ("name", "content", "code", "says"),
    [
        ("train.ipynb", b"{}", 2, "jupyter nbconvert --to script train.ipynb"),
        ("train.sh", b"true", 2, "is not a Python file"),
        ("train.py", b"def f(:\n  pass\n", 4, "train.py:1: "),
        ("train.py", b"x = 1\nfor\n", 4, "train.py:2: "),
        ("train.py", b"x = '\xff'\n", 4, "train.py"),
        ("train.py", b"x = 1\0\n", 4, "train.py"),
        ("train.py", b"x = " + b"(" * 5000 + b")" * 5000, 4, "train.py"),
        ("train.py", b"#" * 1_000_001, 4, "1,000,001 bytes"),
        ("train.py", None, 3, "does not exist"),
        ('tr"ain.py', b"", 2, "is not a valid file name of a module"),
    ],
)
def test_what_is_no_script_is_refused_with_its_place(tmp_path: Path, name: str, content: bytes | None, code: int, says: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(MlopsBuildError) as caught:
        script.read(tmp_path / name)
    assert caught.value.exit_code == code
    assert says in f"{caught.value.message}\n{caught.value.remedy}"


def test_a_declared_encoding_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_bytes("# -*- coding: latin-1 -*-\r\nname = 'Zoë'\r\n".encode("latin-1"))
    one = script.read(tmp_path / "train.py")
    assert [node.value for node in one.strings] == ["Zoë"]
    assert "\r" not in one.text
