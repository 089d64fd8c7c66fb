package kmipwire

import (
	"fmt"
	"io"
	"time"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/gemalto/kmip-go/ttlv"
)

// The structures of KMIP 1.0 to 1.4 that vmcrypt speaks, in the order of their
// fields on the wire. Section numbers are those of the KMIP 1.4 specification
// (OASIS Standard, November 2017). Fields that vmcrypt has no use for are left
// out; they are skipped when they arrive.

// ProtocolVersion is a version of KMIP (section 6.1). Versions compare by ==.
type ProtocolVersion struct {
	ProtocolVersionMajor int
	ProtocolVersionMinor int
}

// Versions lists the versions that vmcrypt speaks, newest first.
func Versions() []ProtocolVersion {
	return []ProtocolVersion{{1, 4}, {1, 3}, {1, 2}, {1, 1}, {1, 0}}
}

// String gives the version as in "1.4".
func (v ProtocolVersion) String() string {
	return fmt.Sprintf("%d.%d", v.ProtocolVersionMajor, v.ProtocolVersionMinor)
}

// RequestMessage is what a client sends (section 7.1).
type RequestMessage struct {
	RequestHeader RequestHeader
	BatchItem     []RequestBatchItem
}

// ResponseMessage is what a server answers (section 7.1).
type ResponseMessage struct {
	ResponseHeader ResponseHeader
	BatchItem      []ResponseBatchItem
}

// RequestHeader starts a request (section 7.2).
type RequestHeader struct {
	ProtocolVersion              ProtocolVersion
	MaximumResponseSize          int                                 `ttlv:",omitempty"` // bytes
	ClientCorrelationValue       string                              `ttlv:",omitempty"` // since 1.4
	ServerCorrelationValue       string                              `ttlv:",omitempty"` // since 1.4
	AsynchronousIndicator        bool                                `ttlv:",omitempty"`
	BatchErrorContinuationOption kmip14.BatchErrorContinuationOption `ttlv:",omitempty"`
	BatchOrderOption             bool                                `ttlv:",omitempty"`
	TimeStamp                    *time.Time
	BatchCount                   int
}

// RequestBatchItem is one operation of a request (section 7.2).
// RequestPayload is one of the ...Request structs when marshalled, and a
// ttlv.TTLV, to be given to UnmarshalPayload, when decoded.
type RequestBatchItem struct {
	Operation         kmip14.Operation
	UniqueBatchItemID []byte `ttlv:",omitempty"`
	RequestPayload    any
	MessageExtension  *MessageExtension
}

// MessageExtension is a vendor's addition to a batch item (section 6.16). One
// that is critical and not understood makes the operation fail.
type MessageExtension struct {
	VendorIdentification string
	CriticalityIndicator bool
}

// ResponseHeader starts a response (section 7.2).
type ResponseHeader struct {
	ProtocolVersion        ProtocolVersion
	TimeStamp              time.Time
	ClientCorrelationValue string `ttlv:",omitempty"` // since 1.4
	ServerCorrelationValue string `ttlv:",omitempty"` // since 1.4
	BatchCount             int
}

// ResponseBatchItem is the outcome of one operation (section 7.2).
// ResponsePayload is one of the ...Response structs when marshalled, and a
// ttlv.TTLV, to be given to UnmarshalPayload, when decoded.
type ResponseBatchItem struct {
	Operation         kmip14.Operation `ttlv:",omitempty"`
	UniqueBatchItemID []byte           `ttlv:",omitempty"`
	ResultStatus      kmip14.ResultStatus
	ResultReason      kmip14.ResultReason `ttlv:",omitempty"`
	ResultMessage     string              `ttlv:",omitempty"`
	ResponsePayload   any
}

// Attribute is a named property of a managed object (section 2.1.1).
// AttributeValue decodes to string, int32, ttlv.EnumValue, bool, time.Time and
// so on, or to a ttlv.TTLV, to be given to UnmarshalPayload, for a structure.
type Attribute struct {
	AttributeName  string
	AttributeIndex int `ttlv:",omitempty"`
	AttributeValue any
}

// The names of the attributes that vmcrypt uses (section 3).
const (
	AttrUniqueIdentifier       = "Unique Identifier"
	AttrName                   = "Name"
	AttrObjectType             = "Object Type"
	AttrCryptographicAlgorithm = "Cryptographic Algorithm"
	AttrCryptographicLength    = "Cryptographic Length"
	AttrCryptographicUsageMask = "Cryptographic Usage Mask"
	AttrState                  = "State"
	AttrInitialDate            = "Initial Date"
	AttrActivationDate         = "Activation Date"
	AttrDeactivationDate       = "Deactivation Date"
	AttrCompromiseDate         = "Compromise Date"
	AttrDestroyDate            = "Destroy Date"
	AttrLastChangeDate         = "Last Change Date"
	AttrRevocationReason       = "Revocation Reason"
)

// Name is the value of the attribute Name (section 3.2).
type Name struct {
	NameValue string
	NameType  kmip14.NameType
}

// TemplateAttribute carries the attributes of an object to be made (section
// 2.1.8).
type TemplateAttribute struct {
	Name      []Name // of templates, which vmcrypt has none of
	Attribute []Attribute
}

// DiscoverVersionsRequest offers the client's versions, the preferred first;
// none asks for all that the server speaks (section 4.26).
type DiscoverVersionsRequest struct {
	ProtocolVersion []ProtocolVersion
}

// DiscoverVersionsResponse holds those of the offered versions that the server
// speaks, the preferred first (section 4.26).
type DiscoverVersionsResponse struct {
	ProtocolVersion []ProtocolVersion
}

// QueryRequest asks what a server can do (section 4.25).
type QueryRequest struct {
	QueryFunction []kmip14.QueryFunction
}

// QueryResponse says what a server can do (section 4.25).
type QueryResponse struct {
	Operation            []kmip14.Operation
	ObjectType           []kmip14.ObjectType
	VendorIdentification string `ttlv:",omitempty"`
}

// CreateRequest asks for a new symmetric key (section 4.1).
type CreateRequest struct {
	ObjectType        kmip14.ObjectType
	TemplateAttribute TemplateAttribute
}

// CreateResponse names the new key (section 4.1). TemplateAttribute holds the
// attributes that the server chose itself, if it says so.
type CreateResponse struct {
	ObjectType        kmip14.ObjectType
	UniqueIdentifier  string
	TemplateAttribute *TemplateAttribute
}

// GetRequest asks for a key and its format (section 4.11).
type GetRequest struct {
	UniqueIdentifier         string               `ttlv:",omitempty"`
	KeyFormatType            kmip14.KeyFormatType `ttlv:",omitempty"`
	KeyWrappingSpecification ttlv.TTLV            // never sent; kept so that a server can refuse it
}

// GetResponse holds a key (section 4.11). SymmetricKey is nil when the object
// is of another type.
type GetResponse struct {
	ObjectType       kmip14.ObjectType
	UniqueIdentifier string
	SymmetricKey     *SymmetricKey
}

// SymmetricKey is a managed symmetric key (section 2.2.2).
type SymmetricKey struct {
	KeyBlock KeyBlock
}

// KeyBlock holds a key and says of what kind it is (section 2.1.3).
type KeyBlock struct {
	KeyFormatType          kmip14.KeyFormatType
	KeyValue               KeyValue
	CryptographicAlgorithm kmip14.CryptographicAlgorithm `ttlv:",omitempty"`
	CryptographicLength    int                           `ttlv:",omitempty"` // bits
	KeyWrappingData        ttlv.TTLV                     // nil unless the key is wrapped
}

// KeyValue holds the bytes of a key (section 2.1.4).
type KeyValue struct {
	KeyMaterial KeyMaterial
}

// KeyMaterial is the bytes of a key in the format Raw. It prints as "[secret]".
type KeyMaterial []byte

// Format keeps the key out of every text made with package fmt.
func (KeyMaterial) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, "[secret]") }

// GetAttributesRequest asks for attributes by name; no name means all
// (section 4.12).
type GetAttributesRequest struct {
	UniqueIdentifier string `ttlv:",omitempty"`
	AttributeName    []string
}

// GetAttributesResponse holds those of the attributes that are set (section
// 4.12).
type GetAttributesResponse struct {
	UniqueIdentifier string
	Attribute        []Attribute
}

// LocateRequest searches for objects that have all the attributes (section
// 4.9).
type LocateRequest struct {
	MaximumItems      int                      `ttlv:",omitempty"`
	OffsetItems       int                      `ttlv:",omitempty"` // since 1.3
	StorageStatusMask kmip14.StorageStatusMask `ttlv:",omitempty"`
	Attribute         []Attribute
}

// LocateResponse names the objects that were found (section 4.9).
type LocateResponse struct {
	LocatedItems     *int // since 1.3: how many there are without MaximumItems
	UniqueIdentifier []string
}

// ActivateRequest takes a key from Pre-Active to Active (section 4.19).
type ActivateRequest struct {
	UniqueIdentifier string `ttlv:",omitempty"`
}

// ActivateResponse names the activated key (section 4.19).
type ActivateResponse struct {
	UniqueIdentifier string
}

// RevokeRequest deactivates a key or marks it as compromised (section 4.20).
type RevokeRequest struct {
	UniqueIdentifier         string `ttlv:",omitempty"`
	RevocationReason         RevocationReason
	CompromiseOccurrenceDate *time.Time
}

// RevocationReason says why a key is revoked (section 3.31).
type RevocationReason struct {
	RevocationReasonCode kmip14.RevocationReasonCode
	RevocationMessage    string `ttlv:",omitempty"`
}

// RevokeResponse names the revoked key (section 4.20).
type RevokeResponse struct {
	UniqueIdentifier string
}

// DestroyRequest deletes the bytes of a key (section 4.21).
type DestroyRequest struct {
	UniqueIdentifier string `ttlv:",omitempty"`
}

// DestroyResponse names the destroyed key (section 4.21).
type DestroyResponse struct {
	UniqueIdentifier string
}
