"""The project's endpoints as Prometheus's file_sd wants them. Usage: ``targets.py > endpoints.json``.

Only those whose figures are at their own address: a cloud's endpoint has none there, and would be called down for ever.
"""

import json
import subprocess
from urllib.parse import urlsplit

WITH_FIGURES = ("local", "pi")

found = subprocess.run(["notebooked", "--json", "endpoints"], capture_output=True, text=True, check=True)
print(
    json.dumps(
        [
            {"targets": [urlsplit(item["url"]).netloc], "labels": {"provider": item["provider"]}}
            for item in json.loads(found.stdout)
            if item["provider"] in WITH_FIGURES
        ],
        indent=1,
    )
)
