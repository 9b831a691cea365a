#!/usr/bin/env bash
# Deploys the web interface, daemon and code location to Cloud Run, with Cloud SQL and Secret Manager.
#   PROJECT=… REGION=… SQL_INSTANCE=… [JOB=all_experiments_job] deploy/cloudrun/deploy.sh [--dry-run]
# --dry-run prints every command and the rendered files, and runs none. The image has to be in Artifact Registry, and the
# secret notebooked-database-url in Secret Manager: postgresql://dagster:…@/dagster?host=/cloudsql/PROJECT:REGION:INSTANCE
# SERVICE_ACCOUNT (notebooked@PROJECT where unset) has to have the roles Secret Manager Secret Accessor and Cloud SQL Client.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dry=""
[ "${1:-}" = --dry-run ] && dry=1
for name in PROJECT REGION SQL_INSTANCE; do
  [ -n "${!name:-}" ] || { echo "deploy.sh: set $name." >&2; exit 1; }
done
export PROJECT REGION SQL_INSTANCE JOB="${JOB:-all_experiments_job}"
export IMAGE="${IMAGE:-$REGION-docker.pkg.dev/$PROJECT/notebooked/notebooked:latest}"
export SERVICE_ACCOUNT="${SERVICE_ACCOUNT:-notebooked@$PROJECT.iam.gserviceaccount.com}"
[ -n "$dry" ] || command -v gcloud >/dev/null || { echo "deploy.sh: gcloud is not on the path; try --dry-run." >&2; exit 1; }
rendered=$(mktemp -d)
trap 'rm -rf "$rendered"' EXIT
for file in service job; do
  # Only our own names: what else looks like a variable stays.
  python3 - "$here/$file.yaml" > "$rendered/$file.yaml" <<'PYTHON'
import os, re, sys
text = open(sys.argv[1], encoding="utf-8").read()
print(re.sub(r"\$\{([A-Z_]+)\}", lambda match: os.environ[match[1]], text), end="")
PYTHON
done
cat > "$rendered/workspace.yaml" <<'YAML'
load_from:
  - grpc_server: {host: 127.0.0.1, port: 4266, location_name: notebooked_dagster}
YAML
run() {
  if [ -n "$dry" ]; then printf '+ %s\n' "$*"; else "$@"; fi
}
if [ -z "$dry" ] && gcloud secrets describe notebooked-workspace --project "$PROJECT" >/dev/null 2>&1; then
  run gcloud secrets versions add notebooked-workspace --project "$PROJECT" --data-file "$rendered/workspace.yaml"
else
  run gcloud secrets create notebooked-workspace --project "$PROJECT" --data-file "$rendered/workspace.yaml"
fi
run gcloud run services replace "$rendered/service.yaml" --project "$PROJECT" --region "$REGION"
run gcloud run jobs replace "$rendered/job.yaml" --project "$PROJECT" --region "$REGION"
if [ -n "$dry" ]; then
  for file in service job workspace; do printf -- '--- %s.yaml\n' "$file"; cat "$rendered/$file.yaml"; done
fi
