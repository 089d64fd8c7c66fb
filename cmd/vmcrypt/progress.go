package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/vmcrypt/vmcrypt/agent"
)

// interval is the least time between two progress lines in JSON.
const interval = 200 * time.Millisecond

// watch runs a conversion and shows how far it has come.
func watch(c *cli.Context, e *environment, convert func(context.Context, *agent.Host) (*agent.Status, error)) (*agent.Status, error) {
	ctx, cancel := context.WithCancelCause(c.Context)
	defer cancel(nil)
	p := newProgress(c, cancel)
	h := e.host()
	h.Report = p.report
	result, err := convert(ctx, h)
	p.end()
	if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(err, cause) {
		return nil, cause
	}
	return result, err
}

// showResult shows what came of a conversion.
func showResult(c *cli.Context, operation string, result *agent.Status) error {
	if c.Bool("json") {
		return writeJSON(c.App.Writer, struct {
			Type      string `json:"type"`
			Operation string `json:"operation"`
			*agent.Status
		}{"done", operation, result})
	}
	for _, d := range result.Disks {
		printDisk(c.App.Writer, d)
	}
	return nil
}

// progress shows how far a conversion has come: a bar on a terminal, lines of
// JSON for programs, nothing otherwise.
type progress struct {
	bar   *progressbar.ProgressBar
	pace  pace
	lines io.Writer
	last  time.Time
	fail  func(error) // ends the conversion when nobody reads its lines
}

func newProgress(c *cli.Context, fail func(error)) *progress {
	if c.Bool("json") {
		return &progress{lines: c.App.Writer, fail: fail}
	}
	if !term.IsTerminal(int(os.Stderr.Fd())) {
		return &progress{}
	}
	return &progress{bar: progressbar.NewOptions64(0,
		progressbar.OptionSetWriter(os.Stderr),
		progressbar.OptionSetWidth(30),
		progressbar.OptionSetPredictTime(false), // it takes what an earlier run did for done by this one
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionClearOnFinish(),
		progressbar.OptionUseANSICodes(true),
	)}
}

func (p *progress) report(now agent.Progress) {
	switch {
	case p.bar != nil:
		p.bar.ChangeMax64(now.Total)
		p.bar.Describe(strings.TrimSpace(now.Node + "  " + p.pace.see(time.Now(), now).String()))
		_ = p.bar.Set64(now.Done)
	case p.lines != nil && (now.Done == now.Total || time.Since(p.last) >= interval):
		p.last = time.Now()
		if err := writeJSON(p.lines, struct {
			Type  string `json:"type"`
			Node  string `json:"node"`
			Done  int64  `json:"doneBytes"`
			Total int64  `json:"totalBytes"`
			pacing
		}{"progress", now.Node, now.Done, now.Total, p.pace.see(p.last, now)}); err != nil {
			p.fail(err)
		}
	}
}

func (p *progress) end() {
	if p.bar != nil {
		_ = p.bar.Clear()
	}
}

// warn tells of something that is not an error.
func warn(c *cli.Context, message string) {
	if c.Bool("json") {
		_ = writeJSON(c.App.Writer, map[string]string{"type": "warning", "message": message})
		return
	}
	fmt.Fprintf(os.Stderr, "vmcrypt: %s\n", plainText(message))
}
