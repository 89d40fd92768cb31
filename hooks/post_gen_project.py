"""cookiecutter's way in: mlops_build.scaffold.cookiecutter renders the service with copier, out of the template's own clone."""

import json
import os
import sys
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036  (it is cookiecutter's Python, not ours)
    sys.exit("mlops-build: the template needs Python 3.11 or newer; cookiecutter runs on " + sys.version.split()[0])
given = json.loads(r"""{{ cookiecutter | tojson }}""")
# A folder is called what was typed. While a hook runs, cookiecutter itself stands in that folder; PWD says where it was started.
places = [Path(given["_repo_dir"]), Path(f"/proc/{os.getppid()}/cwd"), Path(os.environ.get("PWD", ""), given["_repo_dir"])]
repository = next((place.resolve() for place in places if place.is_absolute() and (place / "cookiecutter.json").is_file()), None)
if not repository:
    sys.exit("mlops-build: from here nobody knows where " + given["_repo_dir"] + " is; give cookiecutter its absolute path")
sys.path.insert(0, str(repository))
from mlops_build.scaffold.cookiecutter import main  # noqa: E402

sys.exit(main(given, repository))
