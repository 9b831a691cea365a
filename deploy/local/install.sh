#!/usr/bin/env bash
# Runs a project as systemd user units: web interface, daemon, code location, MLflow. No root is needed.
#   deploy/local/install.sh [--project DIR] [--venv DIR] [--port N] [--code-port N] [--mlflow-port N] [--to DIR]
# --to writes the units there and starts nothing. `loginctl enable-linger` keeps them running after logout.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
project=$(cd "$here/../.." && pwd) venv="" port=3000 code_port=4266 mlflow_port=5000 to=""
while [ $# -gt 0 ]; do
  case "$1" in
    --project) project=$(cd "$2" && pwd); shift 2 ;;
    --venv) venv=$(cd "$2" && pwd); shift 2 ;;
    --port) port=$2; shift 2 ;;
    --code-port) code_port=$2; shift 2 ;;
    --mlflow-port) mlflow_port=$2; shift 2 ;;
    --to) to=$2; shift 2 ;;
    *) sed -n '2,4p' "$0" >&2; exit 1 ;;
  esac
done
venv=${venv:-$project/.venv}
[ -x "$venv/bin/dagster" ] || { echo "install.sh: there is no dagster in $venv; name its environment with --venv." >&2; exit 1; }
case "$project$venv" in *[[:space:]]*) echo "install.sh: systemd takes no path with blanks: $project" >&2; exit 1 ;; esac
units=${to:-${XDG_CONFIG_HOME:-$HOME/.config}/systemd/user}
config=$project/.notebooked/server
mkdir -p "$units" "$config" "$project/.notebooked/mlflow"
cat > "$config/workspace.yaml" <<YAML
load_from:
  - grpc_server: {host: 127.0.0.1, port: $code_port, location_name: notebooked_dagster}
YAML
for unit in "$here"/systemd/*.service; do
  sed -e "s|@PROJECT@|$project|g; s|@VENV@|$venv|g; s|@PORT@|$port|g; s|@CODE_PORT@|$code_port|g" \
      -e "s|@MLFLOW_PORT@|$mlflow_port|g; s|@CONFIG@|$config|g" "$unit" > "$units/$(basename "$unit").new"
  mv "$units/$(basename "$unit").new" "$units/$(basename "$unit")"
done
[ -n "$to" ] && { echo "Units written to $units."; exit 0; }
systemctl --user daemon-reload
systemctl --user enable --now notebooked-code notebooked-webserver notebooked-daemon notebooked-mlflow
echo "Dagster: http://127.0.0.1:$port   MLflow: http://127.0.0.1:$mlflow_port"
echo "Logs: journalctl --user -u 'notebooked-*' -f"
