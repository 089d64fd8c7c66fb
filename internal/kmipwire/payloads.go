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

	AttrCryptographicParameters = "Cryptographic Parameters"
	AttrDigest                  = "Digest"
	AttrOperationPolicyName     = "Operation Policy Name"
	AttrLeaseTime               = "Lease Time"
	AttrProcessStartDate        = "Process Start Date"
	AttrProtectStopDate         = "Protect Stop Date"
	AttrCompromiseOccurrence    = "Compromise Occurrence Date"
	AttrArchiveDate             = "Archive Date"
	AttrObjectGroup             = "Object Group"
	AttrFresh                   = "Fresh"
	AttrLink                    = "Link"
	AttrApplicationInformation  = "Application Specific Information"
	AttrContactInformation      = "Contact Information"
	AttrAlternativeName         = "Alternative Name"
	AttrKeyValuePresent         = "Key Value Present"
	AttrKeyValueLocation        = "Key Value Location"
	AttrOriginalCreationDate    = "Original Creation Date"
	AttrRandomNumberGenerator   = "Random Number Generator"
	AttrDescription             = "Description"
	AttrComment                 = "Comment"
	AttrSensitive               = "Sensitive"
	AttrAlwaysSensitive         = "Always Sensitive"
	AttrExtractable             = "Extractable"
	AttrNeverExtractable        = "Never Extractable"
)

// Name is the value of the attribute Name (section 3.2).
type Name struct {
	NameValue string
	NameType  kmip14.NameType
}

// Link is the value of the attribute Link (section 3.35).
type Link struct {
	LinkType               kmip14.LinkType
	LinkedObjectIdentifier string
}

// ApplicationSpecificInformation is the value of the attribute of that name
// (section 3.36).
type ApplicationSpecificInformation struct {
	ApplicationNamespace string
	ApplicationData      string `ttlv:",omitempty"`
}

// AlternativeName is the value of the attribute of that name (section 3.40).
type AlternativeName struct {
	AlternativeNameValue string
	AlternativeNameType  kmip14.AlternativeNameType
}

// KeyValueLocation is the value of the attribute of that name (section 3.42).
type KeyValueLocation struct {
	KeyValueLocationValue string
	KeyValueLocationType  kmip14.KeyValueLocationType
}

// Digest is the value of the attribute Digest (section 3.17).
type Digest struct {
	HashingAlgorithm kmip14.HashingAlgorithm
	DigestValue      []byte
	KeyFormatType    kmip14.KeyFormatType `ttlv:",omitempty"` // since 1.1
}

// RNGParameters is the value of the attribute Random Number Generator, of those
// of its fields that vmcrypt uses (section 2.1.18).
type RNGParameters struct {
	RNGAlgorithm kmip14.RNGAlgorithm
}

// TemplateAttribute carries the attributes of an object to be made (section
// 2.1.8).
type TemplateAttribute struct {
	Name      []Name // of templates
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
	Operation             []kmip14.Operation
	ObjectType            []kmip14.ObjectType
	VendorIdentification  string `ttlv:",omitempty"`
	ServerInformation     *ServerInformation
	ExtensionInformation  []ExtensionInformation // since 1.1
	RNGParameters         []RNGParameters        // since 1.3
	ProfileInformation    []ProfileInformation   // since 1.3
	CapabilityInformation *CapabilityInformation
}

// ServerInformation is what a vendor tells about a server. Its items are the
// vendor's (section 4.25).
type ServerInformation struct {
	Product string `ttlv:"0x540001,omitempty"`
}

// TagProduct is vmcrypt's tag of ServerInformation's Product.
const TagProduct ttlv.Tag = 0x540001

// ExtensionInformation says what a vendor's tag means (section 2.1.9), since 1.1.
// Type is a TTLV item type.
type ExtensionInformation struct {
	ExtensionName string
	ExtensionTag  int `ttlv:",omitempty"`
	ExtensionType int `ttlv:",omitempty"`
}

// ProfileInformation names a profile that a server conforms to (section
// 2.1.19), since 1.3.
type ProfileInformation struct {
	ProfileName kmip14.ProfileName
}

// CapabilityInformation says which optional things a server does (section
// 2.1.22), since 1.3.
type CapabilityInformation struct {
	StreamingCapability     bool
	AsynchronousCapability  bool
	AttestationCapability   bool
	BatchUndoCapability     *bool // since 1.4
	BatchContinueCapability *bool // since 1.4
	UnwrapMode              kmip14.UnwrapMode
	DestroyAction           kmip14.DestroyAction
	ShreddingAlgorithm      kmip14.ShreddingAlgorithm
	RNGMode                 kmip14.RNGMode
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

// RegisterRequest brings an object to be kept (section 4.3): the one that
// ObjectType says.
type RegisterRequest struct {
	ObjectType        kmip14.ObjectType
	TemplateAttribute TemplateAttribute
	SymmetricKey      *SymmetricKey
	SecretData        *SecretData
	OpaqueObject      *OpaqueObject
	Template          *Template
}

// RegisterResponse names the object (section 4.3).
type RegisterResponse struct {
	UniqueIdentifier string
}

// ReKeyRequest asks for a key to replace another (section 4.4). Offset is the
// time from the new key's Initial Date to its Activation Date.
type ReKeyRequest struct {
	UniqueIdentifier  string `ttlv:",omitempty"`
	Offset            *time.Duration
	TemplateAttribute TemplateAttribute
}

// ReKeyResponse names the new key (section 4.4).
type ReKeyResponse struct {
	UniqueIdentifier string
}

// GetRequest asks for an object and its format (section 4.11).
type GetRequest struct {
	UniqueIdentifier         string                    `ttlv:",omitempty"`
	KeyFormatType            kmip14.KeyFormatType      `ttlv:",omitempty"`
	KeyCompressionType       kmip14.KeyCompressionType `ttlv:",omitempty"`
	KeyWrappingSpecification ttlv.TTLV                 // never sent; kept so that a server can refuse it
}

// GetResponse holds an object (section 4.11): the one that ObjectType says.
type GetResponse struct {
	ObjectType       kmip14.ObjectType
	UniqueIdentifier string
	SymmetricKey     *SymmetricKey
	SecretData       *SecretData
	OpaqueObject     *OpaqueObject
	Template         *Template
}

// SymmetricKey is a managed symmetric key (section 2.2.2).
type SymmetricKey struct {
	KeyBlock KeyBlock
}

// SecretData is a password or a seed (section 2.2.7).
type SecretData struct {
	SecretDataType kmip14.SecretDataType
	KeyBlock       KeyBlock
}

// OpaqueObject is bytes that a server does not understand (section 2.2.8). The
// type is one of the client's vendor.
type OpaqueObject struct {
	OpaqueDataType  ttlv.EnumValue
	OpaqueDataValue KeyMaterial
}

// Template is attributes to make objects with (section 2.2.6).
type Template struct {
	Attribute []Attribute
}

// KeyBlock holds a key and says of what kind it is (section 2.1.3).
type KeyBlock struct {
	KeyFormatType          kmip14.KeyFormatType
	KeyCompressionType     kmip14.KeyCompressionType `ttlv:",omitempty"`
	KeyValue               KeyValue
	CryptographicAlgorithm kmip14.CryptographicAlgorithm `ttlv:",omitempty"`
	CryptographicLength    int                           `ttlv:",omitempty"` // bits
	KeyWrappingData        ttlv.TTLV                     // nil unless the key is wrapped
}

// KeyValue holds the bytes of a key (section 2.1.4). Attribute is what came with
// it; it is not sent. A key whose bytes are elsewhere has none: it is not sent if
// KeyMaterial is nil, and that is nil only if it has not come.
type KeyValue struct {
	KeyMaterial KeyMaterial
	Attribute   []Attribute
	// Transparent makes Marshal put the key into the structure of the format
	// Transparent Symmetric Key (section 2.1.7.1).
	Transparent bool `ttlv:"-"`
}

// MarshalTTLV encodes the key material in one of two ways.
func (k KeyValue) MarshalTTLV(e *ttlv.Encoder, tag ttlv.Tag) error {
	if k.KeyMaterial == nil {
		return nil
	}
	return e.EncodeStructure(tag, func(e *ttlv.Encoder) error {
		if k.Transparent {
			return e.EncodeStructure(kmip14.TagKeyMaterial, func(e *ttlv.Encoder) error {
				e.EncodeByteString(kmip14.TagKey, k.KeyMaterial)
				return nil
			})
		}
		e.EncodeByteString(kmip14.TagKeyMaterial, k.KeyMaterial)
		return nil
	})
}

// UnmarshalTTLV takes the value of a wrapped key, which is encoded as bytes or
// encrypted, for the key material.
func (k *KeyValue) UnmarshalTTLV(d *ttlv.Decoder, v ttlv.TTLV) error {
	if v.Type() == ttlv.TypeByteString {
		k.KeyMaterial = v.ValueByteString()
	} else {
		type plain KeyValue
		if err := d.DecodeValue((*plain)(k), v); err != nil {
			return err
		}
	}
	if k.KeyMaterial == nil { // as kmip-go has it where there are no bytes
		k.KeyMaterial = KeyMaterial{}
	}
	return nil
}

// KeyMaterial is the bytes of a key. It prints as "[secret]".
type KeyMaterial []byte

// Format keeps the key out of every text made with package fmt.
func (KeyMaterial) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, "[secret]") }

// UnmarshalTTLV takes the bytes of the format Raw and, out of its structure, of
// a transparent symmetric key.
func (k *KeyMaterial) UnmarshalTTLV(d *ttlv.Decoder, v ttlv.TTLV) error {
	if v.Type() != ttlv.TypeStructure {
		return d.DecodeValue((*[]byte)(k), v)
	}
	if v = v.ValueStructure(); v.Tag() != kmip14.TagKey || v.Type() != ttlv.TypeByteString {
		return fmt.Errorf("%w: not a symmetric key", ErrMalformed)
	}
	*k = v.ValueByteString()
	return nil
}

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

// GetAttributeListRequest asks for the names of an object's attributes (section
// 4.13).
type GetAttributeListRequest struct {
	UniqueIdentifier string `ttlv:",omitempty"`
}

// GetAttributeListResponse names the attributes that are set (section 4.13).
type GetAttributeListResponse struct {
	UniqueIdentifier string
	AttributeName    []string
}

// AddAttributeRequest gives an object an attribute, or one more instance of it
// (section 4.14).
type AddAttributeRequest struct {
	UniqueIdentifier string `ttlv:",omitempty"`
	Attribute        Attribute
}

// AddAttributeResponse holds the attribute with its index (section 4.14).
type AddAttributeResponse struct {
	UniqueIdentifier string
	Attribute        Attribute
}

// ModifyAttributeRequest changes an instance of an attribute (section 4.15).
type ModifyAttributeRequest struct {
	UniqueIdentifier string `ttlv:",omitempty"`
	Attribute        Attribute
}

// ModifyAttributeResponse holds the changed instance (section 4.15).
type ModifyAttributeResponse struct {
	UniqueIdentifier string
	Attribute        Attribute
}

// DeleteAttributeRequest takes an instance of an attribute away (section 4.16).
type DeleteAttributeRequest struct {
	UniqueIdentifier string `ttlv:",omitempty"`
	AttributeName    string
	AttributeIndex   int `ttlv:",omitempty"`
}

// DeleteAttributeResponse holds the instance as it was (section 4.16).
type DeleteAttributeResponse struct {
	UniqueIdentifier string
	Attribute        Attribute
}

// LocateRequest searches for objects that have all the attributes (section
// 4.9).
type LocateRequest struct {
	MaximumItems      int                      `ttlv:",omitempty"`
	OffsetItems       int                      `ttlv:",omitempty"` // since 1.3
	StorageStatusMask kmip14.StorageStatusMask `ttlv:",omitempty"`
	ObjectGroupMember kmip14.ObjectGroupMember `ttlv:",omitempty"` // since 1.1
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

// CheckRequest asks whether an object may be used as described (section 4.10).
type CheckRequest struct {
	UniqueIdentifier       string         `ttlv:",omitempty"`
	UsageLimitsCount       int64          `ttlv:",omitempty"`
	CryptographicUsageMask int32          `ttlv:",omitempty"`
	LeaseTime              *time.Duration // seconds
}

// CheckResponse holds those of the values of the request that go beyond what is
// allowed, replaced by what is, or else the ID (section 4.10).
type CheckResponse struct {
	UniqueIdentifier       string `ttlv:",omitempty"`
	CryptographicUsageMask *kmip14.CryptographicUsageMask
	LeaseTime              *time.Duration
}

// ObtainLeaseRequest asks for how long an object may be used (section 4.17).
type ObtainLeaseRequest struct {
	UniqueIdentifier string `ttlv:",omitempty"`
}

// ObtainLeaseResponse says for how long an object may be used, and when it was
// changed last (section 4.17).
type ObtainLeaseResponse struct {
	UniqueIdentifier string
	LeaseTime        time.Duration // whole seconds
	LastChangeDate   time.Time
}

// ArchiveRequest puts an object into archival storage (section 4.22).
type ArchiveRequest struct {
	UniqueIdentifier string `ttlv:",omitempty"`
}

// ArchiveResponse names the archived object (section 4.22).
type ArchiveResponse struct {
	UniqueIdentifier string
}

// RecoverRequest takes an object out of archival storage (section 4.23).
type RecoverRequest struct {
	UniqueIdentifier string `ttlv:",omitempty"`
}

// RecoverResponse names the recovered object (section 4.23).
type RecoverResponse struct {
	UniqueIdentifier string
}
