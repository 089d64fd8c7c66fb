package kms

import (
	"maps"
	"slices"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/gemalto/kmip-go/ttlv"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// discoverVersions is section 4.26. A client may not know yet that it needs
// version 1.1 for it.
func (r *request) discoverVersions(p *kmipwire.DiscoverVersionsRequest) (any, error) {
	versions := kmipwire.Versions()
	if len(p.ProtocolVersion) > 0 {
		versions = slices.DeleteFunc(versions, func(v kmipwire.ProtocolVersion) bool {
			return !slices.Contains(p.ProtocolVersion, v)
		})
	}
	return &kmipwire.DiscoverVersionsResponse{ProtocolVersion: versions}, nil
}

// query is section 4.25. There is nothing to say to functions that are not in
// the table, or not in the client's version.
func (r *request) query(p *kmipwire.QueryRequest) (any, error) {
	out := &kmipwire.QueryResponse{}
	for _, f := range p.QueryFunction {
		if q, ok := queries[f]; ok && r.since(q.since) {
			q.answer(r, out)
		}
	}
	return out, nil
}

// queries are the functions of Query, with the minor version that brought them.
var queries = map[kmip14.QueryFunction]struct {
	since  int
	answer func(*request, *kmipwire.QueryResponse)
}{
	kmip14.QueryFunctionQueryOperations:        {0, (*request).queryOperations},
	kmip14.QueryFunctionQueryObjects:           {0, queryObjects},
	kmip14.QueryFunctionQueryServerInformation: {0, queryServer},
	kmip14.QueryFunctionQueryExtensionList:     {1, queryExtensionList},
	kmip14.QueryFunctionQueryExtensionMap:      {1, queryExtensionMap},
	kmip14.QueryFunctionQueryRNGs:              {3, queryRNGs},
	kmip14.QueryFunctionQueryProfiles:          {3, (*request).queryProfiles},
	kmip14.QueryFunctionQueryCapabilities:      {3, (*request).queryCapabilities},
}

func (r *request) queryOperations(out *kmipwire.QueryResponse) {
	out.Operation = slices.Sorted(maps.Keys(r.operations))
	if !r.since(1) {
		out.Operation = slices.DeleteFunc(out.Operation, func(o kmip14.Operation) bool {
			return o == kmip14.OperationDiscoverVersions
		})
	}
}

func queryObjects(_ *request, out *kmipwire.QueryResponse) {
	out.ObjectType = slices.Sorted(maps.Keys(registrations))
}

func queryServer(_ *request, out *kmipwire.QueryResponse) {
	out.VendorIdentification = vendor
	out.ServerInformation = &kmipwire.ServerInformation{Product: vendor}
}

const vendor = "vmcrypt"

// queryExtensionList names the tags of our own: the one in Server Information.
func queryExtensionList(_ *request, out *kmipwire.QueryResponse) {
	out.ExtensionInformation = append(out.ExtensionInformation, kmipwire.ExtensionInformation{ExtensionName: "Product"})
}

func queryExtensionMap(_ *request, out *kmipwire.QueryResponse) {
	out.ExtensionInformation = append(out.ExtensionInformation, kmipwire.ExtensionInformation{
		ExtensionName: "Product", ExtensionTag: int(kmipwire.TagProduct), ExtensionType: int(ttlv.TypeTextString),
	})
}

// queryRNGs: the kernel's generator is none that KMIP has a name for.
func queryRNGs(_ *request, out *kmipwire.QueryResponse) {
	out.RNGParameters = []kmipwire.RNGParameters{{RNGAlgorithm: kmip14.RNGAlgorithmUnspecified}}
}

// queryProfiles names the profiles of the client's version.
func (r *request) queryProfiles(out *kmipwire.QueryResponse) {
	out.ProfileInformation = nil
	for _, p := range profiles[r.minor()] {
		out.ProfileInformation = append(out.ProfileInformation, kmipwire.ProfileInformation{ProfileName: p})
	}
}

// profiles that the server conforms to, by minor version.
var profiles = map[int][]kmip14.ProfileName{
	3: {
		kmip14.ProfileNameBaselineServerBasicKMIPV1_3,
		kmip14.ProfileNameBaselineServerTLSV1_2KMIPV1_3,
		kmip14.ProfileNameTapeLibraryServerKMIPV1_3,
		kmip14.ProfileNameSymmetricKeyLifecycleServerKMIPV1_3,
		kmip14.ProfileNameSymmetricKeyFoundryServerKMIPV1_3,
		kmip14.ProfileNameOpaqueManagedObjectStoreServerKMIPV1_3,
		kmip14.ProfileNameStorageArrayWithSelfEncryptingDriveServerKMIPV1_3,
	},
	4: {
		kmip14.ProfileNameBaselineServerBasicKMIPV1_4,
		kmip14.ProfileNameBaselineServerTLSV1_2KMIPV1_4,
		kmip14.ProfileNameTapeLibraryServerKMIPV1_4,
		kmip14.ProfileNameSymmetricKeyLifecycleServerKMIPV1_4,
		kmip14.ProfileNameSymmetricKeyFoundryServerKMIPV1_4,
		kmip14.ProfileNameOpaqueManagedObjectStoreServerKMIPV1_4,
		kmip14.ProfileNameStorageArrayWithSelfEncryptingDriveServerKMIPV1_4,
	},
}

func (r *request) queryCapabilities(out *kmipwire.QueryResponse) {
	out.CapabilityInformation = &kmipwire.CapabilityInformation{
		UnwrapMode:         kmip14.UnwrapModeUnspecified,
		DestroyAction:      kmip14.DestroyActionKeyMaterialDeleted,
		ShreddingAlgorithm: kmip14.ShreddingAlgorithmUnspecified,
		RNGMode:            kmip14.RNGModeUnspecified,
	}
	if yes := true; r.since(4) {
		out.CapabilityInformation.BatchUndoCapability = &yes
		out.CapabilityInformation.BatchContinueCapability = &yes
	}
}
