// Package measure finds out how fast something is on a machine that has other
// things to do as well: by many short samples, most of which nothing disturbs.
package measure

import (
	"context"
	"slices"
	"time"
)

// Sampler takes one sample and says how long it took.
type Sampler func() (time.Duration, error)

// Medians takes a sample of each in turn, again and again for as long as d and
// at least once, and gives the median of each. In turn, because what slows the
// machine down for a while then slows all alike, and leaves their ratios.
func Medians(ctx context.Context, d time.Duration, samplers ...Sampler) ([]time.Duration, error) {
	samples := make([][]time.Duration, len(samplers))
	for begin := time.Now(); len(samplers) > 0; {
		for i, sample := range samplers {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			took, err := sample()
			if err != nil {
				return nil, err
			}
			samples[i] = append(samples[i], took)
		}
		if time.Since(begin) >= d {
			break
		}
	}
	return medians(samples), nil
}

func medians(samples [][]time.Duration) []time.Duration {
	m := make([]time.Duration, len(samples))
	for i, s := range samples {
		slices.Sort(s)
		m[i] = s[len(s)/2]
	}
	return m
}
