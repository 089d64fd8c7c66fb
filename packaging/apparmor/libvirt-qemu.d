# For /etc/apparmor.d/abstractions/libvirt-qemu.d/vmcrypt: QEMU may connect to the sockets
# of decrypted disks, which have a disk's node as their name, such as scsi0:0.sock. It
# needs none of a disk server's control socket.
  /{,var/}run/vmcrypt/vms/*/*:*.sock rw,
