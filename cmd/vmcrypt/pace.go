package main

import (
	"fmt"
	"time"

	"github.com/vmcrypt/vmcrypt/agent"
)

// paceWindow: a rate is that of the last one or two of them. A disk is not as fast
// everywhere, and holes take no time.
const paceWindow = 5 * time.Second

// pace measures how fast a run is. What was done before it does not count.
type pace struct{ older, newer sample }

type sample struct {
	at   time.Time
	done int64 // in bytes
}

// pacing is how fast a run is and how long it will last if it goes on so. It is
// missing while too little is known.
type pacing struct {
	Rate *int64 `json:"bytesPerSecond,omitempty"`
	Left *int64 `json:"secondsLeft,omitempty"`
}

// see takes in how far the run has come.
func (p *pace) see(at time.Time, now agent.Progress) pacing {
	if p.older.at.IsZero() {
		p.older = sample{at, now.Done}
		p.newer = p.older
	}
	if at.Sub(p.newer.at) >= paceWindow {
		p.older, p.newer = p.newer, sample{at, now.Done}
	}
	took := at.Sub(p.older.at)
	if took < interval {
		return pacing{}
	}
	rate := int64(float64(now.Done-p.older.done) / took.Seconds())
	if rate <= 0 {
		return pacing{Rate: &rate}
	}
	left := (now.Total - now.Done + rate - 1) / rate
	return pacing{&rate, &left}
}

func (p pacing) String() string {
	switch {
	case p.Rate == nil:
		return ""
	case p.Left == nil:
		return bytesText(*p.Rate) + "/s"
	}
	return fmt.Sprintf("%s/s, %v left", bytesText(*p.Rate), time.Duration(*p.Left)*time.Second)
}
