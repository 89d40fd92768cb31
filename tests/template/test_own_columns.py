"""Example `none` with a team's own columns, a text among them: who edits at the CHANGE markers only has tests that pass."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

# What stands below each marker, by how it begins and ends, and what a team writes there: messages with an amount of money.
DATA = {
    r"COLUMNS: .*\nLABELS: .*\n": """\
COLUMNS: dict[str, Number | Text] = {"message": Text(200), "amount": Number(0, 10_000)}
LABELS: tuple[str | int, ...] = ("invoice", "other")
""",
    r"    generator = np\.random.*\n(?:    .*\n)+?(?=    write\(frame, file\))": """\
    kinds = np.arange(200) % 2
    words = np.array(["Please pay, NA", 'Greetings from "home"'])[kinds]
    frame = pd.DataFrame({"message": words, "amount": 10.0 * kinds, LABEL: np.array(LABELS)[kinds]})
""",
}
MODEL = {
    r"    def __init__\(self\) -> None:\n        super(?:.*\n)+?(?=\n\n# CHANGE 4/4)": """\
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Linear(BUCKETS + 1, len(LABELS))

    def scale_by(self, inputs: torch.Tensor) -> None:
        pass

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        return self.layers(numbers)
""",
    r"def decode(?:.*\n)+?(?=\n\ndef refuse_missing)": '''\
BUCKETS = 32


def decode(rows: pd.DataFrame) -> torch.Tensor:
    """How often words of each bucket occur, then the amount."""
    refuse_missing(rows)
    numbers = torch.zeros(len(rows), BUCKETS + 1)
    for row, (message, amount) in enumerate(zip(rows["message"], rows["amount"], strict=True)):
        for word in message.split():
            numbers[row, zlib.crc32(word.encode()) % BUCKETS] += 1
        numbers[row, BUCKETS] = amount / 10_000
    return numbers
''',
    r"import numpy as np\n": "import zlib\nimport numpy as np\n",
}


def edit(path: Path, changes: dict[str, str]) -> None:
    text = path.read_text()
    for pattern, replacement in changes.items():
        text, count = re.subn(pattern, lambda _, new=replacement: new, text)
        assert count == 1, pattern
    path.write_text(text)


def test_own_text_and_number_columns_pass_every_generated_test(service: Any) -> None:
    root = service(example="none")
    package = next((root / "src").iterdir())
    edit(package / "data.py", DATA)
    edit(package / "model.py", MODEL)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=root,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    # 19 of two number columns, and three cells that are wrong in a text column.
    assert re.search(r"(?m)^22 passed\b", done.stdout), done.stdout
