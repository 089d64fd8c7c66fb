package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

const (
	// maxOptionData bounds the data of an option in memory: a name and a query of
	// the greatest length, and more.
	maxOptionData = 32 << 10
	// maxOptions is how often a client may ask. It needs a handful for each
	// export that it looks at.
	maxOptions = 1000
)

// errEnd is the end of a connection that is as it should be.
var errEnd = errors.New("the client has left")

// session is what a client has negotiated.
type session struct {
	export     *export
	structured bool // replies
	status     bool // base:allocation
}

// handshake is the first phase of a connection.
type handshake struct {
	server     *Server
	conn       io.ReadWriter
	out        []byte // replies to the option at hand
	noZeroes   bool
	structured bool
	status     *export // whose base:allocation was selected, nil for none
	chosen     *export // ends the phase
}

// negotiate speaks with a client until it has chosen an export.
func (s *Server) negotiate(conn io.ReadWriter) (session, error) {
	h := &handshake{server: s, conn: conn}
	if err := h.greet(); err != nil {
		return session{}, err
	}
	for range maxOptions {
		if err := h.option(); err != nil {
			return session{}, err
		}
		if h.chosen != nil {
			return session{h.chosen, h.structured, h.status == h.chosen}, nil
		}
	}
	return session{}, errors.New("the client sends option after option")
}

func (h *handshake) greet() error {
	hello := binary.BigEndian.AppendUint64(nil, initMagic)
	hello = binary.BigEndian.AppendUint64(hello, optionMagic)
	hello = binary.BigEndian.AppendUint16(hello, flagFixedNewstyle|flagNoZeroes)
	if _, err := h.conn.Write(hello); err != nil {
		return err
	}
	answer, err := h.receive(4)
	if err != nil {
		return err
	}
	flags := binary.BigEndian.Uint32(answer)
	h.noZeroes = flags&flagNoZeroes != 0
	if flags&^(flagFixedNewstyle|flagNoZeroes) != 0 {
		return fmt.Errorf("unknown client flags %#x", flags)
	}
	return nil
}

// receive takes n bytes from the client, never more: what follows may belong to
// the other phase.
func (h *handshake) receive(n int) ([]byte, error) {
	p := make([]byte, n)
	_, err := io.ReadFull(h.conn, p)
	return p, err
}

// option answers one option.
func (h *handshake) option() error {
	head, err := h.receive(16)
	if err != nil {
		return err
	}
	if magic := binary.BigEndian.Uint64(head); magic != optionMagic {
		return fmt.Errorf("an option with the magic number %#x", magic)
	}
	option, length := binary.BigEndian.Uint32(head[8:]), binary.BigEndian.Uint32(head[12:])
	h.out = h.out[:0]
	err = h.take(option, length)
	if _, failed := h.conn.Write(h.out); failed != nil {
		return failed
	}
	return err
}

// take receives the data of an option and does what it asks. Data that are too
// long are dropped, which the deadline bounds.
func (h *handshake) take(option, length uint32) error {
	if length > maxOptionData {
		if _, err := io.CopyN(io.Discard, h.conn, int64(length)); err != nil {
			return err
		}
		if option == optExportName {
			return errors.New("too long an export name")
		}
		h.reply(option, repErrTooBig, nil)
		return nil
	}
	data, err := h.receive(int(length))
	if err != nil {
		return err
	}
	return h.answer(option, data)
}

func (h *handshake) answer(option uint32, data []byte) error {
	switch option {
	case optExportName:
		return h.exportName(data)
	case optAbort:
		h.reply(option, repAck, nil)
		return errEnd
	case optList:
		h.list(data)
	case optStartTLS:
		// Sockets are for one user of one host: there is nobody to hide from.
		h.reply(option, repErrPolicy, nil)
	case optInfo, optGo:
		h.info(option, data)
	case optStructuredReply:
		h.structuredReply(data)
	case optListMetaContext, optSetMetaContext:
		h.metaContext(option, data)
	default:
		h.reply(option, repErrUnsup, nil)
	}
	return nil
}

// reply adds a reply to an option.
func (h *handshake) reply(option, kind uint32, data []byte) {
	h.out = binary.BigEndian.AppendUint64(h.out, optReplyMagic)
	h.out = binary.BigEndian.AppendUint32(h.out, option)
	h.out = binary.BigEndian.AppendUint32(h.out, kind)
	h.out = binary.BigEndian.AppendUint32(h.out, uint32(len(data)))
	h.out = append(h.out, data...)
}

// exportName chooses an export in the old way, which knows no refusal.
func (h *handshake) exportName(name []byte) error {
	e := h.server.find(string(name))
	if e == nil {
		return fmt.Errorf("no export %q", name)
	}
	h.out = binary.BigEndian.AppendUint64(h.out, e.size)
	h.out = binary.BigEndian.AppendUint16(h.out, h.transmissionFlags(e))
	if !h.noZeroes {
		h.out = append(h.out, make([]byte, 124)...)
	}
	h.chosen = e
	return nil
}

func (h *handshake) transmissionFlags(e *export) uint16 {
	flags := uint16(flagHasFlags | flagSendFlush | flagSendFUA | flagSendCache)
	flags |= flagCanMultiConn // there is no cache but the disk's own, which all share
	if e.ReadOnly {
		flags |= flagReadOnly
	} else {
		flags |= flagSendTrim | flagSendWriteZeroes | flagSendFastZero
	}
	if h.structured {
		flags |= flagSendDF
	}
	return flags
}

func (h *handshake) list(data []byte) {
	if len(data) > 0 {
		h.reply(optList, repErrInvalid, nil)
		return
	}
	for _, e := range h.server.exports {
		entry := binary.BigEndian.AppendUint32(nil, uint32(len(e.Name)))
		entry = append(entry, e.Name...)
		h.reply(optList, repServer, append(entry, e.Description...))
	}
	h.reply(optList, repAck, nil)
}

func (h *handshake) structuredReply(data []byte) {
	if len(data) > 0 {
		h.reply(optStructuredReply, repErrInvalid, nil)
		return
	}
	h.structured = true
	h.reply(optStructuredReply, repAck, nil)
}

// info tells about an export, and chooses it if the option is optGo.
func (h *handshake) info(option uint32, data []byte) {
	d := decoder{rest: data}
	name := d.text()
	kinds := make([]uint16, d.uint16())
	for i := range kinds {
		kinds[i] = d.uint16()
	}
	if !d.done() {
		h.reply(option, repErrInvalid, nil)
		return
	}
	e := h.server.find(name)
	if e == nil {
		h.reply(option, repErrUnknown, nil)
		return
	}
	h.describe(option, e, kinds)
	h.reply(option, repAck, nil)
	if option == optGo {
		h.chosen = e
	}
}

// describe gives what a client must know, and what else it asked for.
func (h *handshake) describe(option uint32, e *export, kinds []uint16) {
	info := binary.BigEndian.AppendUint16(nil, infoExport)
	info = binary.BigEndian.AppendUint64(info, e.size)
	h.reply(option, repInfo, binary.BigEndian.AppendUint16(info, h.transmissionFlags(e)))

	info = binary.BigEndian.AppendUint16(nil, infoBlockSize)
	for _, size := range []uint32{1, preferredBlock, maxRequest} {
		info = binary.BigEndian.AppendUint32(info, size)
	}
	h.reply(option, repInfo, info)

	if slices.Contains(kinds, infoName) {
		h.reply(option, repInfo, append(binary.BigEndian.AppendUint16(nil, infoName), e.Name...))
	}
	if slices.Contains(kinds, infoDescription) && e.Description != "" {
		h.reply(option, repInfo, append(binary.BigEndian.AppendUint16(nil, infoDescription), e.Description...))
	}
}

const (
	allocation   = "base:allocation"
	allocationID = 1
)

// metaContext lists or selects metadata contexts, of which there is one. What
// was selected before no longer is, even if the option fails.
func (h *handshake) metaContext(option uint32, data []byte) {
	selects := option == optSetMetaContext
	if selects {
		h.status = nil
	}
	d := decoder{rest: data}
	name := d.text()
	count := d.uint32()
	wanted := !selects && count == 0
	for i := uint32(0); i < count && !d.short; i++ {
		query := d.text()
		wanted = wanted || query == allocation || (!selects && query == "base:")
	}
	if !d.done() || !h.structured {
		h.reply(option, repErrInvalid, nil)
		return
	}
	e := h.server.find(name)
	if e == nil {
		h.reply(option, repErrUnknown, nil)
		return
	}
	if wanted {
		h.offer(option, e)
	}
	h.reply(option, repAck, nil)
}

// offer names the metadata context; its number means something only if selected.
func (h *handshake) offer(option uint32, e *export) {
	id := uint32(0)
	if option == optSetMetaContext {
		h.status, id = e, allocationID
	}
	h.reply(option, repMetaContext, append(binary.BigEndian.AppendUint32(nil, id), allocation...))
}

// decoder takes the data of an option apart.
type decoder struct {
	rest  []byte
	short bool // something was missing
}

// done reports whether all was there and nothing is left.
func (d *decoder) done() bool { return !d.short && len(d.rest) == 0 }

// take gives the next n bytes, or as many zeros.
func (d *decoder) take(n int) []byte {
	if n > len(d.rest) {
		d.short = true
		return make([]byte, n)
	}
	p := d.rest[:n]
	d.rest = d.rest[n:]
	return p
}

func (d *decoder) uint16() uint16 { return binary.BigEndian.Uint16(d.take(2)) }

func (d *decoder) uint32() uint32 { return binary.BigEndian.Uint32(d.take(4)) }

// text gives a string after its length.
func (d *decoder) text() string {
	n := d.uint32()
	if n > maxString {
		d.short = true
		return ""
	}
	return string(d.take(int(n)))
}
