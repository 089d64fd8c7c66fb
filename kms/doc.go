// Package kms is the key manager that ships with vmcrypt: a persistent KMIP
// server for shops that have none.
//
// A key manager lives in a [Home]. Init makes it, once:
//
//	home := kms.Home{Config: "/etc/vmcrypt/config.yaml", Dir: "/var/lib/vmcrypt/kms"}
//	err := home.Init(configYAML)
//
// It is reached by real KMIP over mutual TLS, either at the server that Serve
// runs or, when none runs, at one that Dial starts within the process for the
// time of a connection. Clients see no difference:
//
//	cluster, err := kek.Open("local", config, home.Dial)
//
// Losing it is losing the disks, so Backup and Restore are part of it.
//
// # Operations
//
// The server speaks KMIP 1.0 to 1.4 (OASIS) and answers each request in its own
// version, with what that version defines; docs/kmip.md says what there is.
// An object belongs to the client whose certificate made it, and is unknown to
// all others. A name belongs to one object of a client until it is taken from
// it: by Re-key, which gives it to the new key, or by the client. A destroyed
// object keeps its attributes, names among them. Dates change states when they
// come. Every change is on disk before it is acknowledged.
//
// # Clients
//
// A client is a certificate that AddClient has registered under a name. The
// registry is in the store; it is asked in the TLS handshake and again for each
// request, so that RevokeClient works at once. What clients do, and what is done
// to the registry, is in audit.log before it is answered, each entry with the
// hash of the one before: VerifyAudit checks that. No client can keep others
// out, with or without a certificate; file guests.go says how.
//
// # Store
//
// What lies on disk is described byte by byte in docs/format.md. The objects
// are records in a bbolt database, store.db, each sealed with AES-256-GCM under
// a key derived from the root key, and bound to the object and the store. The
// root key is in root.key, bare or sealed under a passphrase; RotateRoot replaces
// it while the key manager serves.
//
// Updates share commits, and return when they are on disk. Init and Restore,
// migrations and rotations take effect at one moment each: whoever is killed on
// the way leaves a home that opens as it was before or as it was to be. A test
// kills them thousands of times. When a store is opened to be served, all of it
// is looked at.
//
// # Backup
//
// A backup is one file, encrypted under a passphrase. It holds the root key bare,
// so that it opens where nothing else is left.
package kms
