package vmx

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"
)

// CipherXTS is the only Cipher so far.
const CipherXTS = "aes-256-xts-plain64"

// The states of a disk that has a record. All but StateEncrypted are those of an
// unfinished conversion in place.
const (
	StateEncrypted  = "encrypted"
	StateEncrypting = "encrypting"
	StateDecrypting = "decrypting"
	StateRekeying   = "rekeying" // to another DEK: a deep rekey
)

// The phases of a conversion, in the order in which it goes through them. It ends
// in one of the last two.
const (
	PhasePreparing  = "preparing"  // no sector has changed
	PhaseConverting = "converting" // sectors change; the journal knows how far it has come
	PhaseConverted  = "converted"  // every sector is as it is to be
	PhaseReverted   = "reverted"   // every sector is as it was
)

// noFile is what a descriptor shows that was cut short.
const noFile = "the disk has no fileName; the descriptor may be cut short"

const (
	recordPrefix  = "vmcrypt." // after the node and a dot
	recordVersion = "1"
	maxDisk       = 256 << 40 // bytes
	macSize       = 32        // bytes of an HMAC-SHA256
	maxWrapped    = 1 << 10   // bytes
	maxName       = 256       // bytes of an alias or a KEK ID
	maxRecipients = 16
)

// Keys of a record that some records have.
const (
	conversionUUID  = "conversion.uuid"
	conversionPhase = "conversion.phase"
	recipientGroup  = "recipient" // before a recipient's number
	previousGroup   = "previous"
)

// Record is what vmcrypt notes about an encrypted disk.
type Record struct {
	State      string
	DiskUUID   uuid.UUID // not the nil UUID
	Size       int64     // bytes of the disk: a multiple of SectorSize, up to 256 TiB
	Cipher     string    // CipherXTS
	SectorSize int       // bytes of a crypto sector: 512 or 4096
	Holes      string    // "preserve" or "fill"
	MAC        []byte    // 32 bytes, over state, size and conversion, by a key of the DEKs
	Conversion *Conversion
	Recipients []Recipient // of the DEK; of the new one while State is StateRekeying
	Previous   []Recipient // of the DEK that was, if State is StateRekeying, else none
}

// Conversion is a conversion in place that is not finished. A record has one
// exactly when its State is StateEncrypting, StateDecrypting or StateRekeying.
type Conversion struct {
	UUID  uuid.UUID // not the nil UUID
	Phase string
}

// Unfinished tells whether the disk is amid a conversion: some of its sectors may
// have the content that they had before, and some the one that they are to get.
func (r *Record) Unfinished() bool { return r.Conversion != nil }

// Recipient is a wrapped copy of one of the disk's data keys. A record has 1 to
// 16 of each of them.
type Recipient struct {
	Alias      string // of a key manager cluster: 1 to 256 bytes of printable text
	KEKID      string // KMIP Unique Identifier: 1 to 256 bytes of printable text
	WrappedKey []byte // 1 to 1024 bytes, which package dek understands
}

// pair is a key of a record, without node and prefix, and its text.
type pair struct{ key, text string }

// pairs is the record as it is written, in that order.
func (r *Record) pairs() []pair {
	p := []pair{
		{"version", recordVersion},
		{"state", r.State},
		{"uuid", r.DiskUUID.String()},
		{"size", strconv.FormatInt(r.Size, 10)},
		{"cipher", r.Cipher},
		{"sectorSize", strconv.Itoa(r.SectorSize)},
		{"holes", r.Holes},
		{"mac", base64.StdEncoding.EncodeToString(r.MAC)},
	}
	if c := r.Conversion; c != nil {
		p = append(p, pair{conversionUUID, c.UUID.String()}, pair{conversionPhase, c.Phase})
	}
	p = append(p, recipientPairs(recipientGroup, r.Recipients)...)
	return append(p, recipientPairs(previousGroup, r.Previous)...)
}

func recipientPairs(group string, recipients []Recipient) (p []pair) {
	for i, rc := range recipients {
		p = append(p,
			pair{recipientKey(group, i, "alias"), rc.Alias},
			pair{recipientKey(group, i, "kekID"), rc.KEKID},
			pair{recipientKey(group, i, "key"), base64.StdEncoding.EncodeToString(rc.WrappedKey)})
	}
	return p
}

func recipientKey(group string, i int, name string) string {
	return fmt.Sprintf("%s%d.%s", group, i, name)
}

// fault says which key of the record has a value that cannot be, and why; both
// are "" for a good record.
func (r *Record) fault() (key, why string) {
	for _, part := range []func() (key, why string){r.diskFault, r.conversionFault, r.recipientsFault} {
		if key, why = part(); key != "" {
			break
		}
	}
	return key, why
}

func (r *Record) diskFault() (key, why string) {
	switch {
	case r.State != StateEncrypted && !isConversion(r.State):
		return "state", "unknown state"
	case r.DiskUUID == uuid.Nil:
		return "uuid", "no UUID"
	case r.Cipher != CipherXTS:
		return "cipher", "unknown cipher"
	case r.SectorSize != 512 && r.SectorSize != 4096:
		return "sectorSize", "neither 512 nor 4096"
	case r.Size <= 0 || r.Size > maxDisk || r.Size%int64(r.SectorSize) != 0:
		return "size", "not a size of a disk in whole sectors"
	case r.Holes != "preserve" && r.Holes != "fill":
		return "holes", "neither preserve nor fill"
	case len(r.MAC) != macSize:
		return "mac", fmt.Sprintf("not %d bytes long", macSize)
	}
	return "", ""
}

// isConversion tells the states of an unfinished conversion from the others.
func isConversion(state string) bool {
	return state == StateEncrypting || state == StateDecrypting || state == StateRekeying
}

// conversionFault looks at what a record has exactly when its state is one of a
// conversion.
func (r *Record) conversionFault() (key, why string) {
	c := r.Conversion
	switch {
	case c == nil && isConversion(r.State):
		return conversionUUID, "missing in the state " + r.State
	case c == nil:
		return "", ""
	case !isConversion(r.State):
		return conversionUUID, "not for the state " + r.State
	case c.UUID == uuid.Nil:
		return conversionUUID, "no UUID"
	case !isPhase(c.Phase):
		return conversionPhase, "unknown phase"
	}
	return "", ""
}

func isPhase(s string) bool {
	return s == PhasePreparing || s == PhaseConverting || s == PhaseConverted || s == PhaseReverted
}

func (r *Record) recipientsFault() (key, why string) {
	if key, why = recipientFault(recipientGroup, r.Recipients); key != "" {
		return key, why
	}
	switch {
	case r.State == StateRekeying:
		return recipientFault(previousGroup, r.Previous)
	case len(r.Previous) > 0:
		return recipientKey(previousGroup, 0, "key"), "not for the state " + r.State
	}
	return "", ""
}

func recipientFault(group string, recipients []Recipient) (key, why string) {
	if len(recipients) == 0 || len(recipients) > maxRecipients {
		return recipientKey(group, 0, "key"), fmt.Sprintf("not 1 to %d recipients", maxRecipients)
	}
	for i, rc := range recipients {
		switch {
		case !isName(rc.Alias):
			return recipientKey(group, i, "alias"), "not 1 to 256 bytes of printable text"
		case !isName(rc.KEKID):
			return recipientKey(group, i, "kekID"), "not 1 to 256 bytes of printable text"
		case len(rc.WrappedKey) == 0 || len(rc.WrappedKey) > maxWrapped:
			return recipientKey(group, i, "key"), fmt.Sprintf("not 1 to %d bytes long", maxWrapped)
		}
	}
	return "", ""
}

// isName tells whether people can read s back to each other.
func isName(s string) bool {
	for _, c := range s {
		if !unicode.IsPrint(c) || c == utf8.RuneError {
			return false
		}
	}
	return s != "" && len(s) <= maxName
}

// recordKey gives a key in lower case without node and prefix, and whether it
// is one of vmcrypt's.
func recordKey(key string) (string, bool) {
	_, rest := splitNode(key)
	return strings.CutPrefix(rest, recordPrefix)
}

// Record gives the record of the disk at node, or nil for a plain disk. It fails
// with ErrVersion if the record has another format version, and with ErrRecord
// if it is not exactly as SetRecord writes it, other than in the order and place
// of its lines: a key is missing, unknown or doubled, a value is spelled in
// another way, or the node has no fileName.
func (f *File) Record(node string) (*Record, error) {
	node = lower(node)
	at, err := f.recordLines(node)
	if err != nil || len(at) == 0 {
		return nil, err
	}
	if err := f.checkVersion(node, at); err != nil {
		return nil, err
	}
	if !f.hasFile(node) {
		return nil, f.recordError(node, "version", at, noFile)
	}
	r := f.decodeRecord(at)
	if err := f.checkSpelling(node, at, r); err != nil {
		return nil, err
	}
	if key, why := r.fault(); key != "" {
		return nil, f.recordError(node, key, at, why)
	}
	return r, nil
}

// recordLines finds the lines of a node's record: keys in lower case, without
// node and prefix, to lines. Each is there once and has a quoted value.
func (f *File) recordLines(node string) (map[string]int, error) {
	prefix := node + "." + recordPrefix
	at := make(map[string]int)
	for i, l := range f.lines {
		key, own := strings.CutPrefix(l.key, prefix)
		if !own {
			continue
		}
		first, twice := at[key]
		at[key] = i
		switch {
		case twice:
			return nil, f.recordError(node, key, at, fmt.Sprintf("line %d has it too", first+1))
		case l.broken || !l.quoted:
			return nil, f.recordError(node, key, at, "not a value in quotes")
		}
	}
	return at, nil
}

// checkVersion comes before all else, as other versions may have other keys.
func (f *File) checkVersion(node string, at map[string]int) error {
	i, ok := at["version"]
	if !ok {
		return f.recordError(node, "version", at, "missing")
	}
	version := string(f.lines[i].value)
	n, err := strconv.ParseUint(version, 10, 32)
	switch {
	case version == recordVersion:
		return nil
	case err != nil || n == 0 || strconv.FormatUint(n, 10) != version:
		return f.recordError(node, "version", at, "not a number")
	}
	return fmt.Errorf("line %d: %s.%sversion: %w: %d, this vmcrypt knows %s",
		i+1, node, recordPrefix, ErrVersion, n, recordVersion)
}

// decodeRecord reads what it can. The rest stays zero, or half read: it will not
// be spelled as in the file when it is written again.
func (f *File) decodeRecord(at map[string]int) *Record {
	text := func(key string) string {
		i, ok := at[lower(key)]
		if !ok {
			return ""
		}
		s, _ := f.codec.decode(f.lines[i].value)
		return s
	}
	r := &Record{State: text("state"), Cipher: text("cipher"), Holes: text("holes")}
	r.DiskUUID, _ = uuid.Parse(text("uuid"))
	r.Size, _ = strconv.ParseInt(text("size"), 10, 64)
	r.SectorSize, _ = strconv.Atoi(text("sectorSize"))
	r.MAC, _ = base64.StdEncoding.DecodeString(text("mac"))
	if hasKey(at, conversionUUID, conversionPhase) {
		r.Conversion = &Conversion{Phase: text(conversionPhase)}
		r.Conversion.UUID, _ = uuid.Parse(text(conversionUUID))
	}
	r.Recipients = decodeRecipients(recipientGroup, at, text)
	r.Previous = decodeRecipients(previousGroup, at, text)
	return r
}

func decodeRecipients(group string, at map[string]int, text func(key string) string) (recipients []Recipient) {
	for i := range maxRecipients {
		alias, kekID, key := recipientKey(group, i, "alias"), recipientKey(group, i, "kekID"), recipientKey(group, i, "key")
		if !hasKey(at, alias, kekID, key) {
			break
		}
		rc := Recipient{Alias: text(alias), KEKID: text(kekID)}
		rc.WrappedKey, _ = base64.StdEncoding.DecodeString(text(key))
		recipients = append(recipients, rc)
	}
	return recipients
}

// hasKey tells whether any of the keys is there.
func hasKey(at map[string]int, keys ...string) bool {
	return slices.ContainsFunc(keys, func(key string) bool {
		_, ok := at[lower(key)]
		return ok
	})
}

// checkSpelling compares the lines of a record, byte for byte within the quotes,
// with those that SetRecord would write for what they were read as.
func (f *File) checkSpelling(node string, at map[string]int, r *Record) error {
	known := make(map[string]bool)
	for _, p := range r.pairs() {
		key := lower(p.key)
		known[key] = true
		i, ok := at[key]
		if !ok {
			return f.recordError(node, p.key, at, "missing")
		}
		want, err := f.codec.encode(p.text)
		if err != nil || !bytes.Equal(f.lines[i].value, want) {
			return f.recordError(node, p.key, at, "not a valid value")
		}
	}
	for _, key := range slices.Sorted(maps.Keys(at)) {
		if !known[key] {
			return f.recordError(node, key, at, "unknown key")
		}
	}
	return nil
}

// recordError names a key of a record, and its line if it has one.
func (f *File) recordError(node, key string, at map[string]int, why string) error {
	place := ""
	if i, ok := at[lower(key)]; ok {
		place = fmt.Sprintf("line %d: ", i+1)
	}
	return fmt.Errorf("%s%s.%s%s: %w: %s", place, node, recordPrefix, key, ErrRecord, why)
}

// SetRecord writes the record of the disk at node: in place of the one that is
// there, or before the line with the disk's file name. It changes nothing and
// fails with ErrRecord if the record is not valid or the one there is damaged,
// with ErrVersion if that has another version, and with ErrSyntax if the node
// has no fileName or two, or the file would grow too large.
func (f *File) SetRecord(node string, r *Record) error {
	node = lower(node)
	if key, why := r.fault(); key != "" {
		return f.recordError(node, key, nil, why)
	}
	file, err := f.find(node + ".fileName")
	if err != nil {
		return err
	}
	if file < 0 || !isNode(node) {
		return fmt.Errorf("%w: no disk %s", ErrSyntax, node)
	}
	record, err := f.encodeRecord(node, r, f.endAt(file))
	if err != nil {
		return err
	}
	return f.replaceRecord(node, record, file)
}

// RemoveRecord removes what SetRecord wrote, and so restores the file. Where
// there is nothing it does nothing. It fails like Record.
func (f *File) RemoveRecord(node string) error {
	return f.replaceRecord(lower(node), nil, len(f.lines))
}

// encodeRecord makes the lines of a record.
func (f *File) encodeRecord(node string, r *Record, end []byte) ([]line, error) {
	var lines []line
	for _, p := range r.pairs() {
		value, err := f.codec.encode(p.text)
		if err != nil {
			return nil, f.recordError(node, p.key, nil, err.Error())
		}
		lines = append(lines, newLine(node+"."+recordPrefix+p.key, value, end))
	}
	return lines, nil
}

// replaceRecord puts the lines where the record of a node begins now, or before
// the given line if it has none. A record that cannot be read is not replaced.
func (f *File) replaceRecord(node string, record []line, before int) error {
	if _, err := f.Record(node); err != nil {
		return err
	}
	at, err := f.recordLines(node)
	if err != nil {
		return err
	}
	old := slices.Sorted(maps.Values(at))
	if len(old) > 0 {
		before = old[0]
	}
	lines := append(slices.Clone(f.lines[:before]), record...)
	for i, l := range f.lines[before:] {
		if _, is := slices.BinarySearch(old, before+i); !is {
			lines = append(lines, l)
		}
	}
	return f.setLines(lines)
}
