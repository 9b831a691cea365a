#!/usr/bin/env bash
# An aarch64 Debian 12 (what Raspberry Pi OS is made from) under emulation, to provision and to test as if it were a Pi.
#   sudo tests/edge/emulated_device.sh build|boot|stop|unplug|destroy
#   build    makes a disk image; takes minutes, and uses the network
#   boot     starts it and waits until ssh answers; says how to log in
#   stop     shuts it down in an orderly way
#   unplug   takes its power away: the emulator is killed, the disk stays as it is
#   destroy  removes the image
# EMULATED_DEVICE: its folder (/var/tmp/notebooked-emulated); EMULATED_PORT: where its ssh is on loopback (2222);
# EMULATED_SIZE: the disk's (6G). Packages: qemu-system-arm qemu-user-static mmdebstrap arch-test e2fsprogs openssh-client.
set -euo pipefail

folder=${EMULATED_DEVICE:-/var/tmp/notebooked-emulated} port=${EMULATED_PORT:-2222} size=${EMULATED_SIZE:-6G}
name=studio-1 user=pi

usage() { sed -n '3,10s/^# *//p' "$0"; }
fail() { echo "emulated_device.sh: $1" >&2; exit 1; }
login() {
  ssh -i "$folder/key" -p "$port" -o UserKnownHostsFile="$folder/known_hosts" -o StrictHostKeyChecking=yes \
    -o ConnectTimeout=60 -o BatchMode=yes "$user@127.0.0.1" "$@"
}
# By what it has open as well: after a restart of this machine, the number may be somebody else's.
running() { [ -s "$folder/pid" ] && grep -qaF "$folder/disk.img" "/proc/$(cat "$folder/pid")/cmdline" 2>/dev/null; }
gone() { # SECONDS
  local until=$((SECONDS + $1))
  while running; do
    [ "$SECONDS" -lt "$until" ] || return 1
    sleep 0.2
  done
}

build() {
  [ "$(id -u)" = 0 ] || fail "files in the image have many owners; call it with sudo."
  [ ! -e "$folder/disk.img" ] || fail "there is an image in $folder; destroy it first."
  for tool in mmdebstrap arch-test qemu-aarch64-static qemu-system-aarch64 mke2fs; do
    command -v "$tool" >/dev/null || fail "there is no $tool; what to install stands at the top of this script."
  done
  mkdir -p "$folder"
  chmod 700 "$folder"
  [ -f "$folder/key" ] || ssh-keygen -q -t ed25519 -N '' -C "the emulated device's" -f "$folder/key"
  [ -f "$folder/host" ] || ssh-keygen -q -t ed25519 -N '' -C "$name" -f "$folder/host"
  echo "[127.0.0.1]:$port $(cut -d' ' -f1,2 "$folder/host.pub")" > "$folder/known_hosts"
  # The kernel is told of the emulator for as long as this takes, and what is mounted for it is mounted for this alone.
  export -f system fill
  export folder name user
  unshare --mount bash -euo pipefail -c system
  mke2fs -q -t ext4 -L root -d "$folder/tree" "$folder/disk.img" "$size"
  rm -rf "$folder/tree"
  echo "Made: $folder/disk.img"
}

system() {
  local registry=/proc/sys/fs/binfmt_misc
  [ -e $registry/register ] || mount -t binfmt_misc binfmt_misc $registry
  if [ ! -e $registry/qemu-aarch64 ]; then
    cat /usr/lib/binfmt.d/qemu-aarch64.conf > $registry/register
    trap 'echo -1 > /proc/sys/fs/binfmt_misc/qemu-aarch64' EXIT
  fi
  # Neither rsync nor python3-venv: provision.sh has to bring what is missing.
  # shellcheck disable=SC2016
  mmdebstrap --arch=arm64 --variant=minbase --mode=root \
    --include=linux-image-arm64,initramfs-tools,systemd-sysv,systemd-timesyncd,systemd-resolved,libpam-systemd,dbus-user-session \
    --include=udev,openssh-server,sudo,ca-certificates,iproute2,iputils-ping,python3,procps,kmod \
    --essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/usr/share/initramfs-tools/modules.d"
      echo MODULES=list > "$1/etc/initramfs-tools/conf.d/emulated"
      printf "%s\n" virtio_pci virtio_mmio virtio_blk ext4 > "$1/usr/share/initramfs-tools/modules.d/emulated"' \
    bookworm "$folder/tree"
  fill "$folder/tree"
  cp "$folder"/tree/boot/vmlinuz-* "$folder/vmlinuz"
  cp "$folder"/tree/boot/initrd.img-* "$folder/initrd"
}

fill() { # TREE: what rpi-imager writes on a card: host name, a user who may sudo, a public key
  echo "$name" > "$1/etc/hostname"
  printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$name" > "$1/etc/hosts"
  echo 'LABEL=root / ext4 defaults,noatime 0 1' > "$1/etc/fstab"
  printf '[Match]\nName=e*\n[Network]\nDHCP=yes\n' > "$1/etc/systemd/network/wired.network"
  chroot "$1" systemctl enable systemd-networkd systemd-resolved ssh
  chroot "$1" useradd --create-home --shell /bin/bash --password '*' "$user"
  echo "$user ALL=(ALL) NOPASSWD: ALL" > "$1/etc/sudoers.d/010_$user"
  install -d -m 700 "$1/home/$user/.ssh"
  install -m 600 "$folder/key.pub" "$1/home/$user/.ssh/authorized_keys"
  chroot "$1" chown -R "$user:" "/home/$user/.ssh"
  rm -f "$1"/etc/ssh/ssh_host_*
  install -m 600 "$folder/host" "$1/etc/ssh/ssh_host_ed25519_key"
  install -m 644 "$folder/host.pub" "$1/etc/ssh/ssh_host_ed25519_key.pub"
  mkdir -p "$1/var/log/journal"
}

boot() {
  [ -e "$folder/disk.img" ] || fail "there is no image in $folder; build it first."
  ! running || fail "it runs already."
  qemu-system-aarch64 -M virt -cpu cortex-a72 -smp 2 -m 1024 -accel tcg,thread=multi \
    -kernel "$folder/vmlinuz" -initrd "$folder/initrd" -append "root=LABEL=root rw console=ttyAMA0" \
    -drive "if=none,id=card,file=$folder/disk.img,format=raw,cache=writeback" -device virtio-blk-pci,drive=card \
    -netdev "user,id=wire,hostfwd=tcp:127.0.0.1:$port-:22" -device virtio-net-pci,netdev=wire,romfile= \
    -device virtio-rng-pci -display none -monitor none -serial "file:$folder/console" \
    -daemonize -pidfile "$folder/pid"
  local until=$((SECONDS + 600))
  until login true 2>/dev/null; do
    running || fail "it ended; its last words are in $folder/console."
    [ "$SECONDS" -lt "$until" ] || fail "ssh does not answer after ten minutes; see $folder/console."
    sleep 1
  done
  echo "ssh -i $folder/key -p $port -o UserKnownHostsFile=$folder/known_hosts $user@127.0.0.1"
}

stop() {
  running || return 0
  login sudo systemctl poweroff || true
  gone 120 || unplug
}

unplug() {
  running || return 0
  kill -9 "$(cat "$folder/pid")"
  gone 10
}

case "${1:-}" in
  build | boot | stop | unplug) "$1" ;;
  destroy) unplug; rm -rf "$folder" ;;
  *) usage >&2; exit 1 ;;
esac
