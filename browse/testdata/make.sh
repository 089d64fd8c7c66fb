#!/bin/sh
# Makes the small disks that tests and fuzzing start from: the file /dir/file
# with 5000 bytes of digits and, where there can be some, symbolic links.
# Needs e2fsprogs, dosfstools, mtools and xorriso.
set -eu
cd "$(dirname "$0")"
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
mkdir "$tree/dir"
seq 10000 | head -c 5000 >"$tree/dir/file"

fat() {
	rm -f "$1.img"
	truncate -s "$2" "$1.img"
	shift 2
	mkfs.fat --invariant "$@"
}
fat fat12 64K -F 12 -r 16 fat12.img
fat fat16 3M -F 16 -s 1 -r 16 fat16.img
fat fat32 34M -F 32 -s 1 fat32.img
for img in fat12 fat16 fat32; do mcopy -s -i $img.img "$tree/dir" ::; done
iso() {
	rm -f "$1.img"
	xorriso -outdev "$1.img" -padding 0 -rockridge "$2" -joliet "$3" -map "$tree" / -commit
}
iso iso9660 off off
(
	files=$tree
	tree=$files/parts
	mkdir "$tree"
	yes a | tr -d '\n' | head -c 2048 >"$tree/AA"
	printf tail >"$tree/BB"
	iso parts off off
	rm -r "$tree"
)
iso joliet off on

ln -s /dir/file "$tree/absolute"
ln -s file "$tree/dir/relative"
ln -s ../../../../dir/file "$tree/outside"
ln -s loop "$tree/loop"
ln -s nothing "$tree/dangling"
iso rockridge on off
mke2fs -q -F -t ext4 -b 1024 -N 32 -O ^has_journal,^resize_inode -d "$tree" ext4.img 128K
mke2fs -q -F -t ext4 -b 1024 -N 32 -O ^has_journal,^resize_inode,^metadata_csum -d "$tree" plain4.img 128K
mke2fs -q -F -t ext2 -b 1024 -N 32 -O ^resize_inode -d "$tree" ext2.img 128K
gzip -9nf ./*.img
