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
// version: Discover Versions, Query, Create (AES), Get (Raw), Get Attributes,
// Locate, Activate, Revoke, Destroy. A name belongs to one object for ever.
// Every change is on disk before it is acknowledged.
//
// # Store
//
// store.db is a bbolt database. All numbers are big-endian. HKDF is
// HKDF-SHA256 (RFC 5869) of the 32 bytes of the root key with the 16 bytes of
// the store's UUID as salt and 32 bytes of output. It has three buckets:
//
//	meta     "schema"  4 bytes: the version of this format, 1
//	         "store"   16 bytes: the store's UUID
//	         "check"   32 bytes: HKDF, info "vmcrypt kms 1 check"
//	objects  16 bytes: the object's UUID, which is its KMIP Unique Identifier
//	         -> its record, sealed; the bucket's sequence counts the keys made
//	names    32 bytes: HMAC-SHA256 of name type (4 bytes) and name under HKDF,
//	         info "vmcrypt kms 1 names" -> 16 bytes: UUID of the named object
//
// A record is sealed with AES-256-GCM under HKDF, info "vmcrypt kms 1 objects":
// 12 bytes IV, ciphertext, 16 bytes tag. The associated data is the 18 bytes
// "vmcrypt kms object", the schema version (4 bytes), the store's UUID, the
// object's UUID. So a record cannot be moved to another object or store, though
// whoever writes the file can bring back an older record of the same object.
//
// A record holds the length of the attributes (4 bytes), the attributes as
// JSON, and to its end the key, which is missing once it is destroyed.
//
// root.key is the line "vmcrypt-kms-root-key-1" and the line of 64 lower-case
// hexadecimal digits that are the root key.
//
// # Backup
//
// A backup begins with a header of 120 bytes:
//
//	offset  size
//	     0     8  "VMCRKMSB"
//	     8     4  version, 1
//	    12     4  argon2id: passes, 1 to 16
//	    16     4  argon2id: memory in KiB, up to 1048576
//	    20     4  argon2id: lanes, 1 to 16
//	    24    32  argon2id: salt
//	    56    32  check value
//	    88    32  SHA-256 of the bytes before it
//	   120        the encrypted archive
//
// The master key is the 32 bytes that argon2id (RFC 9106, version 1.3) makes of
// passphrase and salt. From it HKDF-Expand-SHA256 derives the check value (info
// "vmcrypt kms backup 1 check") and the stream's key ("vmcrypt kms backup 1
// stream"), 32 bytes each.
//
// The archive is encrypted as a stream by Tink's AES256-GCM-HKDF with SHA-256
// and segments of 1 MiB; the header is its associated data. It begins with one
// byte 40, 32 bytes salt, 7 bytes nonce prefix. It is a tar (ustar) of these
// regular files in this order: backup.json (time, store UUID, keys made,
// number of objects), kms/root.key, kms/ca.pem, kms/ca.key, kms/server.pem,
// kms/server.key, config/ca.pem, config/client.pem, config/client.key,
// config/config.yaml, kms/store.db.
package kms
