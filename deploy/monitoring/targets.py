"""The project's endpoints as Prometheus's file_sd wants them. Usage: ``targets.py > endpoints.json``."""

import json
import subprocess
from urllib.parse import urlsplit

found = subprocess.run(["notebooked", "--json", "endpoints"], capture_output=True, text=True, check=True)
print(
    json.dumps(
        [
            {"targets": [urlsplit(item["url"]).netloc], "labels": {"provider": item["provider"]}}
            for item in json.loads(found.stdout)
        ],
        indent=1,
    )
)
