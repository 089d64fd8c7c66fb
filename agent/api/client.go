package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
)

// maxAnswer bounds an answer, in bytes.
const maxAnswer = 64 << 20

// ErrNoAgent is the error where no agent answers at the socket.
var ErrNoAgent = errors.New("no agent answers")

// Client asks the agent. Its errors are an *Error where the agent answered, and else
// wrap ErrNoAgent.
type Client struct{ http http.Client }

// NewClient makes a client of the agent that listens at a unix socket. It connects to
// nothing yet.
func NewClient(socket string) *Client {
	return &Client{http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}}
}

// List gives the VMs in the datastores that have encrypted disks, and those that are
// unlocked.
func (c *Client) List(ctx context.Context) (list *List, err error) {
	return ask[List](ctx, c, http.MethodGet, "/v1/vms", nil)
}

// VM gives one of them.
func (c *Client) VM(ctx context.Context, vm string) (*VM, error) {
	return ask[VM](ctx, c, http.MethodGet, "/v1/vm?"+url.Values{"vm": {vm}}.Encode(), nil)
}

// Agent tells about the agent itself.
func (c *Client) Agent(ctx context.Context) (*Agent, error) {
	return ask[Agent](ctx, c, http.MethodGet, "/v1/agent", nil)
}

// Overview gives all that an operator watches.
func (c *Client) Overview(ctx context.Context) (*Overview, error) {
	return ask[Overview](ctx, c, http.MethodGet, "/v1/overview", nil)
}

// Unlock has the disks of a VM served. It changes nothing if they are.
func (c *Client) Unlock(ctx context.Context, r UnlockRequest) (*VM, error) {
	return ask[VM](ctx, c, http.MethodPost, "/v1/unlock", r)
}

// Lock ends that. It changes nothing if they are not served.
func (c *Client) Lock(ctx context.Context, r LockRequest) (*VM, error) {
	return ask[VM](ctx, c, http.MethodPost, "/v1/lock", r)
}

func ask[T any](ctx context.Context, c *Client, method, path string, body any) (*T, error) {
	req, err := request(ctx, method, path, body)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, unanswered(ctx, err)
	}
	defer resp.Body.Close()
	return read[T](resp)
}

// request makes one with a body, unless that is nil.
func request(ctx context.Context, method, path string, body any) (*http.Request, error) {
	if body == nil {
		return http.NewRequestWithContext(ctx, method, "http://agent"+path, http.NoBody)
	}
	text, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	return req, nil
}

func unanswered(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if u := (*url.Error)(nil); errors.As(err, &u) {
		err = u.Err // its URL says nothing
	}
	return fmt.Errorf("%w: %w", ErrNoAgent, err)
}

func read[T any](resp *http.Response) (*T, error) {
	body := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer))
	if resp.StatusCode != http.StatusOK {
		var f failure
		if err := body.Decode(&f); err != nil || f.Error == nil {
			return nil, fmt.Errorf("%w as it should: %s", ErrNoAgent, resp.Status)
		}
		return nil, f.Error
	}
	answer := new(T)
	if err := body.Decode(answer); err != nil {
		return nil, fmt.Errorf("%w as it should: %w", ErrNoAgent, err)
	}
	return answer, nil
}
