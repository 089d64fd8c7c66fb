package kms

import (
	"maps"
	"slices"

	"github.com/gemalto/kmip-go/kmip14"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// discoverVersions is section 4.26.
func (r *request) discoverVersions(p *kmipwire.DiscoverVersionsRequest) (any, error) {
	versions := kmipwire.Versions()
	if len(p.ProtocolVersion) > 0 {
		versions = slices.DeleteFunc(versions, func(v kmipwire.ProtocolVersion) bool {
			return !slices.Contains(p.ProtocolVersion, v)
		})
	}
	return &kmipwire.DiscoverVersionsResponse{ProtocolVersion: versions}, nil
}

// query is section 4.25. There is nothing to say to functions not named here.
func (r *request) query(p *kmipwire.QueryRequest) (any, error) {
	out := &kmipwire.QueryResponse{}
	for _, f := range p.QueryFunction {
		switch f {
		case kmip14.QueryFunctionQueryOperations:
			out.Operation = slices.Sorted(maps.Keys(r.operations))
		case kmip14.QueryFunctionQueryObjects:
			out.ObjectType = []kmip14.ObjectType{kmip14.ObjectTypeSymmetricKey}
		case kmip14.QueryFunctionQueryServerInformation:
			out.VendorIdentification = "vmcrypt"
		}
	}
	return out, nil
}
