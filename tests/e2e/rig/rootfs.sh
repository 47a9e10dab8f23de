#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Makes the root file system of the end-to-end nodes from Debian packages.
#
#   rootfs.sh DIRECTORY SUITE MIRROR GROUP=PACKAGE,PACKAGE... ...
#
# The group `core` must be there; a further group that the archive can't install today is named in
# DIRECTORY.missing, one "group: reason" a line, and the rest goes on.  Exit codes: 0 built, 3 the
# archive lacks something of `core`, anything else is a failure of this machine or its network.
set -euo pipefail

target=$1 suite=$2 mirror=$3
shift 3

# The second step runs in namespaces of its own, so whatever a package starts ends with it.
if [ "${ROOTFS_STEP:-}" = install ]; then
    mount --make-rprivate /
    mount -t proc proc "$target/proc"
    # Packages that bring a service would start it here otherwise.
    printf '#!/bin/sh\nexit 101\n' > "$target/usr/sbin/policy-rc.d"
    chmod 755 "$target/usr/sbin/policy-rc.d"
    cp -L /etc/resolv.conf "$target/etc/resolv.conf"
    # A machine whose mirror is a snapshot, or whose clock is ahead, must not fail for its dates;
    # the signature of the Release file is checked all the same.
    cat > "$target/etc/apt/apt.conf.d/99rig" <<'CONF'
Acquire::Check-Valid-Until "false";
Acquire::Check-Date "false";
Acquire::Languages "none";
Acquire::Retries "3";
APT::Install-Recommends "false";
Dpkg::Use-Pty "false";
CONF
    printf 'path-exclude=/usr/share/%s/*\n' man info doc locale > "$target/etc/dpkg/dpkg.cfg.d/99rig"
    apt() { DEBIAN_FRONTEND=noninteractive chroot "$target" apt-get -y "$@"; }
    apt update
    : > "$target.missing"
    for group in "$@"; do
        name=${group%%=*} packages=${group#*=}
        packages=${packages//,/ }
        # shellcheck disable=SC2086  # a list of words
        if ! reason=$(apt install --simulate $packages 2>&1); then
            reason=$(grep -E '^E: |^ [a-z].* : ' <<<"$reason" | tr '\n' ' ')
            echo "$name: Debian $suite can't install $packages today: $reason" >> "$target.missing"
            [ "$name" != core ] || exit 3
            continue
        fi
        # shellcheck disable=SC2086
        apt install $packages
    done
    apt clean
    rm -rf "$target"/var/lib/apt/lists/* "$target/usr/sbin/policy-rc.d"
    # The classic multi-user setup builds as these; the unprivileged daemon is user guix-daemon.
    chroot "$target" groupadd --system guixbuild
    chroot "$target" getent passwd guix-daemon >/dev/null || chroot "$target" useradd --system \
        --user-group -d /var/empty -s /usr/sbin/nologin guix-daemon
    for i in 01 02 03 04; do
        chroot "$target" useradd --system -g guixbuild -G guixbuild -d /var/empty \
            -s /usr/sbin/nologin "guixbuilder$i"
    done
    mkdir -p "$target/var/empty" "$target/oldroot" "$target/usr/local/bin"
    : > "$target/etc/resolv.conf"
    exit 0
fi

if command -v mmdebstrap >/dev/null && mmdebstrap --mode=root --format=directory --variant=apt \
        --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Check-Date "false"' \
        --aptopt='Acquire::Languages "none"' --aptopt='Acquire::Retries "3"' \
        "$suite" "$target" "$mirror"; then
    :
elif command -v debootstrap >/dev/null; then
    echo "rootfs.sh: mmdebstrap is missing or failed, trying debootstrap"
    rm -rf --one-file-system "$target"
    debootstrap --variant=minbase "$suite" "$target" "$mirror"
else
    echo "rootfs.sh: needs mmdebstrap or debootstrap" >&2
    exit 1
fi
ROOTFS_STEP=install exec unshare --mount --pid --fork --kill-child=KILL \
    bash "$0" "$target" "$suite" "$mirror" "$@"
