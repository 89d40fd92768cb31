"""The code examples of the tasks: the example rows, the input tensor, the measurement and the threshold. They can be pasted as they are."""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlops_build.scaffold.existing.script import Script, constants

REGRESSION = {"mse_loss", "MSELoss", "l1_loss", "L1Loss", "smooth_l1_loss", "SmoothL1Loss", "huber_loss", "HuberLoss"}
CLASSIFICATION = {
    *("cross_entropy", "CrossEntropyLoss", "nll_loss", "NLLLoss"),
    *("binary_cross_entropy", "BCELoss", "binary_cross_entropy_with_logits", "BCEWithLogitsLoss"),
}
SHOWN = 8  # columns; longer lists are not written into examples


@dataclass(frozen=True)
class Examples:
    """table: the path of a table in the service, "" if there is none. columns: its columns. dropped: those that the script removes
    from the input; target: the one of them that it predicts, "" if the code does not show it.
    """

    table: str
    columns: tuple[str, ...]
    dropped: tuple[str, ...]
    target: str
    is_regression: bool

    def rows(self) -> str:
        """The body of `example()`."""
        if not self.table:
            return 'return pd.DataFrame({"x": [0.5, 1.5]})'
        start = f'return pd.read_csv("{self.table}", nrows=3)'
        if self.target:
            return f"{start}.drop(columns={_list(self.dropped)})"
        if len(self.columns) > SHOWN:
            return f"{start}.drop(columns=[])  # in the list: the columns to be predicted"
        return f"{start}[{_list(self.columns)}]"

    def answer(self) -> str:
        """The body of `predict()`."""
        columns = f"[{_list(self.columns or ['x'])}]" if not self.target and len(self.columns) <= SHOWN else ""
        output = '"prediction": scores.flatten().tolist()' if self.is_regression else '"label": scores.argmax(dim=1).tolist()'
        return (
            f'numbers = torch.tensor(model_input{columns}.to_numpy("float32")).to(device())\n'
            "with torch.inference_mode():\n    scores = self.network(numbers)\n"
            f"return pd.DataFrame({{{output}}})"
        )

    def measure(self, script: str) -> str:
        """The body of `measure()`."""
        lines = [
            f"# With `import pandas as pd` above. {script} may have trained with the last 100 rows: read those that it holds out.",
            f'rows = pd.read_csv("{self.table or "data/NAME.csv"}").tail(100).reset_index(drop=True)',
        ]
        if self.target:
            rows, target = f"rows.drop(columns={_list(self.dropped)})", f"rows[{_text(self.target)}]"
        else:
            lines.append('target = "label"  # the column to be predicted')
            rows, target = "rows", "rows[target]"
        lines.append(f"answers = model.predict({rows})")
        if self.is_regression:
            lines.append(f'return {{"mean_absolute_error": float((answers["prediction"] - {target}).abs().mean())}}')
        else:
            lines.append(f'return {{"accuracy": float((answers["label"] == {target}).mean())}}')
        return "\n".join(lines)

    def threshold(self) -> str:
        """The threshold in params.yaml, for the metric that `measure` returns."""
        return "mean_absolute_error: {max: 1.0}" if self.is_regression else "accuracy: {min: 0.9}"


def examples(table: tuple[str, Sequence[str]] | None, scripts: Sequence[Script], arguments: Mapping[str, object]) -> Examples:
    """Derive the examples from the code. table: its path and columns. arguments: dest → default of the options."""
    path, columns = table or ("", ())
    called = {name.rpartition(".")[2] for script in scripts for name, _ in script.calls()}
    dropped: set[str] = set()
    read: set[str] = set()
    for script in scripts:
        known = constants(script, arguments)
        for node in ast.walk(script.tree):
            if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
                read.add(str(known.value(node.slice)))
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("drop", "pop"):
                given = [*node.args[:1], *(keyword.value for keyword in node.keywords if keyword.arg == "columns")]
                names = [known.value(argument) for argument in given]
                dropped.update(str(name) for value in names for name in (value if isinstance(value, list | tuple) else [value]))
                if node.func.attr == "pop":
                    read.update(map(str, names))
    targets = [name for name in columns if name in dropped & read]
    is_certain = len(targets) == 1
    return Examples(
        path,
        tuple(columns),
        tuple(name for name in columns if name in dropped) if is_certain else (),
        targets[0] if is_certain else "",
        bool(called & REGRESSION) and not called & CLASSIFICATION,
    )


def _list(names: Sequence[str]) -> str:
    return f"[{', '.join(map(_text, names))}]"


def _text(name: str) -> str:
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
