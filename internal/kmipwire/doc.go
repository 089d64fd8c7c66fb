// Package kmipwire is the one door through which KMIP bytes enter and leave
// vmcrypt, at the client (package kek) and at the server (package kms).
//
// KMIP messages are TTLV: nested items of tag, type, length and value (KMIP
// 1.4, section 9.1). The encoding library, kmip-go, believes what they say: an
// 8-byte header can make it allocate 4 GiB, nested structures cost it 2^depth
// steps, and some values make it panic. So nothing reaches it here that
// [Validate] has not accepted:
//
//	conn := kmipwire.NewConn(tlsConn, kmipwire.DefaultTimeouts)
//	msg, err := conn.Read(ctx)             // bounded in size and in time
//	...
//	var req kmipwire.RequestMessage
//	err = kmipwire.Unmarshal(msg, &req)    // validates, then decodes
//	...
//	var get kmipwire.GetRequest
//	err = kmipwire.UnmarshalPayload(req.BatchItem[0].RequestPayload, &get)
//
// Byte strings that Unmarshal returns, key material among them, are slices of
// msg: they live as long as it does and vanish when it is cleared. Whoever
// reads or marshals a message that carries a key calls [Wipe] on it.
package kmipwire
