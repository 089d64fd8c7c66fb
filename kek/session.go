package kek

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/gemalto/kmip-go/kmip14"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// session is a connection to one key manager that has agreed on a version.
type session struct {
	server  *server
	conn    *kmipwire.Conn
	version kmipwire.ProtocolVersion

	used      time.Time // last, while it is kept
	transient bool      // it is never kept

	trusted *certificates // by which it was made
}

// negotiate picks the newest version that both sides speak. Discover Versions
// came with KMIP 1.1, so that is the version it is asked in. A server that
// answers but refuses it is taken to speak only 1.0.
func (s *session) negotiate(ctx context.Context) error {
	s.version = kmipwire.ProtocolVersion{ProtocolVersionMajor: 1, ProtocolVersionMinor: 1}
	offer := kmipwire.DiscoverVersionsRequest{ProtocolVersion: kmipwire.Versions()}
	var resp kmipwire.DiscoverVersionsResponse
	err := s.call(ctx, kmip14.OperationDiscoverVersions, offer, &resp)
	var refusal *refusal
	switch {
	case errors.As(err, &refusal) && !errors.Is(err, ErrDenied):
		s.version = kmipwire.ProtocolVersion{ProtocolVersionMajor: 1}
		return nil
	case err != nil:
		return fmt.Errorf("agree on a version of KMIP: %w", err)
	}
	for _, v := range offer.ProtocolVersion {
		if slices.Contains(resp.ProtocolVersion, v) {
			s.version = v
			return nil
		}
	}
	return fmt.Errorf("%w: it speaks no version of KMIP from 1.0 to 1.4", errProtocol)
}

// call has the server do one operation and decodes the answer into response,
// which must be of a type without key material.
func (s *session) call(ctx context.Context, op kmip14.Operation, request, response any) (err error) {
	defer s.server.cluster.watch(ctx, s.server.Address, op.String(), time.Now(), &err)
	msg, err := s.ask(ctx, op, request)
	if err != nil {
		return err
	}
	return decode(msg, op, response)
}

// ask sends one operation and returns the message that comes back.
func (s *session) ask(ctx context.Context, op kmip14.Operation, request any) ([]byte, error) {
	out, err := kmipwire.Marshal(kmipwire.RequestMessage{
		RequestHeader: kmipwire.RequestHeader{ProtocolVersion: s.version, BatchCount: 1},
		BatchItem:     []kmipwire.RequestBatchItem{{Operation: op, RequestPayload: request}},
	})
	if err != nil {
		return nil, err
	}
	msg, err := s.roundTrip(ctx, out)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	return msg, nil
}

// roundTrip sends a message and reads the next. A server that refuses the
// client's certificate says so in an alert and closes, so that the message may
// not get through: the alert is read all the same.
func (s *session) roundTrip(ctx context.Context, out []byte) ([]byte, error) {
	writeErr := s.conn.Write(ctx, out)
	msg, err := s.conn.Read(ctx)
	if err == nil {
		s.server.noteAnswer()
		return msg, nil
	}
	if writeErr != nil && alertOf(err) == "" {
		err = writeErr
	}
	return nil, &transportError{err}
}

// decode decodes msg into response if it is the answer to op and says that op
// was done.
func decode(msg []byte, op kmip14.Operation, response any) error {
	var resp kmipwire.ResponseMessage
	if err := kmipwire.Unmarshal(msg, &resp); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if err := checkAnswer(&resp, op); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return kmipwire.UnmarshalPayload(resp.BatchItem[0].ResponsePayload, response)
}

func checkAnswer(resp *kmipwire.ResponseMessage, op kmip14.Operation) error {
	if v := resp.ResponseHeader.ProtocolVersion; v.ProtocolVersionMajor != 1 {
		return fmt.Errorf("%w: in KMIP %s", errProtocol, v)
	}
	if resp.ResponseHeader.BatchCount != 1 || len(resp.BatchItem) != 1 {
		return fmt.Errorf("%w: %d results for one operation", errProtocol, len(resp.BatchItem))
	}
	item := &resp.BatchItem[0]
	switch {
	case item.ResultStatus == kmip14.ResultStatusOperationFailed:
		return &refusal{reason: item.ResultReason, message: item.ResultMessage}
	case item.ResultStatus != kmip14.ResultStatusSuccess:
		return fmt.Errorf("%w: result status %d", errProtocol, item.ResultStatus)
	case item.Operation != op:
		return fmt.Errorf("%w: a result of operation %d", errProtocol, item.Operation)
	}
	return nil
}
