package kms

import (
	"slices"

	"github.com/gemalto/kmip-go/kmip14"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// attributeTable lists the attributes in the order in which they are told. The
// columns: name, since 1.x, types of objects, kind, several, rights of clients,
// condition, where it is in the object. Sections 3.1 to 3.50 have a table for
// each.
var attributeTable = []attribute{
	{kmipwire.AttrUniqueIdentifier, 0, everything, textKind, false, byServer, nil, computed(func(o *object) any { return o.id.String() })},
	{kmipwire.AttrName, 0, everything, nameKind, true, byAll, nil, access{names, setNames}},
	{kmipwire.AttrObjectType, 0, everything, enumKind, false, byServer, nil, field(func(o *object) *uint32 { return &o.Type })},
	{kmipwire.AttrCryptographicAlgorithm, 0, cryptographic, enumKind, false, byCreate | byRegister, nil, field(func(o *object) *uint32 { return &o.Algorithm })},
	{kmipwire.AttrCryptographicLength, 0, cryptographic, integerKind, false, byCreate | byRegister, nil, field(func(o *object) *int32 { return &o.Length })},
	{kmipwire.AttrCryptographicParameters, 0, cryptographic, keptStructKind, true, byAll, nil, access{}},
	{kmipwire.AttrDigest, 0, cryptographic | opaqueObjects, digestKind, true, byServer, nil, access{get: digests}},
	{kmipwire.AttrOperationPolicyName, 0, everything, policyKind, false, byMaking, nil, access{}},
	{kmipwire.AttrCryptographicUsageMask, 0, cryptographic, maskKind, false, byMaking, nil, field(func(o *object) *int32 { return &o.UsageMask })},
	{kmipwire.AttrLeaseTime, 0, everything, leaseKind, false, byServer, nil, computed(func(*object) any { return leaseTime })},
	{kmipwire.AttrState, 0, cryptographic, enumKind, false, byServer, nil, field(func(o *object) *uint32 { return &o.State })},
	{kmipwire.AttrInitialDate, 0, everything, dateKind, false, byServer, nil, field(func(o *object) *int64 { return &o.Initial })},
	{kmipwire.AttrActivationDate, 0, cryptographic, dateKind, false, byAll &^ byDelete, inStates(kmip14.StatePreActive), field(func(o *object) *int64 { return &o.Activation })},
	{kmipwire.AttrProcessStartDate, 0, symmetricKeys, dateKind, false, byAll &^ byDelete, inStates(kmip14.StatePreActive, kmip14.StateActive), field(func(o *object) *int64 { return &o.ProcessStart })},
	{kmipwire.AttrProtectStopDate, 0, symmetricKeys, dateKind, false, byAll &^ byDelete, inStates(kmip14.StatePreActive, kmip14.StateActive), field(func(o *object) *int64 { return &o.ProtectStop })},
	{kmipwire.AttrDeactivationDate, 0, cryptographic, dateKind, false, byAll &^ byDelete, inStates(kmip14.StatePreActive, kmip14.StateActive), field(func(o *object) *int64 { return &o.Deactivation })},
	{kmipwire.AttrDestroyDate, 0, everything, dateKind, false, byServer, nil, field(func(o *object) *int64 { return &o.Destroy })},
	{kmipwire.AttrCompromiseOccurrence, 0, cryptographic, dateKind, false, byServer, nil, field(func(o *object) *int64 { return &o.CompromiseOccr })},
	{kmipwire.AttrCompromiseDate, 0, cryptographic, dateKind, false, byServer, nil, field(func(o *object) *int64 { return &o.Compromise })},
	{kmipwire.AttrRevocationReason, 0, cryptographic, revocationKind, false, byServer, nil, access{get: revocations}},
	{kmipwire.AttrArchiveDate, 0, everything, dateKind, false, byServer, nil, field(func(o *object) *int64 { return &o.Archive })},
	{kmipwire.AttrObjectGroup, 0, everything, keptTextKind, true, byAll, nil, access{}},
	{kmipwire.AttrFresh, 1, cryptographic | opaqueObjects, booleanKind, false, byRegister, nil, always(func(o *object) *bool { return &o.Fresh })},
	{kmipwire.AttrLink, 0, cryptographic, linkKind, true, byAll, nil, access{}},
	{kmipwire.AttrApplicationInformation, 0, everything, applicationKind, true, byAll, nil, access{}},
	{kmipwire.AttrContactInformation, 0, everything, keptTextKind, false, byAll, nil, access{}},
	{kmipwire.AttrLastChangeDate, 0, everything, dateKind, false, byServer, nil, field(func(o *object) *int64 { return &o.LastChange })},
	{kmipwire.AttrAlternativeName, 2, everything, alternativeKind, true, byAll, nil, access{}},
	{kmipwire.AttrKeyValuePresent, 2, cryptographic, keptBooleanKind, false, byServer, nil, access{}},
	{kmipwire.AttrKeyValueLocation, 2, cryptographic, locationKind, true, byRegister | byAdd | byModify | byDelete, nil, access{}},
	{kmipwire.AttrOriginalCreationDate, 2, everything, dateKind, false, byRegister, nil, field(func(o *object) *int64 { return &o.Original })},
	{kmipwire.AttrRandomNumberGenerator, 3, cryptographic, keptStructKind, false, byRegister, nil, access{}},
	{kmipwire.AttrDescription, 4, everything, keptTextKind, false, byAll, nil, access{}},
	{kmipwire.AttrComment, 4, everything, keptTextKind, false, byAll, nil, access{}},
	{kmipwire.AttrSensitive, 4, cryptographic, booleanKind, false, byMaking | byModify, onlyTo(true), always(func(o *object) *bool { return &o.Sensitive })},
	{kmipwire.AttrAlwaysSensitive, 4, cryptographic, booleanKind, false, byServer, nil, always(func(o *object) *bool { return &o.AlwaysSensitive })},
	{kmipwire.AttrExtractable, 4, cryptographic, booleanKind, false, byMaking | byModify, onlyTo(false), inverse(func(o *object) *bool { return &o.Unextractable })},
	{kmipwire.AttrNeverExtractable, 4, cryptographic, booleanKind, false, byServer, nil, always(func(o *object) *bool { return &o.NeverExtractable })},
}

// field is an attribute that an object has one or none of, which is the zero
// value then.
func field[T comparable](at func(*object) *T) access {
	var unset T
	return access{
		get: func(o *object) []instance {
			if *at(o) == unset {
				return nil
			}
			return []instance{{value: *at(o)}}
		},
		put: func(o *object, all []instance) {
			*at(o) = unset
			if len(all) > 0 {
				*at(o) = all[0].value.(T)
			}
		},
	}
}

// always is an attribute that every object has.
func always(at func(*object) *bool) access {
	a := field(at)
	a.get = func(o *object) []instance { return []instance{{value: *at(o)}} }
	return a
}

// inverse is one that every object has, and the record has the opposite of.
func inverse(at func(*object) *bool) access {
	return access{
		get: func(o *object) []instance { return []instance{{value: !*at(o)}} },
		put: func(o *object, all []instance) { *at(o) = len(all) > 0 && !all[0].value.(bool) },
	}
}

// computed is an attribute that is not in the record.
func computed(value func(*object) any) access {
	return access{get: func(o *object) []instance { return []instance{{value: value(o)}} }}
}

// inStates lets an attribute be set while an object is in one of the states.
func inStates(states ...kmip14.State) func(*object, any) bool {
	return func(o *object, _ any) bool { return slices.Contains(states, o.state()) }
}

// onlyTo lets an attribute be set to the value that protects the key, never
// back: that would take the protection from everybody who relies on it.
func onlyTo(protected bool) func(*object, any) bool {
	return func(o *object, value any) bool { return value == protected || o.material == nil }
}

func names(o *object) []instance {
	var all []instance
	for i, n := range o.Names {
		if i < len(o.NameIndexes) {
			i = o.NameIndexes[i]
		}
		all = append(all, instance{i, n})
	}
	return all
}

func setNames(o *object, all []instance) {
	o.Names, o.NameIndexes = nil, nil
	gaps := false
	for n, i := range all {
		o.Names = append(o.Names, i.value.(name))
		o.NameIndexes = append(o.NameIndexes, i.index)
		gaps = gaps || n != i.index
	}
	if !gaps {
		o.NameIndexes = nil
	}
}

func revocations(o *object) []instance {
	if o.Revocation == nil {
		return nil
	}
	return []instance{{value: *o.Revocation}}
}

func digests(o *object) []instance {
	sum := o.lastDigest()
	if sum == nil {
		return nil
	}
	return []instance{{value: digest{string(sum), o.format()}}}
}

// lastDigest is also that of objects made before digests were kept.
func (o *object) lastDigest() []byte {
	if o.Digest == nil && o.material != nil {
		return o.digest()
	}
	return o.Digest
}
