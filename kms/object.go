package kms

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"

	"github.com/google/uuid"

	"github.com/vmcrypt/vmcrypt/internal/secret"
)

// object is a managed object: its attributes and, until it is destroyed, its
// key material or other content.
type object struct {
	id uuid.UUID
	attributes
	material []byte // nil once destroyed
}

// attributes are what an object's record holds beside the key material, as
// JSON. Enumerations are the numbers of KMIP, dates seconds since 1970 (0 if
// there is none). Names and meanings of the fields belong to the store's format.
type attributes struct {
	Type           uint32      `json:"type"`
	Algorithm      uint32      `json:"algorithm"`
	Length         int32       `json:"length"` // bits
	UsageMask      int32       `json:"usageMask"`
	Names          []name      `json:"names,omitempty"`
	NameIndexes    []int       `json:"nameIndexes,omitempty"` // of Names; missing where they are 0, 1, 2 ...
	State          uint32      `json:"state"`                 // as it was last written: dates may have come since
	Owner          string      `json:"owner"`                 // identity of the client that made it
	Initial        int64       `json:"initialDate"`
	Original       int64       `json:"originalCreationDate,omitempty"`
	Activation     int64       `json:"activationDate,omitempty"`
	ProcessStart   int64       `json:"processStartDate,omitempty"`
	ProtectStop    int64       `json:"protectStopDate,omitempty"`
	Deactivation   int64       `json:"deactivationDate,omitempty"`
	Compromise     int64       `json:"compromiseDate,omitempty"`
	CompromiseOccr int64       `json:"compromiseOccurrenceDate,omitempty"`
	Destroy        int64       `json:"destroyDate,omitempty"`
	Archive        int64       `json:"archiveDate,omitempty"` // only while it is archived
	LastChange     int64       `json:"lastChangeDate"`
	Revocation     *revocation `json:"revocation,omitempty"`
	Fresh          bool        `json:"fresh,omitempty"`

	Format   uint32 `json:"format,omitempty"`   // KMIP's Key Format Type of the material; 0 is Raw
	DataType uint32 `json:"dataType,omitempty"` // of secret data or an opaque object
	Digest   []byte `json:"digest,omitempty"`   // SHA-256 of the material in its format

	Sensitive        bool `json:"sensitive,omitempty"`
	AlwaysSensitive  bool `json:"alwaysSensitive,omitempty"`
	Unextractable    bool `json:"unextractable,omitempty"`
	NeverExtractable bool `json:"neverExtractable,omitempty"`

	// Others are the attributes that the server only keeps, custom ones too.
	Others []other `json:"others,omitempty"`
	// Template are the attributes that a template gives to other objects.
	Template []other `json:"template,omitempty"`
}

// name is what a client calls an object; no two objects of a client share one.
type name struct {
	Value string `json:"value"`
	Type  uint32 `json:"type"`
}

// revocation is the reason that a client gave.
type revocation struct {
	Code    uint32 `json:"code"`
	Message string `json:"message,omitempty"`
}

// other is an instance of an attribute that the server only keeps.
type other struct {
	Name  string `json:"name"`
	Index int    `json:"index,omitempty"`
	Value []byte `json:"value"` // the Attribute Value in TTLV
}

// marshal gives the record of an object: the length of the attributes in 4
// bytes, the attributes, the key material. It must be wiped.
func (o *object) marshal() ([]byte, error) {
	text, err := json.Marshal(o.attributes)
	if err != nil {
		return nil, err
	}
	record := make([]byte, 0, 4+len(text)+len(o.material))
	record = binary.BigEndian.AppendUint32(record, uint32(len(text)))
	record = append(record, text...)
	return append(record, o.material...), nil
}

// unmarshalObject reads a record, which it wipes. The object must be wiped.
func unmarshalObject(id uuid.UUID, record []byte) (*object, error) {
	defer secret.Wipe(record)
	if len(record) < 4 {
		return nil, badRecord(id)
	}
	n, rest := binary.BigEndian.Uint32(record), record[4:]
	if uint64(n) > uint64(len(rest)) {
		return nil, badRecord(id)
	}
	o := &object{id: id}
	dec := json.NewDecoder(bytes.NewReader(rest[:n]))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&o.attributes); err != nil {
		return nil, fmt.Errorf("%w: %v", badRecord(id), err)
	}
	if material := rest[n:]; len(material) > 0 {
		o.material = bytes.Clone(material)
	}
	return o, nil
}

func badRecord(id uuid.UUID) error {
	return fmt.Errorf("object %s: %w: its record cannot be read", id, ErrDamaged)
}

// wipe ends the use of an object.
func (o *object) wipe() {
	secret.Wipe(o.material)
	o.material = nil
}
