"""cookiecutter's hook: mlops_build.scaffold.cookiecutter renders the service with copier, from cookiecutter's clone of the template."""

import json
import os
import sys
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036  (this is cookiecutter's Python)
    sys.exit("mlops-build: the template needs Python 3.11 or newer; cookiecutter runs on " + sys.version.split()[0])
context = json.loads(r"""{{ cookiecutter | tojson }}""")
if "_repo_dir" not in context:
    sys.exit(f"mlops-build: the template needs cookiecutter 2.6 or newer; run: {sys.executable} -m pip install --upgrade cookiecutter")
# _repo_dir is the path as typed, which may be relative. cookiecutter runs hooks in that folder; PWD is where cookiecutter was started.
candidates = [Path(context["_repo_dir"]), Path(f"/proc/{os.getppid()}/cwd"), Path(os.environ.get("PWD", ""), context["_repo_dir"])]
repository = next((path.resolve() for path in candidates if path.is_absolute() and (path / "cookiecutter.json").is_file()), None)
if not repository:
    sys.exit("mlops-build: cannot find the template folder " + context["_repo_dir"] + "; give cookiecutter its absolute path")
sys.path.insert(0, str(repository))
from mlops_build.scaffold.cookiecutter import main  # noqa: E402

sys.exit(main(context, repository))
