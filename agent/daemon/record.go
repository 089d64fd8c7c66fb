package daemon

import (
	"context"
	"log/slog"
	"time"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/internal/text"
)

// action is what an entry of the audit log is about.
type action string

const (
	actUnlock  action = "unlock"
	actRestart action = "restart" // of a disk server that died
	actLock    action = "lock"
	actAdopt   action = "adopt" // by an agent that was started while the VM ran
)

// The results of actions.
const (
	resultReleased = "released" // keys are about to be handed to the disk server
	resultSuccess  = "success"
	resultFailure  = "failure"
)

// entry is what the audit log tells of an action. Nothing in it is secret.
type entry struct {
	Time       string     `json:"time"` // RFC 3339, UTC
	UID        int        `json:"uid"`  // who asked; the agent itself for what nobody asked for
	PID        int        `json:"pid"`
	Action     action     `json:"action"`
	Result     string     `json:"result"`
	VM         string     `json:"vm"`
	UUID       string     `json:"uuid"`
	Descriptor string     `json:"descriptor"`
	ReadOnly   bool       `json:"readOnly"`
	Owner      string     `json:"owner,omitempty"` // for whom it was unlocked
	Keys       []keyEntry `json:"keys,omitempty"`
	Reason     string     `json:"reason,omitempty"` // of a failure

	begun time.Time
}

// keyEntry is a disk, and the KEK by which its key was had.
type keyEntry struct {
	Node     string `json:"node"`
	DiskUUID string `json:"diskUUID"`
	Alias    string `json:"alias"`
	KEKID    string `json:"kekID"`
}

// Limits of what others have written, in bytes.
const (
	maxReason = 1 << 10
	maxName   = 256
)

func (m *machine) entry(ctx context.Context, act action, w wish) *entry {
	e := &entry{UID: m.own.uid, PID: m.own.pid, Action: act, Descriptor: m.descriptor, begun: time.Now()}
	if who, ok := ctx.Value(peerKey{}).(peer); ok {
		e.UID, e.PID = who.uid, who.pid
	}
	e.about(w)
	return e
}

// about adds which VM it is.
func (e *entry) about(w wish) {
	e.VM, e.UUID, e.ReadOnly, e.Owner = text.Clip(w.VM.Name, maxName), text.Clip(w.VM.UUID, maxName), w.ReadOnly, w.Owner
}

// released writes down which keys leave the agent, before they do.
func (d *daemon) released(e *entry, keys []agent.Release) error {
	for _, k := range keys {
		e.Keys = append(e.Keys, keyEntry{k.Node, k.DiskUUID.String(), k.Alias, k.KEKID})
	}
	return d.write(e, resultReleased)
}

// conclude writes down how it ended. Nothing can be done if that fails: what was to be
// on record was written before.
func (d *daemon) conclude(e *entry, err error) {
	d.metrics.concluded(e, err)
	result, level, log := resultSuccess, slog.LevelInfo, slog.With("vm", e.VM, "descriptor", e.Descriptor, "uid", e.UID, "pid", e.PID)
	if err != nil {
		result, e.Reason, level = resultFailure, text.Clip(err.Error(), maxReason), slog.LevelWarn
		log = log.With("error", err)
	}
	log.Log(d.ctx, level, string(e.Action), "result", result)
	if err := d.write(e, result); err != nil {
		slog.Error("the audit log can't be written", "error", err)
	}
}

func (d *daemon) write(e *entry, result string) error {
	e.Time, e.Result = time.Now().UTC().Format(time.RFC3339Nano), result
	return d.metrics.audited(d.audit.Append(true, e))
}
