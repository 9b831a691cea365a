#!/usr/bin/env bash
# Makes a fresh 64-bit Raspberry Pi OS (12 or newer) a device: a user for runs and for the daemon, uv, the daemon's environment and
# unit, pins and MIDI devices for that user, real-time limits. Run again, it changes only what is not as it should be.
#   sudo pi/provision.sh [--key FILE] [--package WHAT] [--dry-run] [--root DIR]
#   --key FILE      public keys that are let in as that user; those of whoever calls sudo where left out
#   --package WHAT  what pip installs the daemon from; a wheel beside this script, else notebooked-dagster
#   --dry-run       says what it would do, and does nothing
#   --root DIR      writes files below DIR, and only says which commands it would run
set -euo pipefail

user=notebooked home=/var/lib/notebooked environment=/opt/notebooked tools=/opt/notebooked-uv
here=$(cd "$(dirname "$0")" && pwd)
key="" package="" dry="" root=""

usage() { sed -n '4,8s/^# *//p' "$0"; }
fail() { echo "provision.sh: $1" >&2; exit 1; }
while [ $# -gt 0 ]; do
  case "$1" in
    --key | --package | --root) if [ $# -lt 2 ]; then fail "$1 wants a value."; fi ;;&
    --key) key=$2; shift 2 ;;
    --package) package=$2; shift 2 ;;
    --root) root=$(realpath -m "$2"); shift 2 ;;
    --dry-run) dry=yes; shift ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 1 ;;
  esac
done

# What is asked of the system itself is asked of nothing where the files go below another root.
is() { [ -z "$root" ] && "$@" >/dev/null 2>&1; }
run() {
  echo "run: $*"
  if [ -z "$dry$root" ]; then "$@"; fi
}
put() { # MODE PATH [FOLDER'S MODE]: what comes in is the file's content; says so where it was another
  local text
  text=$(cat; echo .)
  if [ "$(content "$2"; echo .)" = "$text" ]; then return; fi
  echo "write: $2"
  changed="$changed $2"
  if [ -n "$dry" ]; then return; fi
  "${as[@]}" mkdir -p -m "${3:-755}" "$(dirname "$root$2")"
  printf %s "${text%.}" | "${as[@]}" tee "$root$2.new" >/dev/null
  "${as[@]}" chmod "$1" "$root$2.new"
  "${as[@]}" mv "$root$2.new" "$root$2"
}
content() { "${as[@]}" cat "$root$1" 2>/dev/null || true; }
as=() changed=""

[ -n "$dry$root" ] || [ "$(id -u)" = 0 ] || fail "it installs a system service; call it with sudo, or with --dry-run to see what it does."
if [ -z "$key" ]; then
  key=$(getent passwd "${SUDO_USER:-$(id -un)}" | cut -d: -f6)/.ssh/authorized_keys
fi
[ -s "$key" ] || fail "there are no public keys in $key; name a file with --key, or nobody can log in as $user."
if [ -z "$package" ]; then
  package=notebooked-dagster
  for wheel in "$here"/notebooked_dagster-*.whl; do
    if [ -f "$wheel" ]; then package="notebooked-dagster @ file://$wheel"; fi
  done
fi
case "$package" in
  *" @ "*) package="${package%% @ *}[edge] @ ${package#* @ }" ;;
  *) package="${package}[edge]" ;;
esac

# rsync sends only the code that changed; python3-venv is what uv is installed with; alsa-utils has `aconnect`, and brings the library
# without which no MIDI device can be opened.
missing=""
is command -v rsync || missing="$missing rsync"
is /usr/bin/python3 -c "import ensurepip" || missing="$missing python3-venv"
is command -v aconnect || missing="$missing alsa-utils"
if [ -n "$missing" ]; then
  run apt-get update
  # shellcheck disable=SC2086
  run apt-get install -y --no-install-recommends $missing
fi

# One user: whoever brings takes home has to own them. It has no password, and no rights but sound and pins.
for group in audio gpio; do
  is getent group "$group" || run groupadd --system "$group"
done
is id "$user" || run useradd --system --user-group --create-home --home-dir "$home" --shell /bin/bash --password '*' "$user"
run usermod --append --groups audio,gpio "$user"
# Its home is its own to fill with links, so what is written there is written as that user.
if [ -z "$root" ]; then as=(runuser -u "$user" --); fi
{ content "$home/.ssh/authorized_keys"; cat "$key"; } | awk 'NF && !seen[$0]++' | put 600 "$home/.ssh/authorized_keys" 700
as=()
# Runs go on when nobody is logged in.
is test -f "/var/lib/systemd/linger/$user" || run loginctl enable-linger "$user"

put 644 /etc/udev/rules.d/90-notebooked.rules <<'RULES'
# Pins and MIDI devices for the groups that the daemon is in.
SUBSYSTEM=="gpio", KERNEL=="gpiochip*", GROUP="gpio", MODE="0660"
SUBSYSTEM=="sound", GROUP="audio", MODE="0660"
# A USB MIDI interface that the kernel puts to sleep swallows the first notes.
ACTION=="add", SUBSYSTEM=="usb", ATTR{bInterfaceClass}=="01", ATTR{bInterfaceSubClass}=="03", TEST=="../power/control", ATTR{../power/control}="on"
RULES
put 644 /etc/security/limits.d/90-notebooked.conf <<'LIMITS'
# For runs over SSH; the daemon's unit has limits of its own.
@audio - rtprio 90
@audio - memlock unlimited
LIMITS
put 644 /etc/systemd/system/notebooked-edge.service < "$here/notebooked-edge.service"
put 644 /etc/notebooked/device.yaml.example < "$here/device.yaml.example"

# lgpio has wheels for 3.11 and 3.12: where the system's Python is newer, uv brings one, to where the unit may read it. Only the
# system's is looked at, for one in somebody's home is nobody else's to run.
is test -x "$tools/bin/uv" || { run /usr/bin/python3 -m venv "$tools"; run "$tools/bin/python" -m pip install --quiet uv; }
is test -x /usr/local/bin/uv || run ln -sf "$tools/bin/uv" /usr/local/bin/uv
is test -x "$environment/bin/python" \
  || run env PATH=/usr/bin:/bin UV_PYTHON_INSTALL_DIR="$tools/python" "$tools/bin/uv" venv --python '>=3.11,<3.13' "$environment"
# Compiled now: the user that runs it may write nothing there, and would compile everything anew at each start.
run "$tools/bin/uv" pip install --quiet --compile-bytecode --python "$environment/bin/python" --reinstall-package notebooked-dagster "$package"

case "$changed" in *udev*) run udevadm control --reload; run udevadm trigger --subsystem-match=gpio --subsystem-match=sound ;; esac
run systemctl daemon-reload
if [ -f "$root/etc/notebooked/device.yaml" ]; then
  run systemctl enable notebooked-edge
  run systemctl restart notebooked-edge
else
  echo "The daemon starts when there is a /etc/notebooked/device.yaml (device.yaml.example beside it): then run this again."
fi
echo "On your desk: notebooked edge add NAME $user@$(hostname).local"
