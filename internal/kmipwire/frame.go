package kmipwire

import (
	"github.com/gemalto/kmip-go/kmip14"
	"github.com/gemalto/kmip-go/ttlv"
)

// encode writes v, a message. The frame of a response is written item by item:
// kmip-go would look at the types of all that a message can hold anew for each
// one, and a key manager answers thousands a second.
func encode(e *ttlv.Encoder, v any) error {
	m, ok := v.(*ResponseMessage)
	if !ok {
		return e.Encode(v)
	}
	err := e.EncodeStructure(kmip14.TagResponseMessage, func(e *ttlv.Encoder) error {
		if err := m.ResponseHeader.encode(e); err != nil {
			return err
		}
		for i := range m.BatchItem {
			if err := m.BatchItem[i].encode(e); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return e.Flush()
}

func (h *ResponseHeader) encode(e *ttlv.Encoder) error {
	return e.EncodeStructure(kmip14.TagResponseHeader, func(e *ttlv.Encoder) error {
		if err := h.ProtocolVersion.encode(e); err != nil {
			return err
		}
		e.EncodeDateTime(kmip14.TagTimeStamp, h.TimeStamp)
		encodeText(e, kmip14.TagClientCorrelationValue, h.ClientCorrelationValue)
		encodeText(e, kmip14.TagServerCorrelationValue, h.ServerCorrelationValue)
		e.EncodeInteger(kmip14.TagBatchCount, int32(h.BatchCount))
		return nil
	})
}

func (v ProtocolVersion) encode(e *ttlv.Encoder) error {
	return e.EncodeStructure(kmip14.TagProtocolVersion, func(e *ttlv.Encoder) error {
		e.EncodeInteger(kmip14.TagProtocolVersionMajor, int32(v.ProtocolVersionMajor))
		e.EncodeInteger(kmip14.TagProtocolVersionMinor, int32(v.ProtocolVersionMinor))
		return nil
	})
}

func (b *ResponseBatchItem) encode(e *ttlv.Encoder) error {
	return e.EncodeStructure(kmip14.TagBatchItem, func(e *ttlv.Encoder) error {
		if b.Operation != 0 {
			e.EncodeEnumeration(kmip14.TagOperation, uint32(b.Operation))
		}
		if len(b.UniqueBatchItemID) > 0 {
			e.EncodeByteString(kmip14.TagUniqueBatchItemID, b.UniqueBatchItemID)
		}
		e.EncodeEnumeration(kmip14.TagResultStatus, uint32(b.ResultStatus))
		if b.ResultReason != 0 {
			e.EncodeEnumeration(kmip14.TagResultReason, uint32(b.ResultReason))
		}
		encodeText(e, kmip14.TagResultMessage, b.ResultMessage)
		if get, ok := b.ResponsePayload.(*GetResponse); ok && get.SymmetricKey != nil && get.SymmetricKey.KeyBlock.KeyWrappingData == nil {
			return get.encodeSymmetricKey(e)
		}
		return e.EncodeValue(kmip14.TagResponsePayload, b.ResponsePayload)
	})
}

// encodeText leaves out what is empty.
func encodeText(e *ttlv.Encoder, tag ttlv.Tag, text string) {
	if text != "" {
		e.EncodeTextString(tag, text)
	}
}
