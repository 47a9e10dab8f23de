#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Process 1 of a node: makes its file system and then reaps orphans.
#
#   init.sh ROOTFS NODE-DIRECTORY NAME WRITABLE...
#
# Runs in fresh mount, pid, net, uts and ipc namespaces.  The root is the cached one, read-only; each
# WRITABLE directory is the node's own copy.  It is pivot_root and not chroot, because the kernel
# refuses user namespaces to processes in a chroot and guix-daemon may want those.
set -euo pipefail

rootfs=$1 node=$2 name=$3
shift 3
root=$node/mnt
mount --make-rprivate /
mount --bind "$rootfs" "$root"
mount -o remount,bind,ro "$root"
for directory in "$@"; do
    mount --bind "$node/fs/$directory" "$root/$directory"
done
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys" 2>/dev/null || true
mount -t tmpfs -o mode=755,size=16m tmpfs "$root/dev"
for device in null zero full random urandom tty; do
    # A container may forbid mknod, and a bind mount does as well.
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777,size=256m tmpfs "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for stream in stdin:0 stdout:1 stderr:2; do
    ln -s "fd/${stream#*:}" "$root/dev/${stream%:*}"
done
cd "$root"
pivot_root . oldroot
exec chroot . /bin/bash -c '
    umount -l /oldroot || exit 1
    hostname "$0"
    ip link set lo up
    echo ready
    exec </dev/null >/dev/null 2>&1
    trap : TERM INT HUP
    while :; do sleep 3600 & wait; done
' "$name"
