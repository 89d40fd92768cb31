"""Saved files that serving needs, with paths that come from the script's options."""

from pathlib import Path

import pytest

from mlops_build.scaffold.existing import artifacts, script


@pytest.mark.parametrize(
    ("code", "kind", "path"),
    [
        ('joblib.dump(scaler, f"{args.out}/scaler.joblib")', "pickled", "runs/scaler.joblib"),
        ('joblib.dump(scaler, args.out + "/scaler.joblib")', "pickled", "runs/scaler.joblib"),
        ('pickle.dump(encoder, open(f"{args.out}/encoder.bin", "wb"))', "pickled", "runs/encoder.bin"),
        ('json.dump(words, open(os.path.join(args.out, "vocab.json"), "w"))', "artifacts", "runs/vocab.json"),
        ('json.dump(\n    vocab,\n    open(f"{args.out}/words.json", "w"),\n)', "artifacts", "runs/words.json"),
        ('with open(f"{args.out}/words.json", "w") as f:\n    json.dump(vocab, f)', "artifacts", "runs/words.json"),
        ('np.savez(f"{args.out}/scale.npz", mean=mean, std=std)', "artifacts", "runs/scale.npz"),
        ('np.savez(f"{args.out}/numbers.npz", mean=a, std=b)', "artifacts", "runs/numbers.npz"),
        ('np.save(f"{args.out}/rows.npy", rows)', "unsure", "runs/rows.npy"),
        ('Path(args.out, "labels.txt").write_text(text)', "artifacts", "runs/labels.txt"),
        ('np.savetxt(f"{args.out}/rows.txt", mean)', "artifacts", "runs/rows.txt"),
        ('tokenizer.save_pretrained(os.path.join(args.out, "tokenizer"))', "artifacts", "runs/tokenizer"),
        ('json.dump(vars(args), open(f"{args.out}/options.json", "w"))', "", ""),
        ('json.dump(metrics, open(f"{args.out}/labels.json", "w"))', "", ""),
        ('json.dump(labels, open(f"{args.out}/metrics.json", "w"))', "", ""),
    ],
)
def test_the_saved_value_and_the_file_name_decide_and_not_the_path_expression(tmp_path: Path, code: str, kind: str, path: str) -> None:
    (tmp_path / "train.py").write_text(code)
    files = script.written(script.read(tmp_path / "train.py"), {"out": "runs"})
    saved = artifacts.saved(files, ["runs"], "model.pt")
    paths = {
        "artifacts": [artifact.path for artifact in saved.artifacts],
        "pickled": [written.path for written in saved.pickled],
        "unsure": [written.path for written in saved.unsure],
    }
    assert {name: values for name, values in paths.items() if values} == ({kind: [path]} if kind else {})
